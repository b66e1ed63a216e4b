"""A conversation with a model elsewhere: any server that speaks OpenAI's API, by HTTP alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from mini_llm import log
from mini_llm.errors import UsageError, UserError
from mini_llm.inference.chat import Messages
from mini_llm.inference.sampling.params import SamplingParams, knobs
from mini_llm.tokenizer.chat import Message

SECONDS = 600  # of silence; a long prompt is read before the first word comes
MOST_BYTES = 1 << 20  # of one line, or of an error
KEYS = ("MINI_LLM_API_KEY", "OPENAI_API_KEY")
BROKEN = (OSError, ValueError, http.client.HTTPException)  # ValueError: of http.client, at a chunk without a size
NO_FORM = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # JSON, but not what was asked for
USUAL = ("temperature", "top_p", "presence_penalty", "frequency_penalty")  # what every server knows


class RemoteAnswer(Iterator[str]):
    """The pieces of an answer as they come; then ask `finish_reason`."""

    def __init__(self, response: Any) -> None:
        self.finish_reason: str | None = None
        self.n_tokens = 0  # as the server counts them at the end; until then pieces, which may hold several
        self._response = response

    def __next__(self) -> str:
        while line := self._line():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                break
            if piece := self._read(data):
                self.n_tokens += 1
                return piece
        self._response.close()
        if self.finish_reason is None:
            raise UserError("the server broke off its answer", "look at its messages, then /retry")
        raise StopIteration

    def cancel(self) -> None:
        """Hear no more of it: the server notices that the connection is closed."""
        self._response.close()

    def _line(self) -> str:
        try:
            found: bytes = b"" if self._response.closed else self._response.readline(MOST_BYTES)
        except BROKEN as problem:
            raise UserError(f"the connection broke: {problem}", "look whether the server is up, then /retry") from None
        return found.decode("utf-8", "replace")

    def _read(self, data: str) -> str:
        try:
            found = json.loads(data)
            if problem := found.get("error"):
                raise UserError(f"the server says: {_message(problem)}")
            if usage := found.get("usage"):
                self.n_tokens = int(usage["completion_tokens"])
            choice = (found.get("choices") or [{}])[0]
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            return str((choice.get("delta") or {}).get("content") or "")
        except NO_FORM:
            raise UserError(f"the server sends no answer in OpenAI's form: {data[:200]}") from None


class RemoteConversation(Messages):
    """As `Conversation`, with the model at `url`; `model` is its name there, by default the first that it lists.

    A key is taken from the environment, MINI_LLM_API_KEY or OPENAI_API_KEY, and sent to `url` alone.

    Raises:
        UsageError: `url` is no http address.
        UserError: nobody answers there, or not in OpenAI's form.
    """

    def __init__(self, url: str, model: str | None, system: str | None) -> None:
        if not url.lower().startswith(("http://", "https://")):
            raise UsageError(f"--url '{url}' must begin with http:// or https://, as in http://127.0.0.1:8000")
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.model = model or self._models()[0]
        self.start(system)

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int,
        seed: int | None,
        sampling: SamplingParams,
        stop: Sequence[str] = (),
        **_: Any,
    ) -> RemoteAnswer:
        """Return the answer as it grows; what is not the default of ours is asked for, too."""
        messages = [vars(message) for message in [*self.system, *self.turns, Message("user", question)]]
        wishes = {name: getattr(sampling, name) for name in USUAL}
        given = [(knob, getattr(sampling, knob.name)) for knob in knobs()]
        wishes |= {knob.name: value for knob, value in given if value != knob.default}
        wishes |= {"seed": seed + self.n_asked} if seed is not None else {}
        wishes |= {"stop": list(stop)} if stop else {}
        body = {"model": self.model, "messages": messages, "stream": True, "max_tokens": max_new_tokens, **wishes}
        body["stream_options"] = {"include_usage": True}
        answer = RemoteAnswer(self._open("chat/completions", body))
        self.turns.append(Message("user", question))
        self.n_asked += 1
        return answer

    def use(self, name: str) -> None:
        """Go on with another model of the server: by its name, or by the step of a checkpoint of this one.

        Raises:
            UsageError: it lists no such model.
            UserError: it lists none.
        """
        known = self._models()
        wanted = (name, f"{self.model.partition('@')[0]}@{name}")
        found = next((one for one in wanted if one in known), None)
        if found is None:
            raise UsageError(f"the server has no model '{name}'", f"it has: {', '.join(known[:20])}")
        self.model = found
        log.note(f"now talking with {found}")

    def _models(self) -> list[str]:
        """Return the names that the server lists, one at least."""
        with self._open("models") as response:
            try:
                names = [str(model["id"]) for model in json.loads(response.read(MOST_BYTES))["data"]]
                return [names[0], *names[1:]]
            except (*NO_FORM, *BROKEN):
                raise UserError(f"{self.url}/models lists no model", "name one: --model NAME") from None

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream" if body else "application/json"}
        if key := key_of(*KEYS):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(f"{self.url}/{path}", data, headers)
            return open_here(request, SECONDS)
        except urllib.error.HTTPError as problem:
            hint = f"set {KEYS[0]} to the server's key" if problem.code in (401, 403) else None
            raise UserError(f"{self.url} says {problem.code}: {body_of(problem)}", hint) from None
        except BROKEN as problem:
            why = getattr(problem, "reason", problem)
            raise UserError(f"nobody answers at {self.url}: {why}", "start one with: mini-llm serve RUN") from None


def key_of(*names: str) -> str | None:
    """Return the key in the first of these variables that is set.

    Raises:
        UserError: no header can hold it; it is not shown, as urllib would.
    """
    for name in names:
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise UserError(f"{name} is no key: it holds a line break, or letters beyond ASCII", "set it again")
            return key
    return None


def open_here(request: urllib.request.Request, seconds: float) -> Any:
    """Return the answer to a request, which may carry a key: nobody is followed elsewhere.

    Raises:
        OSError, ValueError, HTTPException: `BROKEN`, of which HTTPError is an answer that refuses or leads away.
    """
    return urllib.request.build_opener(_StayHere).open(request, timeout=seconds)


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere: the key would go along."""

    def redirect_request(self, *_: Any) -> None:
        return None


def body_of(problem: urllib.error.HTTPError) -> str:
    """Return what an answer that refuses says, of which at most 500 characters."""
    text = ""
    with contextlib.suppress(*BROKEN, *NO_FORM):
        text = problem.read(MOST_BYTES).decode("utf-8", "replace")
        return _message(json.loads(text).get("error", text))
    return text[:300] or str(problem.reason)


def _message(problem: Any) -> str:
    return str(problem.get("message", problem) if isinstance(problem, dict) else problem)[:500]
