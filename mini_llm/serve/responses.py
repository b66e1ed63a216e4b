"""POST /v1/responses: the newer shape of a conversation, as far as a plain text model fills it.

Nine kinds of events, each with a running number: the AI SDK and others ask here by default.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from mini_llm.serve import asking
from mini_llm.serve.bridge import Text, Token
from mini_llm.serve.catalog import Catalog
from mini_llm.serve.problems import ApiError, not_done
from mini_llm.serve.shapes import event, new_id, now, usage_of
from mini_llm.serve.streams import EventStream, merged, until_gone
from mini_llm.serve.wire import ChatMessage, ResponseBody, Writing


async def responses(catalog: Catalog, body: ResponseBody, http: HttpRequest) -> Response:
    """Answer a conversation."""
    served = await catalog.get(body.model)
    system = [ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    said = [ChatMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    ids = await asking.encode_messages(served, [*system, *said])
    if "message.output_text.logprobs" in (body.include or ()):
        raise not_done("include", "/v1/chat/completions has logprobs")
    writing = Writing.model_validate(
        {"temperature": body.temperature, "top_p": body.top_p, "response_format": _format(body)}
    )
    requests = await asking.requests_of(
        served, writing, [ids], most=body.max_output_tokens, logprobs=None, param="input"
    )
    [text] = texts = served.bridge.submit(requests, [])
    http.state.texts = texts
    answer = Answer(text, body, body.model or catalog.name)
    if body.stream:
        return EventStream(answer.events(served.bridge.settings.heartbeat_seconds), texts)
    return JSONResponse(await until_gone(http.receive, texts, answer.whole()))


def _format(body: ResponseBody) -> dict[str, Any] | None:
    """Return what chat calls `response_format`."""
    wish = body.text.format if body.text else None
    if wish is None:
        return None
    return {"type": wish.type, "json_schema": {"schema": wish.json_schema}}


class Answer:
    """One response as it grows."""

    def __init__(self, text: Text, body: ResponseBody, model: str) -> None:
        self.text, self.body, self.model = text, body, model
        self.id, self.item_id, self.created = new_id("resp"), new_id("msg"), now()
        self.said = ""

    def item(self, status: str) -> dict[str, Any]:
        """Return the message."""
        content = [self.part()] if status != "in_progress" else []
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def part(self) -> dict[str, Any]:
        """Return the message's text."""
        return {"type": "output_text", "text": self.said, "annotations": [], "logprobs": []}

    def response(self) -> dict[str, Any]:
        """Return the response as it is now."""
        reason = self.text.finish_reason
        cut_off = reason in ("length", "context")
        status = "in_progress" if reason is None else "incomplete" if cut_off else "completed"
        usage = None
        if reason is not None:
            counted = usage_of([self.text])
            cached = counted["prompt_tokens_details"]["cached_tokens"]
            usage = {
                "input_tokens": counted["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counted["total_tokens"],
            }
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "model": self.model,
            "output": [] if reason is None else [self.item(status)], "parallel_tool_calls": False,
            "tool_choice": "none", "tools": [], "error": None, "instructions": self.body.instructions, "metadata": {},
            "incomplete_details": {"reason": "max_output_tokens"} if cut_off else None, "store": False,
            "temperature": self.body.temperature, "top_p": self.body.top_p, "usage": usage,
            "max_output_tokens": self.body.max_output_tokens, "previous_response_id": None,
        }  # fmt: skip

    async def whole(self) -> dict[str, Any]:
        """Return the response when all of it is there."""
        while tokens := await self.text.tokens():
            self._hear(tokens)
        self.said += self.text.tail
        return self.response()

    def _hear(self, tokens: list[Token]) -> str:
        piece = "".join(token.piece for token in tokens)
        self.said += piece
        return piece

    async def events(self, heartbeat: float) -> AsyncIterator[bytes]:
        """Yield the response as events."""
        number = 0

        def say(kind: str, **fields: Any) -> bytes:
            nonlocal number
            data = event({"type": f"response.{kind}", "sequence_number": number, **fields}, f"response.{kind}")
            number += 1
            return data

        place = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        yield say("created", response=self.response())
        yield say("in_progress", response=self.response())
        yield say("output_item.added", output_index=0, item=self.item("in_progress"))
        yield say("content_part.added", **place, part={**self.part(), "text": ""})
        try:
            async for text, tokens in merged([self.text], heartbeat):
                if text is None:
                    yield f": queued {self.text.queue_place}\n\n".encode()
                elif tokens and (piece := self._hear(tokens)):
                    yield say("output_text.delta", **place, delta=piece, logprobs=[])
        except ApiError as problem:
            told = problem.body()["error"]
            yield say("failed", response={**self.response(), "status": "failed", "error": {
                "code": "server_error", "message": told["message"]}})  # fmt: skip
            return
        if self.text.tail:
            self.said += self.text.tail
            yield say("output_text.delta", **place, delta=self.text.tail, logprobs=[])
        response = self.response()
        yield say("output_text.done", **place, text=self.said, logprobs=[])
        yield say("content_part.done", **place, part=self.part())
        yield say("output_item.done", output_index=0, item=self.item(response["status"]))
        yield say("completed" if response["status"] == "completed" else "incomplete", response=response)
