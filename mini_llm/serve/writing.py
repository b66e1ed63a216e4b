"""POST /v1/completions and /v1/chat/completions: texts are asked for, and sent whole or as they come.

One driver serves both; what differs is a small class for each shape.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from mini_llm.inference.engine.scores import Logprob
from mini_llm.serve import asking
from mini_llm.serve.bridge import Text, Token
from mini_llm.serve.catalog import Catalog, Served
from mini_llm.serve.problems import ApiError, not_done
from mini_llm.serve.shapes import (
    TokenNames,
    chat_logprobs,
    event,
    finish_of,
    inspection,
    legacy_logprobs,
    new_id,
    now,
    usage_of,
)
from mini_llm.serve.streams import EventStream, merged, until_gone
from mini_llm.serve.wire import ChatBody, CompletionBody, Writing
from mini_llm.tokenizer.tokenizer import StreamDecoder


class ChatShape:
    """The answers of /v1/chat/completions."""

    kind, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, body: ChatBody, served: Served) -> None:
        self.body = body
        self.names = TokenNames(served, bool(body.return_tokens_as_token_ids))

    def first(self, text: Text) -> list[dict[str, Any]]:
        """Return what a stream begins with."""
        return [{"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]

    def part(self, text: Text, tokens: Sequence[Token], piece: str) -> dict[str, Any]:
        """Return a piece of a stream."""
        logprobs = chat_logprobs(self.names, tokens) if self.body.logprobs else None
        return {"delta": {"content": piece}, "logprobs": logprobs, "finish_reason": None}

    def last(self, text: Text) -> dict[str, Any]:
        """Return the end of a stream."""
        return {"delta": {}, "logprobs": None, **finish_of(text.finish_reason)}

    def choice(self, text: Text, tokens: Sequence[Token], piece: str) -> dict[str, Any]:
        """Return a whole answer."""
        logprobs = chat_logprobs(self.names, tokens) if self.body.logprobs else None
        message = {"role": "assistant", "content": piece, "refusal": None}
        return {"message": message, "logprobs": logprobs, **finish_of(text.finish_reason)}


class CompletionShape:
    """The answers of /v1/completions."""

    kind, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, body: CompletionBody, served: Served, prompts: list[str | list[int]]) -> None:
        self.body, self.served = body, served
        self.names = TokenNames(served, bool(body.return_tokens_as_token_ids))
        tokenizer = served.generator.tokenizer
        self.echoed = [p if isinstance(p, str) else tokenizer.decode(p) for p in prompts] if body.echo else []

    def _prompt(self, text: Text) -> str:
        """Return the prompt's text; nothing without `echo`."""
        return self.echoed[text.number // (self.body.n or 1)] if self.body.echo else ""

    def _prompt_tokens(self, text: Text) -> tuple[list[Logprob | int], list[int]]:
        """Return the entries and places of the prompt's tokens: how many whole characters come before each."""
        places, n, decoder = [], 0, StreamDecoder(self.served.generator.tokenizer)
        for token_id in text.request.prompt_ids:
            places.append(n)
            n += len(decoder.push(token_id))
        return [text.request.prompt_ids[0], *text.handle.prompt_logprobs], places

    def _logprobs(self, text: Text, tokens: Sequence[Token], *, echo: bool) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        entries, offsets = self._prompt_tokens(text) if echo else ([], [])
        start = len(self._prompt(text))
        written = [token.logprob for token in tokens if token.logprob is not None]
        places = offsets + [start + token.offset for token in tokens]
        return legacy_logprobs(self.names, [*entries, *written], places)

    def first(self, text: Text) -> list[dict[str, Any]]:
        """Return what a stream begins with: the prompt, where it is echoed without log-probabilities."""
        if not self.body.echo or self.body.logprobs is not None:
            return []
        return [{"text": self._prompt(text), "logprobs": None, "finish_reason": None}]

    def part(self, text: Text, tokens: Sequence[Token], piece: str) -> dict[str, Any]:
        """Return a piece of a stream; the first one brings a prompt with its log-probabilities."""
        echo = bool(self.body.echo) and self.body.logprobs is not None and not text.sent
        head = self._prompt(text) if echo else ""
        return {"text": head + piece, "logprobs": self._logprobs(text, tokens, echo=echo), "finish_reason": None}

    def last(self, text: Text) -> dict[str, Any]:
        """Return the end of a stream."""
        return {"text": "", "logprobs": None, **finish_of(text.finish_reason)}

    def choice(self, text: Text, tokens: Sequence[Token], piece: str) -> dict[str, Any]:
        """Return a whole answer."""
        logprobs = self._logprobs(text, tokens, echo=bool(self.body.echo))
        return {"text": self._prompt(text) + piece, "logprobs": logprobs, **finish_of(text.finish_reason)}


Shape = ChatShape | CompletionShape


async def chat_completions(catalog: Catalog, body: ChatBody, http: HttpRequest) -> Response:
    """Answer a conversation."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    served = await catalog.get(body.model)
    ids = await asking.encode_messages(
        served, body.messages, opens=body.add_generation_prompt, continues=body.continue_final_message
    )
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    requests = await asking.requests_of(served, body, [ids], most=body.most, logprobs=logprobs, param="messages")
    texts = served.bridge.submit(requests, body.stops)
    return await _answer(catalog, served, body, ChatShape(body, served), texts, http)


async def completions(catalog: Catalog, body: CompletionBody, http: HttpRequest) -> Response:
    """Go on from one prompt or several."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise not_done("best_of", "only the value of n")
    if body.most == 0 and not body.echo:
        raise ApiError(400, "max_tokens: 0 needs echo: true", param="max_tokens")
    served = await catalog.get(body.model)
    prompts = body.prompts
    ids = [prompt if isinstance(prompt, list) else await asking.encode(served, prompt) for prompt in prompts]
    requests = await asking.requests_of(
        served, body, ids, most=body.most, logprobs=body.logprobs, echo=bool(body.echo), param="prompt"
    )
    texts = served.bridge.submit(requests, body.stops)
    return await _answer(catalog, served, body, CompletionShape(body, served, prompts), texts, http)


async def _answer(
    catalog: Catalog, served: Served, body: Writing, shape: Shape, texts: list[Text], http: HttpRequest
) -> Response:
    for number, text in enumerate(texts):
        text.number = number
    entry_id = body.model or catalog.name
    head = {"id": new_id(shape.kind), "created": now(), "model": entry_id, "system_fingerprint": None}
    http.state.texts = texts  # for the log
    if body.stream:
        return EventStream(_stream(served, body, shape, texts, head), texts)
    choices = await until_gone(http.receive, texts, asyncio.gather(*(_whole(shape, body, text) for text in texts)))
    return JSONResponse({**head, "object": shape.whole, "choices": choices, "usage": usage_of(texts)})


async def _whole(shape: Shape, body: Writing, text: Text) -> dict[str, Any]:
    tokens: list[Token] = []
    while new := await text.tokens():
        tokens += new
    piece = "".join(token.piece for token in tokens) + text.tail
    return {"index": text.number, **shape.choice(text, tokens, piece), **_extras(shape, body, text, tokens, whole=True)}


def _extras(shape: Shape, body: Writing, text: Text, tokens: Sequence[Token], *, whole: bool) -> dict[str, Any]:
    """Return the fields that OpenAI does not have."""
    extras: dict[str, Any] = {}
    if body.return_token_ids:
        extras["token_ids"] = [token.token_id for token in tokens]
        if whole or not text.sent:
            extras["prompt_token_ids"] = list(text.request.prompt_ids)
    if body.inspect:
        extras["inspect"] = inspection(shape.names, tokens)
    return extras


async def _stream(
    served: Served, body: Writing, shape: Shape, texts: list[Text], head: dict[str, Any]
) -> AsyncIterator[bytes]:
    settings, with_usage = served.bridge.settings, bool(body.stream_options and body.stream_options.include_usage)
    head = {**head, "object": shape.chunk}

    def chunk(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        return event({**head, "choices": choices, **({"usage": usage} if with_usage else {})})

    for one in texts:
        for part in shape.first(one):
            yield chunk([{"index": one.number, **part}])
    data = b""
    async for text, tokens in merged(texts, settings.heartbeat_seconds):
        if text is None:
            place = min((t.queue_place for t in texts if t.finish_reason is None), default=0)
            yield f": queued {place}\n\n".encode()
            continue
        piece = "".join(token.piece for token in tokens) + (text.tail if text.finish_reason else "")
        if tokens or piece or not (text.sent or text.request.max_new_tokens):
            part = {**shape.part(text, tokens, piece), **_extras(shape, body, text, tokens, whole=False)}
            text.sent = True
            data += chunk([{"index": text.number, **part}])
        if text.finish_reason is not None:
            data += chunk([{"index": text.number, **shape.last(text)}])
        if any(t.finish_reason is None for t in texts):  # else it goes out with the end: a chunk is dear, an event not
            yield data
            data = b""
    if with_usage:
        data += chunk([], usage_of(texts))
    yield data + b"data: [DONE]\n\n"
