"""What lm-eval 0.4.13 sends a server as `local-completions`, and how it reads the answers, without its 272 MB.

`test_equals_lm_eval.py` compares these requests with its own where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import httpx

Encode = Callable[[str], list[int]]
SEED = 1234


def local_tokenizer(folder: Path, *, add_bos_token: bool) -> Encode:
    """`tokenizer=FOLDER,tokenizer_backend=huggingface,add_bos_token=...`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return lambda text: list(tokenizer(text, add_special_tokens=add_bos_token).input_ids)


def remote_tokenizer(address: str) -> Encode:
    """`tokenizer_backend=remote`, which `auto` becomes: it has no way to ask for BOS."""

    def encode(text: str) -> list[int]:
        answer = httpx.post(f"{address}/tokenize", json={"prompt": text, "add_special_tokens": False})
        return list(answer.raise_for_status().json()["tokens"])

    return encode


class LmEvalClient:
    """The requests of one evaluation, which are kept in `sent`."""

    def __init__(self, address: str, model: str, encode: Encode) -> None:
        self.address, self.model, self.encode = address, model, encode
        self.sent: list[dict[str, Any]] = []
        bos = httpx.get(f"{address}/tokenizer_info").json()["bos_token"]
        self.first_id = remote_tokenizer(address)(bos)[0]

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """White space moves to the continuation, and the whole is cut where the context's ids end."""
        if not context:
            ids = self.encode(continuation)
            return [self.first_id], ids[1:] if ids[0] == self.first_id else ids
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        before = self.encode(kept)
        return before, self.encode(kept + continuation)[len(before) :]

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Score continuations, one request each."""
        found = []
        for context, continuation in requests:
            before, after = self.pair(context, continuation)
            answer = self._ask(prompt=[before + after], max_tokens=1, logprobs=1, echo=True)
            (choice,) = sorted(answer["choices"], key=itemgetter("index"))
            own = slice(len(before), -1)  # the last entry is the one new token's
            logprobs, best = choice["logprobs"]["token_logprobs"][own], choice["logprobs"]["top_logprobs"][own]
            greedy = all(p == max(top.values()) for p, top in zip(logprobs, best, strict=True))  # as equal floats
            found.append((sum(logprobs), greedy))
        return found

    def generate_until(self, contexts: Sequence[str], stop: list[str], max_tokens: int) -> list[str]:
        """Let the model write on, greedily."""
        asked = [self._ask(prompt=[self.encode(one)], max_tokens=max_tokens, stop=stop) for one in contexts]
        return [answer["choices"][0]["text"] for answer in asked]

    def _ask(self, **more: Any) -> dict[str, Any]:
        body = {"model": self.model, "temperature": 0, "seed": SEED, **more}
        self.sent.append(body)
        answer = httpx.post(f"{self.address}/v1/completions", json=body, timeout=60)
        return dict(answer.raise_for_status().json())
