"""From a client's wishes to the engine's requests: settings, limits, seeds, and the prompt's ids."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

from mini_llm.errors import UsageError, UserError
from mini_llm.inference.engine.request import Request
from mini_llm.inference.sampling.darts import new_seed
from mini_llm.inference.sampling.history import check_ids
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.serve.catalog import Served
from mini_llm.serve.problems import ApiError
from mini_llm.serve.wire import ChatMessage, Writing
from mini_llm.tokenizer.chat import Message, NoChatTemplate, encode_chat

if TYPE_CHECKING:
    from mini_llm.serve.structured import SchemaGuide

LONG_TEXT = 20_000  # characters: encoded beside the event loop
BANNED = -100.0  # a bias from here down rules a token out


def sampling_of(body: Writing) -> SamplingParams:
    """Return the settings; OpenAI's defaults are temperature 1 and all tokens.

    Raises:
        ApiError: a bias of what is no token id.
    """
    biases: dict[int, float] = {}
    banned: list[int] = []
    for word, bias in (body.logit_bias or {}).items():
        if not (word.isascii() and word.isdigit() and len(word) < 10):
            raise ApiError(400, f"logit_bias: '{word[:20]}' is no token id", param="logit_bias")
        if bias <= BANNED:
            banned.append(int(word))
        else:
            biases[int(word)] = min(bias, -BANNED)
    try:
        return _sampling(body, biases, tuple(banned))
    except UsageError as problem:
        name = problem.message.partition("=")[0]
        raise ApiError(400, problem.message, param=name, code="invalid_value") from None


def _sampling(body: Writing, biases: dict[int, float], banned: tuple[int, ...]) -> SamplingParams:
    return SamplingParams(
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        top_k=max(0, body.top_k or 0),  # -1 is vLLM's word for all
        min_p=body.min_p or 0.0,
        typical_p=_or(body.typical_p, 1.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=biases,
        banned_ids=banned,
    )


async def requests_of(
    served: Served,
    body: Writing,
    prompts: list[list[int]],
    *,
    most: int | None,
    logprobs: int | None,
    echo: bool = False,
    param: str,
) -> list[Request]:
    """Return the requests for all choices: `n` for each prompt, the seed counted up.

    Raises:
        ApiError: a prompt does not fit the context, an id does not exist, too many texts at once.
    """
    n, capacity = body.n or 1, served.bridge.settings.capacity
    if n * len(prompts) > capacity:
        raise ApiError(400, f"{n * len(prompts)} texts in one request, and the server holds {capacity}", param="n")
    sampling, seed = sampling_of(body), body.seed if body.seed is not None else new_seed() >> 1
    try:
        check_ids(sampling, served.vocab_size)
    except UserError as problem:
        raise ApiError(400, problem.message, param="logit_bias") from None
    score = echo and logprobs is not None
    guide = await guide_of(served, body, "text.format" if param == "input" else "response_format")
    requests = []
    for number, ids in enumerate(prompts):
        room = served.context - len(ids)
        if room < 0 or (room == 0 and not score):
            least = len(ids) - served.context + (not score)
            raise ApiError(
                400, f"the prompt has {len(ids)} tokens and the context {served.context}: leave out {least} or more",
                param=param, code="context_length_exceeded",
            )  # fmt: skip
        check_prompt(served, ids, param)
        for choice in range(n):
            requests.append(
                Request(
                    prompt_ids=ids,
                    max_new_tokens=max(1, room) if most is None else most,
                    sampling=sampling,
                    seed=seed + choice + number * n,
                    logprobs=logprobs,
                    inspect=10 if body.inspect else None,
                    score_from=1 if score or most == 0 else None,
                    ignore_eos=bool(body.ignore_eos),
                    guide=guide and guide.copy(),
                )
            )
    return requests


def check_prompt(served: Served, ids: list[int], param: str) -> None:
    """Refuse ids that do not exist before anything is queued.

    Raises:
        ApiError: one does not.
    """
    if max(ids) >= served.vocab_size:
        raise ApiError(400, f"token ids go from 0 to {served.vocab_size - 1}", param=param)


async def guide_of(served: Served, body: Writing, field: str) -> SchemaGuide | None:
    """Return what holds an answer to its `response_format`, or None. A large schema takes seconds: beside the loop.

    Raises:
        ApiError: the schema is not understood, or the library is not installed.
    """
    wish = body.response_format
    if wish is None or wish.type == "text":
        return None
    try:
        from mini_llm.serve.structured import SchemaGuide
    except ImportError:
        raise ApiError(
            400, "response_format needs the server's extra 'structured' (llguidance), which is not installed",
            param=field, code="unsupported_parameter",
        ) from None  # fmt: skip
    schema: object = {"type": "object"}
    if wish.type == "json_schema":
        schema = wish.json_schema.json_schema if wish.json_schema else None
        if schema is None:
            raise ApiError(400, "json_schema.schema is missing", param=f"{field}.json_schema.schema")
    try:
        return await asyncio.to_thread(lambda: SchemaGuide(served.guide_tokenizer, schema, served.vocab_size))
    except ValueError as problem:
        raise ApiError(400, str(problem), param=field) from None


async def encode(served: Served, text: str) -> list[int]:
    """Return a prompt's ids.

    Raises:
        ApiError: it is empty and the tokenizer has no token to start from.
    """
    return await _refusing(served, _encode(served, text), "prompt")


async def _encode(served: Served, text: str) -> list[int]:
    work = served.generator.encode_prompt
    return await asyncio.to_thread(work, text) if len(text) > LONG_TEXT else work(text)


async def encode_messages(
    served: Served, said: Sequence[ChatMessage], *, opens: bool | None = None, continues: bool | None = None
) -> list[int]:
    """Return the ids of a conversation that ends where the model shall speak.

    Args:
        opens: the client's `add_generation_prompt`; None: where the last message is not to be continued.
        continues: its `continue_final_message`.

    Raises:
        ApiError: the tokenizer has no template, or the messages do not fit it.
    """
    messages = messages_of(said)
    if continues and opens:
        raise ApiError(
            400, "continue_final_message and add_generation_prompt exclude each other", param="add_generation_prompt"
        )
    if continues and messages[-1].role != "assistant":
        raise ApiError(400, "continue_final_message needs an assistant's message at the end", param="messages")

    def encode() -> list[int]:
        tokenizer = served.generator.tokenizer
        return encode_chat(tokenizer, messages, opens is not False, continue_final_message=bool(continues))

    return await _refusing(
        served, asyncio.to_thread(encode), "messages"
    )  # a template of others is rendered by a process


def messages_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the messages with plain contents; a developer speaks as the system.

    Raises:
        ApiError: a part of a content is no text.
    """
    plain = []
    for number, message in enumerate(messages):
        content = message.content or ""
        if not isinstance(content, str):
            for part in content:
                if part.type not in ("text", "input_text", "output_text"):
                    where = f"messages[{number}].content"
                    raise ApiError(400, f"{where}: the model knows text alone, not '{part.type[:40]}'", param=where)
            content = "".join(part.text or "" for part in content)
        plain.append(Message("system" if message.role == "developer" else message.role, content))
    return plain


async def _refusing(served: Served, ids: Awaitable[list[int]], param: str) -> list[int]:
    try:
        return await ids
    except NoChatTemplate:
        raise ApiError(
            400, "this model's tokenizer has no chat template: use /v1/completions", param=param,
            code="no_chat_template",
        ) from None  # fmt: skip
    except UserError as problem:  # where a folder is named, a client need not know it
        message = problem.message.replace(str(served.generator.tokenizer.folder), "the model's folder")
        raise ApiError(400, message, param=param) from None


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
