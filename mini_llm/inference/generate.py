"""Continue a text: the model's ids become text while they come.

Three layers, each usable alone: engine.py (ids), continuation.py (pieces of whole characters), `generate` (a string).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mini_llm import log, output
from mini_llm.checkpoint import load_model, read_eos_ids, stored_dtype
from mini_llm.device import has_fast_bfloat16, pick_device, pick_dtype
from mini_llm.errors import UserError
from mini_llm.inference.backends.native import find_compiler
from mini_llm.inference.continuation import Continuation, StopStrings, decoder_after
from mini_llm.inference.engine.engine import Engine
from mini_llm.inference.engine.request import Overflow, Request
from mini_llm.inference.sampling.darts import new_seed
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.chat import Message, encode_chat, turn_ends
from mini_llm.tokenizer.tokenizer import Tokenizer


class Generator:
    """A model and its tokenizer, ready to write.

    Args:
        checkpoint_path: a run folder, a checkpoint or any Llama folder.
        tokenizer_path: a tokenizer's folder; by default the checkpoint's own.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: float32, bfloat16, float16, or int8 (8-bit weights with a scale for each output: for CPUs, which read
            half of bfloat16's bytes; elsewhere the rounded weights are kept in the stored type); auto is the type
            the weights are stored in, where the device computes in it.
        backend: auto, eager, compiled (CPU) or cuda-graphs; see backends/pick.py.
        max_slots: so many texts are computed at once.

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
        *,
        backend: str = "auto",
        max_slots: int = 32,
    ) -> None:
        self.device = pick_device(device)
        self.folder = resolve_checkpoint(checkpoint_path)
        self.tokenizer = Tokenizer.load(tokenizer_path or self.folder)
        self.model = load_model(self.folder, device=self.device, dtype=self._pick_dtype(dtype, backend))
        rows = self.model.config.vocab_size
        if self.tokenizer.text_vocab_size > rows:  # an added token, such as a <pad>, may lie beyond: no text needs it
            raise UserError(
                f"the tokenizer in {self.tokenizer.folder} has {self.tokenizer.text_vocab_size} tokens, "
                f"the model in {self.folder} knows {rows}",
                "use the tokenizer that the model was trained with",
            )
        vocab_size = min(self.tokenizer.vocab_size, rows)
        eos_ids = {i for i in (*self.tokenizer.eos_ids, *read_eos_ids(self.folder)) if i < rows}
        self.engine = Engine(
            self.model,
            vocab_size=vocab_size,
            eos_ids=eos_ids,
            source=self.folder,
            backend=backend,
            max_slots=max_slots,
            int8=dtype == "int8",
        )

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
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        context_overflow: Overflow = "stop",
        logprobs: int | None = None,
        **sampling: Any,
    ) -> Continuation:
        """Return an iterator over the continuation, without the prompt; `sampling`: more of `SamplingParams`.

        It ends at a token that ends texts, before a stop string, after `max_new_tokens`, or where the context is full
        (or it slides: see `Request`). The same seed gives the same text; None draws a new one.

        Raises:
            UserError: the prompt fills the model's context, or the weights are damaged.
            UsageError: a number out of range, or an empty stop string.
        """
        params = SamplingParams(temperature=temperature, top_p=top_p, **sampling)
        options = {"seed": seed, "context_overflow": context_overflow, "logprobs": logprobs}
        prompt_ids = self.encode_prompt(prompt)
        return self.continue_ids(prompt_ids, max_new_tokens=max_new_tokens, sampling=params, stop=stop, **options)

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
        self, prompt_ids: list[int], *, sampling: SamplingParams, stop: str | Sequence[str] = (), **request: Any
    ) -> Continuation:
        """Return an iterator over the text that follows `prompt_ids`; `request` is what `Request` takes besides."""
        stops, asked = StopStrings(stop), Request(prompt_ids=prompt_ids, sampling=sampling, **request)
        handle = self.engine.submit(asked)
        decoder = decoder_after(self.tokenizer, prompt_ids)
        return Continuation(handle, decoder, stops, () if asked.ignore_eos else self.engine.eos_ids)

    def generate_batch(self, prompts: Sequence[str], *, seed: int | None = None, **options: Any) -> list[str]:
        """Return each prompt with its continuation, computed together; `options` as of `continue_ids`.

        Prompt number n gets the seed `seed + n`, and with it the text that it would get alone.
        """
        first = new_seed() if seed is None else seed
        all_ids = [self.encode_prompt(prompt) for prompt in prompts]
        texts: list[Continuation] = []
        try:
            for n, ids in enumerate(all_ids):
                texts.append(self.continue_ids(ids, seed=first + n, **options))
            return [prompt + "".join(text) for prompt, text in zip(prompts, texts, strict=True)]
        finally:  # where one is refused or fails, nobody reads the others
            for text in texts:
                text.cancel()

    def print_continuation(self, prompt: str, **options: Any) -> None:
        """Write the prompt and its continuation to stdout as it grows, then what it took to stderr.

        `options` are those of `continue_ids`.
        """
        text = self.continue_ids(self.encode_prompt(prompt), **options)
        started = time.perf_counter()
        try:
            for piece in itertools.chain([prompt], text):
                output.write(piece)
        finally:  # after Ctrl-C too, the next prompt of the shell has a line of its own
            output.line()
        speed = text.n_tokens / (time.perf_counter() - started)
        log.note(f"{text.n_tokens} tokens, {speed:.1f} tokens/s ({text.finish_reason})")

    def sibling(self, step: str) -> Path:
        """Return the checkpoint of step `step` beside this one.

        Raises:
            UserError: there is none.
        """
        folder = self.folder.resolve().parent
        found = {path.name.partition("-")[2].lstrip("0"): path for path in sorted(folder.glob("step-*"))}
        if step.lstrip("0") not in found:
            there = ", ".join(found) or "none"
            raise UserError(f"no checkpoint of step {step} in {folder}; there are: {there}")
        return found[step.lstrip("0")]

    def ready_to_chat(self) -> None:
        """Let texts end where a turn ends, too.

        Raises:
            UserError: the model has no chat template, or a damaged one.
        """
        encode_chat(self.tokenizer, [Message("user", "Hello")])
        self.engine.eos_ids = {*self.engine.eos_ids, *turn_ends(self.tokenizer)}

    def _pick_dtype(self, name: str, backend: str) -> torch.dtype:
        if name not in ("auto", "int8"):
            return pick_dtype(name, self.device)
        stored = stored_dtype(self.folder)
        on_cpu = self.device.type == "cpu"
        compiled = on_cpu and backend != "eager" and find_compiler() is not None  # reads bfloat16, computes in float32
        if stored == torch.bfloat16 and not compiled and not has_fast_bfloat16(self.device):
            return torch.float32
        return torch.float32 if on_cpu and stored == torch.float16 else stored
