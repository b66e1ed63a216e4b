"""The objective: what a model is trained for. It owns the rows of each step and their loss; the loop owns the rest.

Pretraining is the first one: rows of a token store, each token to be foretold from those before it. Another objective
(answers, preferences, rewards) is another class with these methods, written outside `train/`. The loop saves, resumes,
evaluates, shows and stops all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from mini_llm import log
from mini_llm.data.mixture import Mixture
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UsageError, UserError
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.evaluate import Evaluator
from mini_llm.train.evaluate_mixture import MixedEvaluator, evaluator_of
from mini_llm.train.init_from import load_initial_weights
from mini_llm.train.loss import rows_loss_sum
from mini_llm.train.optim.bigram_init import init_bigram
from mini_llm.train.optim.lr_scheduler import row_parts
from mini_llm.train.rows.dataloader import shorten
from mini_llm.train.rows.mixed_rows import MixedLoader, loader_of
from mini_llm.train.run.kept import Kept
from mini_llm.train.soft_targets import SoftRows, SoftTargets, soft_loss_sum


class Rows(Protocol):
    """Rows of a step, in host memory or on a device. A tensor (R, ...) is one; so is anything that does this."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def split(self, n_rows: int) -> Sequence[Self]:
        """Return them in parts of `n_rows`: the micro-batches."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """Return them on `device`."""

    def pin_memory(self) -> Self:
        """Return them in host memory that a GPU can read by itself."""


class Evaluation(Protocol):
    """What an evaluation found."""

    @property
    def loss(self) -> float:
        """The number by which checkpoints are compared; the lowest is the best."""

    def metrics(self) -> dict[str, float]:
        """Return what metrics.jsonl gets."""

    def describe(self) -> str:
        """Return what a person is shown: the numbers with their units."""


class Evaluates(Protocol):
    """What an objective evaluates on, always the same."""

    before_batch: Callable[[], None]  # called before each batch; may raise, to stop in the middle

    @property
    def n_batches(self) -> int:
        """The number of batches of an evaluation."""

    def run(
        self, loss_sum: Callable[[Any], Tensor], device: torch.device, most_batches: int | None = None
    ) -> Evaluation:
        """Return what was found, on the first few batches or all; `loss_sum(rows)` is the objective's, no dropout."""


class Objective(Protocol):
    """What `Stepper` and `Trainer` ask. Rows are a pure function of the step, and of the weights if so declared."""

    reads_ahead: bool  # whether the rows of the next step may be read before this one is done
    deals_out_rows: bool  # whether several processes may each read all rows of a step and take a part of them
    has_mfu: bool  # whether all weights learn from all tokens, the 6 operations each of which MFU is a share
    fingerprints: dict[str, str]  # hashes of the tokenizer and of the data: what a checkpoint remembers of them

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that goes into each checkpoint."""

    @property
    def evaluator(self) -> Evaluates:
        """What is evaluated every `eval_interval` steps."""

    def verify(self) -> None:
        """Read what training will read, before it does, where that takes a minute at most.

        Raises:
            UserError: it is damaged.
        """

    def initialise(self, model: Transformer) -> Kept | None:
        """Give a new model the weights of step 0; return what of it is saved, None: all of it.

        What it freezes, or puts in a part's place, stays so: only what asks for a gradient is trained.
        """

    def example(self) -> Rows:
        """Return a micro-batch as large as any, to try compilation and memory on."""

    def rows(self, step: int) -> Rows:
        """Return the rows of step 0, 1, ..., in host memory; their number is a multiple of the micro-batches."""

    def loss_sum(self, model: Transformer, rows: Any, dtype: torch.dtype) -> Tensor:
        """Return the summed loss of rows on the model's device; products run in `dtype`."""

    def targets(self, rows: Any) -> int:
        """Return by how many targets the summed loss of a whole step is divided, once."""

    def tokens(self, rows: Any) -> int:
        """Return how many tokens a whole step's rows have."""

    def noted(self, step: int) -> dict[str, float]:
        """Return what else there is to show and to keep of the step just done, by name; `step` steps are done now."""

    def epoch(self, step: int) -> float:
        """Return how many times all data has been seen before `step`."""

    def continue_at(self, step: int, epochs: float) -> None:
        """Let `step` begin where all data has been seen `epochs` times: the steps before may have had another size."""


