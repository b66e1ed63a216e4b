"""How many held-out questions are answered right: by the likeliest answer, and by answers that are drawn.

The same questions and the same darts each time, so that two numbers can be compared. Reinforcement learning often
lifts the second alone, and may cost the first: both are shown, and the best checkpoint has the highest mean of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mini_llm import log
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.questions import Question
from mini_llm.tune.rl_config import RlConfig
from mini_llm.tune.rollouts import Answer, seed_of, write_answers

AT_ONCE = 32  # questions of a batch


@dataclass(frozen=True)
class Found:
    """What an evaluation found: shares of answers, from 0 to 1."""

    greedy: float  # of the likeliest answers, the right ones
    sampled: float  # of the drawn ones
    stopped: float  # of all answers, those that ended

    @property
    def loss(self) -> float:
        """The share that is wrong, mean of both ways to answer: the lowest is the best."""
        return 1 - (self.greedy + self.sampled) / 2

    def metrics(self) -> dict[str, float]:
        """Return the numbers of metrics.jsonl."""
        shares = {"val_greedy": self.greedy, "val_sampled": self.sampled, "val_stop_rate": self.stopped}
        return {"val_loss": self.loss, **shares}

    def describe(self) -> str:
        """Return them for a person."""
        return (
            f"{self.loss:.4f} of answers wrong: {self.greedy:.1%} right when greedy, {self.sampled:.1%} when sampled, "
            f"{self.stopped:.1%} ended"
        )


class ExactMatch:
    """Asks the held-out questions."""

    def __init__(
        self,
        config: RlConfig,
        questions: Sequence[Question],
        tokenizer: Tokenizer,
        model: Callable[[], Transformer],
    ) -> None:
        most = config.eval_questions * max(1, len(config.task) + bool(config.data))
        chosen = min(most, len(questions))
        self.questions = [questions[i * len(questions) // chosen] for i in range(chosen)]
        self.config, self.tokenizer, self.model = config, tokenizer, model
        self.before_batch: Callable[[], None] = lambda: None
        self.has_looked = False

    @property
    def n_batches(self) -> int:
        """The number of batches of an evaluation."""
        return -(-len(self.questions) // AT_ONCE)

    @torch.no_grad()
    def run(self, loss_sum: Callable[[Any], Tensor], device: torch.device, most_batches: int | None = None) -> Found:
        """Return what share is right, of the first few batches or all; the loss is not asked."""
        greedy, sampled = list[Answer](), list[Answer]()
        for first in range(0, len(self.questions), AT_ONCE)[:most_batches]:
            part = range(first, min(first + AT_ONCE, len(self.questions)))
            greedy += self._answers([(i, 0) for i in part], 0.0)
            sampled += self._answers([(i, n) for i in part for n in range(self.config.eval_samples)], 1.0)
        if not self.has_looked:
            self.has_looked = True
            _warn_without_signal(sampled)
        right = (sum(answer.reward == 1 for answer in answers) / len(answers) for answers in (greedy, sampled))
        return Found(next(right), next(right), sum(a.finished for a in greedy + sampled) / len(greedy + sampled))

    def _answers(self, wanted: list[tuple[int, int]], temperature: float) -> list[Answer]:
        return write_answers(
            self.model(),
            self.tokenizer,
            [self.questions[i] for i, _ in wanted],
            [seed_of(self.config.seed, "held out", i, n) for i, n in wanted],
            sampling=SamplingParams(temperature=temperature, top_p=1.0, top_k=0),
            max_new_tokens=self.config.max_new_tokens,
            before_step=self.before_batch,
            source=f"{self.config.base} in training",
        )


def _warn_without_signal(answers: Sequence[Answer]) -> None:
    """Say at the first look, before any step, that no group would teach: whatever is drawn is worth the same."""
    worth = {answer.reward for answer in answers}
    if worth == {0.0}:
        log.warn(
            f"none of {len(answers):,} answers drawn to held-out questions is right: where all answers to a question "
            "are wrong nothing is learned; stop here, and begin with more fine-tuning (sft) or easier questions"
        )
    elif worth == {1.0}:
        log.warn(
            f"all {len(answers):,} answers drawn to held-out questions are right: there is nothing left to learn; "
            "stop here, and ask something harder"
        )
