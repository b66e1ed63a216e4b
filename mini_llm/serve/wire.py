"""What clients send: the bodies of all requests, checked field by field. Null means the default everywhere.

Unknown fields are ignored, as OpenAI's clients expect, but those whose silent loss would give a wrong result are
refused by name, and so is one that is a letter or two beside a known one. Source: OpenAI's API reference; the extras
have vLLM's and llama.cpp's names.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mini_llm.errors import did_you_mean
from mini_llm.serve.problems import ApiError, not_done
from mini_llm.serve.settings import (
    LONGEST_STOP,
    MOST_BIASES,
    MOST_CHOICES,
    MOST_LIKELIEST,
    MOST_MESSAGES,
    MOST_PROMPTS,
    MOST_STOPS,
)

REFUSED = {
    "tools": "the model calls no functions; describe them in a message",
    "functions": "the model calls no functions; describe them in a message",
    "function_call": "the model calls no functions",
    "audio": "the model knows text alone",
    "prediction": "leave it out",
    "web_search_options": "the model reaches no network",
    "suffix": "the model only goes on from a prompt",
    "previous_response_id": "nothing is stored; send the whole conversation as input",
    "conversation": "nothing is stored; send the whole conversation as input",
    "background": "leave it out, and stream",
    "prompt_logprobs": "use /v1/completions with echo: true and logprobs",
    "min_tokens": "rule the token that ends texts out for all of it by ignore_eos: true",
    "stop_token_ids": "use stop",
    "bad_words": "use logit_bias",
    "allowed_token_ids": "use logit_bias",
    "structured_outputs": "use response_format",
    "guided_choice": "use response_format with an enum",
    "guided_grammar": "use response_format with a json_schema",
    "guided_json": "use response_format",
    "guided_regex": "use response_format with a json_schema",
    "grammar": "use response_format with a json_schema",
    "chat_template": "the model's own is used",
    "chat_template_kwargs": "the model's template takes none",
    "documents": "put them into a message",
    "truncate_prompt_tokens": "shorten the prompt; /tokenize counts it",
    "num_predict": "use max_tokens",
    "n_predict": "use max_tokens",
    "length_penalty": "no beams are searched",
    "mirostat": "use min_p or typical_p",
}
BESIDES = {  # what /v1/responses refuses as well
    "prompt": "nothing is stored; send instructions and input",
    "response_format": "use text.format",
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "use max_output_tokens"),
    **dict.fromkeys(
        ("stop", "seed", "logit_bias", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "top_k",
         "min_p", "typical_p", "repetition_penalty", "ignore_eos", "inspect", "return_token_ids"),
        "/v1/chat/completions has it",
    ),
}  # fmt: skip
HARMLESS: dict[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"), "modalities": (["text"],), "use_beam_search": (False,),
    "truncation": ("disabled",), "reasoning_effort": ("none", "minimal"),
}  # fmt: skip
MISSPELT = 0.85  # how alike names are: "temprature" 0.95, "promt" 0.91, but "store" and "stop" 0.67
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]


class Body(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True, protected_namespaces=())
    refused: ClassVar[dict[str, str]] = REFUSED

    model: str | None = Field(None, max_length=256)

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, values: Any) -> Any:
        if not _is_unicode(values):
            raise ApiError(400, "the body holds half of a surrogate pair, which is no text", code="invalid_unicode")
        known = {**cls.model_fields, **cls.refused, **HARMLESS}
        for field in values if isinstance(values, dict) else ():
            if field not in known and (hint := did_you_mean(field, cls.model_fields, MISSPELT)):
                message = f"there is no field '{field[:64]}'{hint}"
                raise ApiError(400, message, param=field[:64], code="unknown_parameter")
            value = values[field]
            if field in cls.refused and field not in cls.model_fields and value not in (None, [], {}, False, ""):
                raise not_done(field, cls.refused[field])
            if field in HARMLESS and value is not None and value not in HARMLESS[field]:
                raise not_done(field, f"only {' or '.join(map(str, HARMLESS[field]))}")
        return values


def _is_unicode(value: Any) -> bool:
    """Tell whether all texts in a JSON value are Unicode: its escapes can also write halves of characters."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, dict):
        return all(_is_unicode(key) and _is_unicode(item) for key, item in value.items())
    if isinstance(value, list) and not (value and isinstance(value[0], int)):
        return all(map(_is_unicode, value))
    return True


class StreamOptions(BaseModel):
    """What a stream tells besides."""

    include_usage: bool | None = None


class JsonSchema(BaseModel):
    """A schema that the answer shall fit."""

    model_config = ConfigDict(protected_namespaces=())

    name: str | None = None
    json_schema: dict[str, Any] | bool | None = Field(None, alias="schema")


class ResponseFormat(BaseModel):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Writing(Body):
    """What both ways to ask for text have in common."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, float], Field(max_length=MOST_BIASES)] | None = None
    max_tokens: int | None = Field(None, ge=0, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=0, lt=2**31)
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    inspect: bool | None = None

    @property
    def most(self) -> int | None:
        """So many tokens at most, by either name; None: as many as there is room for."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class CompletionBody(Writing):
    """POST /v1/completions."""

    refused: ClassVar[dict[str, str]] = {
        **REFUSED,
        "messages": "/v1/chat/completions has it",
        "top_logprobs": "use logprobs, here a number",
    }

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MOST_PROMPTS)]
        | None
    ) = None
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)
    best_of: int | None = Field(None, ge=1)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list."""
        if self.prompt is None or isinstance(self.prompt, str):
            return [self.prompt or ""]
        if self.prompt and isinstance(self.prompt[0], int):
            return [list(self.prompt)]
        return list(self.prompt)  # type: ignore[arg-type]


class Part(BaseModel):
    """A piece of a message's content."""

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class ChatBody(Writing):
    """POST /v1/chat/completions."""

    refused: ClassVar[dict[str, str]] = {
        **REFUSED,
        "prompt": "/v1/completions has it",
        "echo": "/v1/completions has it",
    }

    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class InputMessage(ChatMessage):
    """A message of the input of a response."""

    content: str | list[Part]


class TextFormat(BaseModel):
    """The form of a response: what chat has in `response_format`, one level higher."""

    model_config = ConfigDict(protected_namespaces=())

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | bool | None = Field(None, alias="schema")


class TextWish(BaseModel):
    """How a response shall be written."""

    format: TextFormat | None = None


class ResponseBody(Body):
    """POST /v1/responses."""

    refused: ClassVar[dict[str, str]] = {**REFUSED, **BESIDES}

    text: TextWish | None = None
    include: list[str] | None = None

    input: str | Annotated[list[InputMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool | None = None


class TokenizeBody(Body):
    """POST /tokenize."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize."""

    tokens: list[TokenId]


class InspectBody(Body):
    """POST /inspect."""

    prompt: str | None = None
    token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    position: int | None = Field(None, ge=0)
    top: int | None = Field(None, ge=1, le=MOST_LIKELIEST)
    attention: bool | None = None
