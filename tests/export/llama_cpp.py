"""llama.cpp itself, in this process: it reads a GGUF file, cuts text into ids, writes greedily and tells its scores."""

import json
import math
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NO_WHEEL = "xllamacpp, llama.cpp as a wheel, is not installed: there is none for this platform"


class LlamaCpp:
    """A loaded file. Cache and weights are in float32 where the file's are."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ids(self, text: str, *, bos: bool = False, parse_special: bool = False) -> list[int]:
        words = {"content": text, "add_special": bos, "parse_special": parse_special}
        return self._post("/tokenize", words)["tokens"]

    def text(self, ids: Sequence[int]) -> str:
        return self._post("/detokenize", {"tokens": list(ids)})["content"]

    def greedy(self, prompt: Sequence[int], n: int) -> list[int]:
        words = {"temperature": 0, "top_k": 1, "ignore_eos": True, "return_tokens": True, "cache_prompt": False}
        return self._post("/completion", {"prompt": list(prompt), "n_predict": n, **words})["tokens"]

    def conversation(self, messages: list[dict[str, str]]) -> str:
        return self._post("/apply-template", {"messages": messages})["prompt"]

    def loss(self, ids: Sequence[int], n_vocab: int) -> float:
        """Return the mean surprise, in nats, of each of `ids` but the first."""
        total, letter = 0.0, self.ids("a")[0]
        for n in range(1, len(ids)):
            # The token that is written must be whole text, or nothing is told: the scores are those before the bias.
            words = {"prompt": list(ids[:n]), "n_predict": 1, "n_probs": n_vocab, "logit_bias": [[letter, 1e4]]}
            found = self._post("/completion", {**words, "cache_prompt": False})["completion_probabilities"][0]
            total -= next(entry["logprob"] for entry in found["top_logprobs"] if entry["id"] == ids[n])
        assert math.isfinite(total)
        return total / (len(ids) - 1)

    def _post(self, path: str, words: dict[str, Any]) -> Any:
        data = json.dumps(words).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@contextmanager
def open_gguf(path: Path, n_ctx: int = 128) -> Iterator[LlamaCpp]:
    """Load a file; the test is skipped where llama.cpp has no wheel."""
    xllamacpp = pytest.importorskip("xllamacpp", reason=NO_WHEEL)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), n_ctx, 1
    params.cpuparams.n_threads, params.warmup, params.port = 1, False, 0
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    try:
        yield LlamaCpp(server.listening_address)
    finally:
        del server
