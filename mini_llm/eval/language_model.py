"""What is evaluated, whatever it is: something that has a tokenizer, scores continuations and writes.

Here also the rules by which a text becomes ids, those of lm-eval's hf backend, so that scores can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from mini_llm.checkpoint import load_model, stored_dtype
from mini_llm.device import has_fast_bfloat16, pick_device, pick_dtype, reuse_freed_memory, use_fast_products
from mini_llm.errors import UserError
from mini_llm.eval.scorer import Score, score_pairs
from mini_llm.eval.trees import Pair
from mini_llm.inference.generate import Generator
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.tokenizer import Tokenizer

MAX_NEW_TOKENS = 256  # lm-eval's default


class Encodes(Protocol):
    """Text to ids."""

    max_length: int  # tokens that the model reads at once
    prefix_ids: list[int]  # what the tokenizer itself puts before a text
    first_id: int  # what stands before the first token of a text that has nothing before it

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, without special tokens."""


class LanguageModel(Encodes, Protocol):
    """What an evaluation asks of a model."""

    name: str

    def score(self, pairs: Sequence[Pair], on_batch: Callable[[int], None] = ...) -> list[Score]:
        """Return the score of each continuation after its context; `on_batch(n)`: n more are done."""

    def write(self, contexts: Sequence[list[int]], stops: Sequence[list[str]], max_new_tokens: int) -> list[str]:
        """Return the likeliest continuation of each context, up to its first stop string."""


class LocalModel:
    """A model of this process."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, name: str = "memory") -> None:
        """Take a model in the precision to compute in.

        Raises:
            UserError: the tokenizer has no token that a text could begin with, or too many tokens.
        """
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.max_length = model.config.max_seq_len
        self.before_batch: Callable[[], None] = lambda: None
        self.prefix_ids, self.first_id = tokenizer.prefix_ids, first_id_of(tokenizer)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"the tokenizer in {tokenizer.folder} has {tokenizer.vocab_size} tokens, the model knows "
                f"{model.config.vocab_size}",
                "use the tokenizer that the model was trained with",
            )

    @classmethod
    def load(
        cls, path: Path | str, *, tokenizer: Path | None = None, device: str = "auto", dtype: str = "auto"
    ) -> LoadedModel:
        """Load a run, a checkpoint or any Llama folder.

        Raises:
            UserError: a file is missing or damaged.
            UsageError: an unknown device or dtype.
        """
        where, folder = pick_device(device), resolve_checkpoint(path)
        precision = pick_dtype(dtype, where) if dtype != "auto" else stored_dtype(folder)
        if dtype == "auto" and precision != torch.float32 and not has_fast_bfloat16(where):
            precision = torch.float32
        reuse_freed_memory()  # a tenth of the time went into new pages for each batch
        use_fast_products()
        model = load_model(folder, device=where, dtype=precision)
        loaded = LoadedModel(model, Tokenizer.load(tokenizer or folder), str(path))
        loaded.folder, loaded.options = folder, {"device": device, "dtype": str(precision).removeprefix("torch.")}
        loaded.options["tokenizer_path"] = tokenizer
        return loaded

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, without special tokens."""
        return self.tokenizer.encode_batch(texts)

    def score(self, pairs: Sequence[Pair], on_batch: Callable[[int], None] = lambda _n: None) -> list[Score]:
        """Return the score of each continuation after its context."""
        return score_pairs(self.model, pairs, before_batch=self.before_batch, on_batch=on_batch)

    def write(self, contexts: Sequence[list[int]], stops: Sequence[list[str]], max_new_tokens: int) -> list[str]:
        """Refuse: a model in training writes samples, and is not asked questions.

        Raises:
            UserError: always.
        """
        raise UserError("tasks of type generate_until need a model folder", "use mini-llm eval on a checkpoint")


class LoadedModel(LocalModel):
    """A model of a folder: it can also write, by the engine."""

    folder: Path
    options: dict[str, Any]

    @cached_property
    def generator(self) -> Generator:
        """The engine: it holds the weights once more, so that it is loaded when something is to be written."""
        return Generator(self.folder, **self.options)

    def write(self, contexts: Sequence[list[int]], stops: Sequence[list[str]], max_new_tokens: int) -> list[str]:
        """Return the likeliest continuation of each context, up to its first stop string, many at once."""
        room = room_beside(max_new_tokens, self.max_length)
        texts = [
            self.generator.continue_ids(
                context[-room:], sampling=SamplingParams(temperature=0), stop=stop, max_new_tokens=max_new_tokens
            )
            for context, stop in zip(contexts, stops, strict=True)
        ]
        return ["".join(text) for text in texts]


def room_beside(max_new_tokens: int, max_length: int) -> int:
    """Return how many tokens of a prompt a context holds beside those that are to be written.

    Raises:
        UserError: none.
    """
    if max_new_tokens >= max_length:
        raise UserError(
            f"{max_new_tokens} new tokens leave no room for a prompt in a context of {max_length}",
            "a task's max_gen_toks says how many (generation_kwargs in its YAML)",
        )
    return max_length - max_new_tokens


def first_id_of(tokenizer: Tokenizer) -> int:
    """Return the token that stands before a text: BOS, or EOS where there is none.

    Raises:
        UserError: there is neither.
    """
    first = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    if first is None:
        raise UserError(f"the tokenizer {tokenizer.folder} has neither a bos_token nor an eos_token to begin a text")
    return first


# --- from texts to ids -----------------------------------------------------------------------------------------------


@dataclass
class Pairs:
    """Requests as ids: `pairs[i]` belongs to request `numbers[i]`; `unfit` are the requests that no context holds."""

    pairs: list[Pair] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    unfit: dict[int, str] = field(default_factory=dict)


def pairs_of(model: Encodes, requests: Sequence[tuple[str, str]]) -> Pairs:
    """Return requests (context, continuation) as pairs of ids.

    White space at the end of a context belongs to the continuation. A continuation begins after as many tokens of the
    whole as the context alone has; with an empty context, after the token that begins a text.
    """
    moved = [_move_space(context, continuation) for context, continuation in requests]
    texts = list(dict.fromkeys(text for context, continuation in moved for text in (context, context + continuation)))
    ids = dict(zip(texts, model.encode_batch(texts), strict=True)) if texts else {}
    made = Pairs()
    for number, (context, continuation) in enumerate(moved):
        if context:
            before = model.prefix_ids + ids[context]
            after = (model.prefix_ids + ids[context + continuation])[len(before) :]
        else:
            before, after = [model.first_id], ids[continuation]
        if not after or not before:
            made.unfit[number] = "its continuation has no token of its own"
        elif len(after) > model.max_length:
            made.unfit[number] = f"its continuation has {len(after)} tokens, the context {model.max_length}"
        else:
            made.pairs.append((before, after))
            made.numbers.append(number)
    return made


def _move_space(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def rolling_pairs(model: Encodes, text_ids: list[int], *, predict_prefix: bool) -> list[Pair]:
    """Return windows that foretell each token of a text once, each but the first from a full context.

    With `predict_prefix`, what the tokenizer puts before a text is foretold too, as lm-eval does: BOS after BOS.
    """
    ids = (model.prefix_ids if predict_prefix else []) + text_ids
    size, pairs = model.max_length, []
    for start in range(0, len(ids), size):
        targets = ids[start : start + size]
        if start == 0:
            pairs.append(([model.first_id], targets))
        else:  # the last window reaches back, so that it is full too
            end = start + len(targets)
            pairs.append((ids[end - size - 1 : start], targets))
    return pairs
