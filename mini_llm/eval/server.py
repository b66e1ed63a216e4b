"""A server as the model: any that gives the log-probabilities of a prompt (`echo` with `logprobs`), as ours does.

POST /tokenize (vLLM's shape) makes the ids, unless a tokenizer folder is given; POST /v1/completions scores and writes.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mini_llm.errors import UserError
from mini_llm.eval.language_model import first_id_of, room_beside
from mini_llm.eval.scorer import Score
from mini_llm.eval.trees import Pair
from mini_llm.inference.remote import BROKEN, KEYS, NO_FORM, body_of, key_of, open_here
from mini_llm.tokenizer.tokenizer import Tokenizer

SECONDS = 300  # for one answer
AT_ONCE = 8  # requests
MOST_BYTES = 2**26  # of an answer: a server gone wrong must not fill the memory
Ask = Callable[[str, dict[str, Any] | None], Any]


class ServerModel:
    """A model behind http. The key, if the server wants one, is in MINI_LLM_API_KEY."""

    def __init__(self, url: str, tokenizer: Path | None = None) -> None:
        """Ask the server for its model.

        Raises:
            UserError: no server there, or it cannot tell its tokens.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        self.name = url
        listed = self._ask("/v1/models").get("data")
        if not (isinstance(listed, list) and listed and isinstance(listed[0], dict) and "id" in listed[0]):
            raise UserError(f"{self.url}/v1/models lists no model")
        self.model_id, length = str(listed[0]["id"]), listed[0].get("max_model_len")
        self._local = Tokenizer.load(tokenizer) if tokenizer else None
        if self._local:
            self.prefix_ids, self.first_id = self._local.prefix_ids, first_id_of(self._local)
        else:
            whole, plain = (self._tokenize("a", special=special) for special in (True, False))
            length = length or whole.get("max_model_len")
            n_prefix = len(whole["tokens"]) - len(plain["tokens"])
            self.prefix_ids = whole["tokens"][:n_prefix]
            if not self.prefix_ids:
                raise UserError(
                    f"{self.url} puts no token before a text, so that nothing foretells the first one",
                    "give its tokenizer's folder: --tokenizer DIR",
                )
            self.first_id = self.prefix_ids[0]
        if not isinstance(length, int) or length < 2:
            raise UserError(f"{self.url} does not tell its context (max_model_len in /v1/models)")
        self.max_length = length - 1  # one new token is always written, and takes a place

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, without special tokens."""
        if self._local:
            return self._local.encode_batch(texts)
        return self._map(lambda text: self._tokenize(text, special=False)["tokens"], texts)

    def score(self, pairs: Sequence[Pair], on_batch: Callable[[int], None] = lambda _n: None) -> list[Score]:
        """Return the score of each continuation after its context."""
        return self._map(self._score, pairs, on_batch)

    def write(self, contexts: Sequence[list[int]], stops: Sequence[list[str]], max_new_tokens: int) -> list[str]:
        """Return the likeliest continuation of each context, up to its first stop string."""
        room = room_beside(max_new_tokens, self.max_length + 1)

        def one(work: tuple[list[int], list[str]]) -> str:
            words = {"prompt": work[0][-room:], "stop": work[1] or None, "max_tokens": max_new_tokens, "temperature": 0}
            answer = self._ask("/v1/completions", {"model": self.model_id, **words})
            try:
                return str(answer["choices"][0]["text"])
            except NO_FORM:
                raise UserError(f"{self.url} gives no completion in OpenAI's form") from None

        return self._map(one, list(zip(contexts, stops, strict=True)))

    def _score(self, pair: Pair) -> Score:
        context, continuation = pair
        ids = (context + continuation)[-(self.max_length + 1) :]
        asked = {"model": self.model_id, "prompt": ids, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        answer = self._ask("/v1/completions", asked)
        try:
            found = answer["choices"][0]["logprobs"]
            logprobs, likeliest = found["token_logprobs"], found["top_logprobs"]
            own = range(len(ids) - min(len(continuation), len(ids) - 1), len(ids))
            total = sum(float(logprobs[i]) for i in own)
            greedy = all(logprobs[i] >= max(likeliest[i].values()) for i in own)
        except NO_FORM:
            raise UserError(
                f"{self.url} does not give the log-probabilities of a prompt (echo with logprobs)",
                "serve the model with mini-llm serve, or evaluate its folder",
            ) from None
        return Score(total, greedy)

    def _tokenize(self, text: str, *, special: bool) -> dict[str, Any]:
        words = {"model": self.model_id, "prompt": text, "add_special_tokens": special}
        answer = self._ask("/tokenize", words)
        tokens = answer.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise UserError(f"{self.url}/tokenize gives no tokens", "give the tokenizer's folder: --tokenizer DIR")
        return dict(answer)

    def _map(
        self, work: Callable[[Any], Any], things: Sequence[Any], done: Callable[[int], None] = lambda _n: None
    ) -> Any:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = []
            for result in pool.map(work, things):
                results.append(result)
                done(1)
            return results

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        key = key_of(KEYS[0])
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data=data, headers=headers)
            with open_here(request, SECONDS) as answer:
                found = json.loads(answer.read(MOST_BYTES))
        except urllib.error.HTTPError as problem:
            raise UserError(f"{self.url}{path} answers {problem.code}: {body_of(problem)}") from None
        except RecursionError:
            raise UserError(f"{self.url}{path} answers JSON that is nested too deeply") from None
        except BROKEN as problem:
            raise UserError(
                f"cannot ask {self.url}{path}: {problem}", "is the server running? mini-llm serve RUN"
            ) from None
        if not isinstance(found, dict):
            raise UserError(f"{self.url}{path} answers no JSON object")
        return found
