"""Continue a text: the model's ids become text while they come.

Three layers, each usable alone: ids.py (ids), continuation.py (pieces of whole characters), `generate` here (a string).
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mini_llm import log
from mini_llm.checkpoint import load_model, resolve_checkpoint, stored_dtype
from mini_llm.device import has_bfloat16, pick_device, pick_dtype
from mini_llm.errors import UserError
from mini_llm.inference.continuation import Continuation, StopStrings
from mini_llm.inference.ids import IdGenerator
from mini_llm.inference.memory import Memory
from mini_llm.inference.sampling import SamplingParams
from mini_llm.tokenizer.tokenizer import StreamDecoder, Tokenizer


class Generator:
    """A model and its tokenizer, ready to write.

    Args:
        checkpoint_path: a run folder, a checkpoint or any Llama folder.
        tokenizer_path: a tokenizer's folder; by default the checkpoint's own.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: float32, bfloat16, float16; auto is the type the weights are stored in, where the device computes in it.

    Raises:
        UserError: a file is missing or damaged, or the tokenizer does not fit the model.
        UsageError: an unknown device or dtype.
    """

    def __init__(
        self,
        checkpoint_path: Path | str,
        tokenizer_path: Path | str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.device = pick_device(device)
        self.folder = resolve_checkpoint(checkpoint_path)
        self.tokenizer = Tokenizer.load(tokenizer_path or self.folder)
        self.model = load_model(self.folder, device=self.device, dtype=self._pick_dtype(dtype))
        vocab_size = self.tokenizer.vocab_size
        if vocab_size > self.model.config.vocab_size:
            raise UserError(
                f"the tokenizer in {self.tokenizer.folder} has {vocab_size} tokens, "
                f"the model in {self.folder} knows {self.model.config.vocab_size}",
                "use the tokenizer that the model was trained with",
            )
        eos_ids = {*self.tokenizer.eos_ids, *_listed_eos_ids(self.folder)}
        self.ids = IdGenerator(self.model, vocab_size=vocab_size, eos_ids=eos_ids, source=self.folder)

    def generate(
        self, prompt: str, max_new_tokens: int = 50, temperature: float = 0.7, top_p: float = 0.9, **more: Any
    ) -> str:
        """Return the prompt and its continuation. `more` is what `stream` takes besides."""
        return prompt + "".join(self.stream(prompt, max_new_tokens, temperature, top_p, **more))

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 50,
        temperature: float = 0.7,
        top_p: float = 0.9,
        *,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> Continuation:
        """Return an iterator over the continuation, without the prompt; see `SamplingParams` for the numbers.

        It ends at a token that ends texts, before a stop string, after `max_new_tokens`, or where the context is full.
        The same seed gives the same text; None draws a new one.

        Raises:
            UserError: the prompt fills the model's context, or the weights are damaged.
            UsageError: a number out of range, or an empty stop string.
        """
        sampling = SamplingParams(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
        )
        prompt_ids = self.encode_prompt(prompt)
        return self.continue_ids(prompt_ids, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, seed=seed)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids of a prompt, after those that the tokenizer puts first. An empty prompt becomes BOS."""
        ids = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(prompt)]
        if ids:
            return ids
        # GPT-2's tokenizer and its kin have one token for both ends of a text.
        start = self.tokenizer.bos_id if self.tokenizer.bos_id is not None else self.tokenizer.eos_id
        if start is None:
            raise UserError("the prompt is empty, and this tokenizer has no token to start from", "give a prompt")
        return [start]

    def continue_ids(
        self,
        prompt_ids: list[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        memory: Memory | None = None,
    ) -> Continuation:
        """Return an iterator over the text that follows `prompt_ids`; see `stream`, and `IdGenerator` for `memory`."""
        stops = StopStrings(stop)
        new_ids = self.ids.stream(
            prompt_ids, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, memory=memory
        )
        return self._decode(prompt_ids, new_ids, stops)

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        sampling: SamplingParams,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> list[str]:
        """Return each prompt with its continuation, all computed together. A text is cut at stop strings afterwards."""
        prompt_ids = [self.encode_prompt(prompt) for prompt in prompts]
        rows = self.ids.batch(prompt_ids, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
        return [
            prompt + "".join(self._decode(ids, iter(row), StopStrings(stop)))
            for prompt, ids, row in zip(prompts, prompt_ids, rows, strict=True)
        ]

    def print_continuation(
        self, prompt: str, *, max_new_tokens: int, sampling: SamplingParams, stop: Sequence[str], seed: int | None
    ) -> None:
        """Write the prompt and its continuation to stdout as it grows, then what it took to stderr."""
        prompt_ids = self.encode_prompt(prompt)
        text = self.continue_ids(prompt_ids, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, seed=seed)
        started = time.perf_counter()
        try:
            for piece in itertools.chain([prompt], text):
                print(piece, end="", flush=True)
        finally:  # after Ctrl-C too, the next prompt of the shell has a line of its own
            print(flush=True)
        speed = text.n_tokens / (time.perf_counter() - started)
        log.note(f"{text.n_tokens} tokens, {speed:.1f} tokens/s ({text.finish_reason})")

    def _decode(self, prompt_ids: list[int], new_ids: Iterator[int], stops: StopStrings) -> Continuation:
        decoder = StreamDecoder(self.tokenizer)
        for token_id in prompt_ids:  # some tokenizers drop the space of the first token that they decode
            decoder.push(token_id)
        return Continuation(new_ids, decoder, stops, self.ids.eos_ids)

    def _pick_dtype(self, name: str) -> torch.dtype:
        if name != "auto":
            return pick_dtype(name, self.device)
        stored = stored_dtype(self.folder)
        if stored == torch.bfloat16 and not has_bfloat16(self.device):
            return torch.float32
        return torch.float32 if self.device.type == "cpu" and stored == torch.float16 else stored


def _listed_eos_ids(folder: Path) -> list[int]:
    """Return the eos ids of generation_config.json: a chat model ends with more than the one its tokenizer names."""
    path = folder / "generation_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError):
        raise UserError(f"{path} is damaged: it holds no JSON object", "delete it, or use another checkpoint") from None
    return [i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int)]
