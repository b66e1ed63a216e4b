"""Conversations as tokens: a marker for the speaker, what was said, a marker for the end.

`<s><|user|>Hello<|end|><|assistant|>` asks the model to answer. Nothing stands between markers and contents, so that
contents are kept to the letter. The markers are control tokens: text can name them but never become them. Other models
have other forms: their folder's template is rendered instead (template.py), with the same promise.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mini_llm.errors import UserError
from mini_llm.tokenizer.markers import CHAT_TEMPLATE, END_MARKER, ROLE_MARKERS
from mini_llm.tokenizer.template import USE_ANOTHER, ChatTemplate, read_template
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tokenizer.typed_text import PrivateCharacters, Rendered, encode_rendered, render_apart, take_answers

REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing, as in transformers
PROBE = "qzqz"  # a content that no template looks for


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `role` is system, user or assistant."""

    role: str
    content: str


class NoChatTemplate(UserError):
    """The tokenizer knows no conversations."""


AnyMessage = Message | Mapping[str, Any]


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[AnyMessage],
    add_generation_prompt: bool = True,
    *,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> list[int]:
    """Return the ids of a conversation, ending with the assistant's marker if it is the assistant's turn to speak.

    Args:
        tokenizer: of the model's folder, whose template is used.
        messages: `Message`s, or objects as OpenAI's API has them (role, content, tool_calls and more).
        add_generation_prompt: ask for an answer.
        continue_final_message: end within the last message, so that the model goes on with it.
        tools: JSON schemas of functions, for templates that know tools.
        options: what else a template knows, `enable_thinking` for instance.

    Raises:
        UserError: the model has no chat template; the template fails, or has no place for a system message or tools.
    """
    said = [plain_message(message) for message in messages]
    add_generation_prompt = add_generation_prompt and not continue_final_message
    template = foreign_template(tokenizer, tools=bool(tools))
    if template is None:
        if tools:
            raise UserError(f"the model of {tokenizer.folder} knows no tools", USE_ANOTHER)
        return own_ids(tokenizer, said, add_generation_prompt, continue_final_message)[0]
    more = {"add_generation_prompt": add_generation_prompt, **options}
    rendered = render_chat(tokenizer, template, said, tools, continue_final_message=continue_final_message, **more)
    return encode_rendered(tokenizer, rendered)[0]


def turn_ends(tokenizer: Tokenizer) -> list[int]:
    """Return the ids with which an assistant's turn ends, by the template: none, where it has no such token."""
    template = foreign_template(tokenizer)
    if template is None:
        end = tokenizer.special_id(END_MARKER)
        return [] if end is None else [end]
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
    text = render_chat(tokenizer, template, said).text
    after = text[text.find(PROBE) :]
    places = {after.find(name): i for name, i in tokenizer.special_tokens.items() if name in after}
    return [places[min(places)]] if PROBE in text and places else []


def foreign_template(tokenizer: Tokenizer, tools: bool = False) -> ChatTemplate | None:
    """Return the template of the tokenizer's folder, or None for ours, which needs no rendering.

    Raises:
        NoChatTemplate: there is neither.
    """
    template = read_template(tokenizer.folder, tokenizer.config, tools)
    names = [*ROLE_MARKERS.values(), END_MARKER]
    ours = template is None or template.source.strip() == CHAT_TEMPLATE.strip()
    if not ours:
        return template
    if any(name not in tokenizer.special_tokens for name in names):
        raise NoChatTemplate(
            f"the tokenizer in {tokenizer.folder} has no chat markers ({' '.join(names)}) and no chat template",
            "use a model that was tuned to chat, or one whose tokenizer was made by `mini-llm tokenizer train`",
        )
    return None


def own_ids(
    tokenizer: Tokenizer, said: Sequence[Mapping[str, Any]], add_generation_prompt: bool, unfinished: bool = False
) -> tuple[list[int], list[bool]]:
    """Return ids in our own form, and which of them the assistant wrote: its answers and the markers that end them."""
    marker = tokenizer.special_tokens
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    written = [False] * len(ids)
    for message in said:
        role, content = message["role"], message.get("content", "")
        if role not in ROLE_MARKERS:
            raise UserError(f"a role must be {', '.join(ROLE_MARKERS)}, not '{role}'")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        body = [*tokenizer.encode(content), marker[END_MARKER]]
        ids += [marker[ROLE_MARKERS[role]], *body]
        written += [False, *[role == "assistant"] * len(body)]
    if unfinished:
        if not said:
            raise UserError("there is no message to go on with")
        return ids[:-1], written[:-1]
    tail = [marker[ROLE_MARKERS["assistant"]]] if add_generation_prompt else []
    return [*ids, *tail], [*written, *[False] * len(tail)]


def plain_message(message: AnyMessage) -> dict[str, Any]:
    """Return a message as plain JSON values, without keys that are null.

    Raises:
        UserError: it has no role, or something in it is no JSON value.
    """
    given = {"role": message.role, "content": message.content} if isinstance(message, Message) else dict(message)
    plain = {key: _plain(value) for key, value in given.items() if value is not None}
    role, content = plain.get("role"), plain.get("content")
    if not isinstance(role, str) or not re.fullmatch(r"\w{1,40}", role):
        raise UserError(f"a message needs a role, one word such as user, not {role!r:.60}")
    parts = content if isinstance(content, list) else []
    if not isinstance(content, str | list | None) or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"the content of a message must be text, not {type(content).__name__}")
    reasoning = next((plain[name] for name in REASONING if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    raise UserError(f"a message holds {type(value).__name__}, which is no JSON value")


def render_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    said: list[dict[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    continue_final_message: bool = False,
    **options: Any,
) -> Rendered:
    """Return the conversation in the template's form, knowing what was typed."""
    now = time.time()  # one for all renderings of this conversation
    asked: dict[str, Any] = {"messages": said, "tools": None if tools is None else _plain(list(tools))}
    private = PrivateCharacters(asked, template.source, options)
    marks = (private.new(), private.new())
    tag = private.new()
    if continue_final_message:
        if not said or not isinstance(said[-1].get("content"), str):
            raise UserError("there is no text to go on with in the last message")
        asked["messages"] = [*said[:-1], {**said[-1], "content": f"{said[-1]['content']}{tag} "}]
    names: list[str] = []

    def render(values: dict[str, Any]) -> str:
        text, names[:] = template.render(**{**options, **values}, now=now, marks=marks)
        return text

    text, typed = render_apart(render, asked, list(tokenizer.special_tokens), private)
    if tools and "tools" not in names:
        raise UserError(f"the chat template in {template.folder} knows no tools", USE_ANOTHER)
    for place, message in enumerate(asked["messages"]):
        if message["role"] == "system" and message.get("content"):
            other = [*asked["messages"]]
            other[place] = {**message, "content": PROBE}
            if message["content"] != PROBE and render({**asked, "messages": other}) == render(asked):
                raise UserError(
                    f"the chat template in {template.folder} has no place for a system message",
                    "leave it out, or write it into the first question",
                )
    if continue_final_message:
        end = text.rfind(tag)
        if end < 0:
            raise UserError(f"the chat template in {template.folder} does not show the last message", USE_ANOTHER)
        text = text[:end] if text[end : end + 2] == f"{tag} " else text[:end].rstrip()
    return take_answers(text, typed, marks)
