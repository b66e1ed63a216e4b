"""What clients get back: tokens, log-probabilities and usage in OpenAI's shapes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any

from mini_llm.inference.engine.draw import Candidate
from mini_llm.inference.engine.request import FinishReason
from mini_llm.inference.engine.scores import Logprob
from mini_llm.serve.bridge import Text, Token
from mini_llm.serve.catalog import Served

LOWEST = -9999.0  # JSON has no infinity
FINISH = {"stop": "stop", "length": "length", "context": "length"}


def new_id(kind: str) -> str:
    """Return an id for an answer: a name and no secret, so that the system need not be asked for chance."""
    return f"{kind}-{random.getrandbits(96):024x}"


def now() -> int:
    """Return the time in seconds, as `created` wants it."""
    return int(time.time())


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """Return one server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class TokenNames:
    """A model's tokens as text: bytes that are no character of their own are written out, so that no two look alike."""

    def __init__(self, served: Served, as_ids: bool = False) -> None:
        self._tokenizer, self._as_ids = served.generator.tokenizer, as_ids

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of a token: none of special ones."""
        return self._tokenizer.rules.bytes_of(token_id)

    def name(self, token_id: int) -> str:
        """Return a token's text, or its name where it has none."""
        if self._as_ids:
            return f"token_id:{token_id}"
        data = self.bytes_of(token_id)
        if not data:
            return self._tokenizer.name_of(token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        """Return a token in the shape of chat log-probabilities."""
        return {
            "token": self.name(token_id), "logprob": max(logprob, LOWEST), "bytes": list(self.bytes_of(token_id))
        }  # fmt: skip


def chat_logprobs(names: TokenNames, tokens: Iterable[Token]) -> dict[str, Any]:
    """Return the log-probabilities of a chat answer."""
    found = [token.logprob for token in tokens if token.logprob is not None]
    content = [
        {
            **names.entry(entry.token_id, entry.logprob),
            "top_logprobs": [names.entry(*likely) for likely in entry.likeliest],
        }
        for entry in found
    ]
    return {"content": content, "refusal": None}


def legacy_logprobs(names: TokenNames, entries: Sequence[Logprob | int], offsets: Sequence[int]) -> dict[str, Any]:
    """Return the log-probabilities of a completion; a bare id is a token that nothing came before."""
    tokens: list[str] = []
    logprobs: list[float | None] = []
    likeliest: list[dict[str, float] | None] = []
    for entry in entries:
        if isinstance(entry, int):
            tokens.append(names.name(entry))
            logprobs.append(None)
            likeliest.append(None)
            continue
        tokens.append(names.name(entry.token_id))
        logprobs.append(max(entry.logprob, LOWEST))
        best = {names.name(token_id): max(logprob, LOWEST) for token_id, logprob in entry.likeliest}
        likeliest.append({**best, names.name(entry.token_id): max(entry.logprob, LOWEST)})
    return {
        "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": likeliest, "text_offset": list(offsets)
    }  # fmt: skip


def inspection(names: TokenNames, tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """Return how each token was drawn; see the README for the fields."""

    def candidate(found: Candidate) -> dict[str, Any]:
        return {
            "token_id": found.token_id, **names.entry(found.token_id, found.logprob),
            "p_sampled": found.p_sampled, "kept": found.p_sampled > 0, "start": found.start,
        }  # fmt: skip

    return [
        {
            **candidate(token.drawn.chosen), "rank": token.drawn.rank, "entropy": token.drawn.entropy,
            "dart": token.drawn.dart, "n_kept": token.drawn.n_kept,
            "top": [candidate(found) for found in token.drawn.candidates],
        }
        for token in tokens
        if token.drawn is not None
    ]  # fmt: skip


def finish_of(reason: FinishReason | None) -> dict[str, Any]:
    """Return a choice's `finish_reason`, with `stop_reason` where the context is full."""
    found: dict[str, Any] = {"finish_reason": FINISH.get(reason or "", reason)}
    return {**found, "stop_reason": "context"} if reason == "context" else found


def usage_of(texts: Sequence[Text]) -> dict[str, Any]:
    """Return what texts took; the choices of one prompt count its tokens once."""
    prompts = {id(text.request.prompt_ids): text for text in texts}
    n_prompt = sum(len(text.request.prompt_ids) for text in prompts.values())
    n_written = sum(text.n_tokens for text in texts)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_written,
        "total_tokens": n_prompt + n_written,
        "prompt_tokens_details": {"cached_tokens": sum(text.handle.n_reused for text in prompts.values())},
    }