class Pretraining:
    """Foretell each next token of a token store, or of several that are mixed."""

    reads_ahead = deals_out_rows = has_mfu = True

    def __init__(self, config: TrainConfig) -> None:
        """Open the tokens.

        Raises:
            UserError: they cannot be read or are too few.
        """
        self.config = config
        self.mixture = Mixture.open(config.data_dir)
        self.fingerprints = self.mixture.fingerprints
        self.loader = loader_of(
            self.mixture,
            block_size=config.block_size,
            rows_per_step=config.rows_per_step,
            seed=config.seed,
            align_documents=config.align_documents,
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The store's tokenizer, checked as `open_tokenizer` does."""
        return open_tokenizer(self.mixture.stores[0], self.config)

    @cached_property
    def evaluator(self) -> Evaluator | MixedEvaluator:
        """Held-out rows, as `Evaluator.of` chooses them."""
        return evaluator_of(self.config, self.mixture, self.tokenizer)

    def verify(self) -> None:
        """Compare every byte with its checksum.

        Raises:
            UserError: a shard is damaged.
        """
        self.mixture.verify()

    def poll_checks(self, step: int) -> None:
        """Look whether the stores have been found sound; the last step waits for it.

        Raises:
            UserError: one was changed after it was written.
        """
        self.mixture.poll_checks(wait=step + 1 >= self.config.max_iters)

    def initialise(self, model: Transformer) -> None:
        """Draw random weights, with `init: bigram` some from counted pairs of tokens; or take those of `init_from`."""
        if self.config.init_from:
            load_initial_weights(model, self.config, self.fingerprints["tokenizer"])
            return
        model.init_weights(self.config.seed)
        if self.config.init == "bigram":
            init_bigram(model, self.loader, self.config.init_tokens, self.config.seed)

    @cached_property
    def soft(self) -> SoftTargets:
        """What else the targets might have been."""
        return SoftTargets(self.loader, self.config.soft_tokens, self.config.model.vocab_size)

    def example(self) -> Tensor | SoftRows:
        """Return the first whole rows, before any is shortened."""
        return self.rows_from(0).split(self.config.batch_size)[0]

    def rows(self, step: int) -> Tensor | SoftRows:
        """Return the rows (R, T+1) of a step, shorter and more of them where `length_warmup` says so.

        Raises:
            UserError: the store was changed after it was written. A large one is read meanwhile.
        """
        self.poll_checks(step)
        rows, parts = self.rows_from(self.loader.row_of(step)), row_parts(step, self.config)
        return shorten(rows, parts) if isinstance(rows, Tensor) else rows.shorten(parts)

    def rows_from(self, first: int) -> Tensor | SoftRows:
        """Return a step's number of rows (R, T+1), beginning with row `first` of all epochs."""
        ids, config = self.loader.rows_from(first), self.config
        share = config.soft_targets * (1 - first * config.block_size / config.soft_fade_tokens)
        if share <= 0:
            return ids
        return self.soft.rows(ids, self.loader.starts_at(np.arange(first, first + len(ids))), share)

    def loss_sum(self, model: Transformer, rows: Tensor | SoftRows, dtype: torch.dtype) -> Tensor:
        """Return the summed loss of rows in nats."""
        if not isinstance(rows, Tensor):
            return soft_loss_sum(model, rows, dtype)
        return rows_loss_sum(model, rows, dtype, self.documents(rows[:, :-1]))

    def documents(self, ids_BT: Tensor) -> Tensor | None:
        """Return the number of each token's document in its row; None where all of a row may be seen."""
        if not self.config.document_attention:
            return None
        if self.tokenizer.bos_id is not None:
            return (ids_BT == self.tokenizer.bos_id).cumsum(1)
        assert self.tokenizer.eos_id is not None, "prepare takes no tokenizer that parts documents by nothing"
        ends_BT = ids_BT.eq(self.tokenizer.eos_id).long()
        return ends_BT.cumsum(1) - ends_BT

    def targets(self, rows: Tensor | SoftRows) -> int:
        """Return the number of tokens that are foretold."""
        return (rows if isinstance(rows, Tensor) else rows.ids)[:, 1:].numel()

    def tokens(self, rows: Tensor | SoftRows) -> int:
        """Return the same: every token is foretold."""
        return self.targets(rows)

    def noted(self, step: int) -> dict[str, float]:
        """Return the epochs of each store of a mixture; of one, nothing: the loss says it all."""
        if not isinstance(self.loader, MixedLoader):
            return {}
        return {f"epoch/{name}": epochs for name, epochs in self.loader.epochs(self.first_row_of(step)).items()}

    def first_row_of(self, step: int) -> int:
        """Return how many rows of text have been read before `step`."""
        return self.loader.row_of(step)

    def epoch(self, step: int) -> float:
        """Return how many times all rows have been seen before `step`."""
        return self.loader.epoch(step)

    def continue_at(self, step: int, epochs: float) -> None:
        """Let `step` begin where all rows have been seen `epochs` times."""
        self.loader.continue_at(step, epochs)


def open_tokenizer(store: TokenStore, config: TrainConfig) -> Tokenizer:
    """Return the store's tokenizer, after checking that the model has room for its ids.

    Raises:
        UserError: the tokenizer is not the one that wrote the store.
        UsageError: it has more ids than the model.
    """
    tokenizer = Tokenizer.load(store.tokenizer_folder)
    if tokenizer.fingerprint != store.manifest.tokenizer_hash:
        raise UserError(
            f"{store.tokenizer_folder} is not the tokenizer that wrote {store.folder}",
            f"make the store again: mini-llm prepare SOURCES --tokenizer DIR --out {store.folder}",
        )
    size, room = store.manifest.vocab_size, config.model.vocab_size
    if size > room:
        raise UsageError(
            f"the tokens in {config.data_names} have {size:,} ids, the model has room for model.vocab_size={room:,}",
            f"train with model.vocab_size={size}",
        )
    if size < room and not config.init_from:  # a model of others may have room to spare
        log.warn(f"model.vocab_size={room:,}, but the tokenizer has {size:,} ids: model.vocab_size={size} is enough")
    return tokenizer
