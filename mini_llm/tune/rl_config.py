"""Every setting of reinforcement learning, beside those of fine-tuning."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from mini_llm.errors import UsageError
from mini_llm.tune.config import SftConfig


class RlConfig(SftConfig):
    """What `mini-llm rl --base RUN --task NAME --config FILE KEY=VALUE ...` reads."""

    verb: ClassVar[str] = "rl"
    shipped: ClassVar[str] = "--config configs/rl-spelling.yaml"
    share_of_rates: ClassVar[float] = 0.1  # of the base's rates: ten points were won at it, docs/LOG.md

    task: tuple[str, ...] = ()  # skills made by program; questions of files (`data`) may join them
    made: int = Field(4000, ge=1, le=10**7)  # questions made of each task
    corpus: tuple[str, ...] = ()  # texts whose words and sentences the tasks speak of, as for `mini-llm skills`
    name: str = "Mini-LLM"  # what the model calls itself, for the task identity
    out_dir: str = "runs/rl"

    # A step: questions, answers to each, and one update; or several of the same answers, with PPO's clip
    prompts_per_step: int = Field(64, ge=1, le=2**16)  # with few answers a step noise wins: docs/LOG.md
    samples: int = Field(16, ge=2, le=2**12)  # answers to each question: a group
    max_new_tokens: int = Field(64, ge=1, le=2**20)  # of an answer; one that is longer is worth 0
    temperature: float = Field(1.0, gt=0, le=100)  # of what is learned from; 1: the model's own distribution
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    updates_per_batch: int = Field(1, ge=1, le=1000)  # steps that learn from the same answers
    clip_low: float = Field(0.2, ge=0, le=1)  # a token stops counting where it has become so much less likely ...
    clip_high: float = Field(0.28, ge=0, le=100)  # ... or more, since it was written; with 1 update it never has

    batch_size: int = Field(8, ge=1, le=2**20)  # rows in memory at once; a step has as many as its answers fill
    block_size: int = Field(256, ge=1, le=2**28)
    epochs: float | None = Field(None, gt=0)  # times that all questions are asked; unset: max_iters steps
    max_iters: int = Field(150, ge=1, le=10**9)
    learning_rate: float = Field(3e-5, ge=0)  # where the base has no record of its own
    muon_learning_rate: float = Field(1e-3, ge=0)
    cooldown_fraction: float = Field(1.0, gt=0, le=1)  # linear to zero from the first step on
    log_interval: int = Field(1, ge=1, le=10**9)  # entropy and distance are measured in these steps only
    eval_interval: int = Field(10, ge=1, le=10**9)
    eval_questions: int = Field(100, ge=1, le=10**7)  # held out, of each task; in all from files
    eval_samples: int = Field(4, ge=1, le=2**12)  # answers drawn to each of them, beside the greedy one

    @field_validator("task", "corpus", mode="before")
    @classmethod
    def _split_tasks(cls, value: Any) -> Any:
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_rl(self) -> RlConfig:
        if self.replay or self.length_warmup:
            raise ValueError("rl reads no text: replay and length_warmup must stay 0; mix.data holds other skills")
        if self.gradient_accumulation_steps != 1 and not self.auto_batch:
            raise ValueError("a step of rl has as many micro-batches of batch_size rows as its answers fill")
        for name in ("eval_interval", "max_iters"):
            if (value := getattr(self, name)) % self.updates_per_batch:
                raise ValueError(f"{name}={value} must be a multiple of updates_per_batch={self.updates_per_batch}")
        if self.fit_minutes and self.updates_per_batch > 1:
            raise ValueError("fit_minutes needs updates_per_batch=1")
        return self

    def check_given(self) -> None:
        """Refuse settings without a base or without questions.

        Raises:
            UsageError: with what to give.
        """
        if not self.base:
            raise UsageError("no model to begin from", "name one: mini-llm rl --base runs/sft --task spelling")
        if not (self.task or self.data):
            raise UsageError(
                "nothing to ask", "name a skill, --task spelling, or a file of questions: --data FILE.jsonl"
            )

    @property
    def answers_per_step(self) -> int:
        """Answers that a step learns from."""
        return self.prompts_per_step * self.samples

    @property
    def tokens_per_step(self) -> int:
        """The most tokens that a step writes."""
        return self.answers_per_step * self.max_new_tokens

    @property
    def step_size(self) -> str:
        """What a step sees, for a person."""
        again = f", {self.updates_per_batch} steps from the same" if self.updates_per_batch > 1 else ""
        return f"{self.prompts_per_step} questions x {self.samples} answers a step{again}"

    @property
    def rows_beside(self) -> int:
        """Rows of conversations in each step: `mix.share` of its answers' room, in whole micro-batches."""
        if not self.mix.data:
            return 0
        rows = self.mix.share * self.tokens_per_step / self.block_size
        return self.batch_size * max(1, round(rows / self.batch_size))

    def micro_batches(self, n_rows: int) -> int:
        """Return in how many parts of `batch_size` rows a step is computed."""
        return n_rows // self.batch_size

    def is_whole(self, step: int) -> bool:
        """Tell whether the next step asks anew: answers are not stored, only the weights that gave them know them."""
        return step % self.updates_per_batch == 0


def with_questions(config: RlConfig, n_questions: int) -> RlConfig:
    """Return the settings with `max_iters` and the warm-up that `epochs` mean for so many questions."""
    steps = config.max_iters
    if config.epochs is not None:
        batches = max(1, math.ceil(config.epochs * n_questions / config.prompts_per_step))
        steps = batches * config.updates_per_batch
    warmup = config.warmup_iters if config.warmup_iters is not None else math.ceil(0.03 * steps)
    return config.model_copy(update={"max_iters": steps, "warmup_iters": warmup})
