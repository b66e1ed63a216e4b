"""Reinforcement learning with rewards that can be checked: the model's own answers, each learned by how good it was.

Fine-tuning with signed weights: a group of answers to one question is written, what is better than the group's mean is
made likelier, what is worse less likely. REINFORCE with a group's mean as its baseline, loss = -sum(advantage * log p)
/ all tokens of the step's answers: GRPO (arXiv 2402.03300) without its two biases (arXiv 2503.20783).
Conversations of `mix.data` may be learned beside them, each answer's token with weight 1, so that what no question
asks for is not unlearned: as InstructGPT does with text (arXiv 2203.02155, section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mini_llm import log
from mini_llm.checkpoint import load_model
from mini_llm.device import pick_device, pick_dtype
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.rows.dataloader import permute
from mini_llm.train.run.kept import Kept
from mini_llm.train.train import AfterEvaluation, train
from mini_llm.tune.adapter_files import begin
from mini_llm.tune.answer_loss import answer_loss_sum
from mini_llm.tune.beside import conversations_beside
from mini_llm.tune.clip import clipped
from mini_llm.tune.config import with_base
from mini_llm.tune.exact_match import ExactMatch
from mini_llm.tune.look import Look, look
from mini_llm.tune.packing import PackedRows
from mini_llm.tune.questions import Question, fingerprint, read_questions
from mini_llm.tune.rewards import advantages
from mini_llm.tune.rl_config import RlConfig, with_questions
from mini_llm.tune.rollouts import Answer, packed, seed_of, write_answers
from mini_llm.tune.rows import ConversationRows


class Asked(NamedTuple):
    """What a run reads."""

    learned: list[Question]
    held_out: list[Question]
    beside: PackedRows | None  # conversations of `mix.data`


MOST_SILENT = 0.8  # share of groups without signal from which on something is said


def rl(config: RlConfig, after_evaluation: AfterEvaluation | None = None) -> Path:
    """Learn from rewards, or go on, and return the run folder.

    Raises:
        UsageError, UserError: as `with_base`, `read_questions` and `train`.
        Interrupted: as `train`.
    """
    config, asked = prepared(config)
    if not config.mix.data:
        log.info("a loss near 0 is as it should be, advantages sum to 0: look at the reward, and at held-out answers")
    run = train(config, after_evaluation, lambda fitting: Rewarded(fitting, asked))
    if not (run / "best").exists():
        log.warn(
            f"no checkpoint answers better than {config.base}: try a lower learning_rate, more samples, more steps"
        )
    return run


def prepared(config: RlConfig) -> tuple[RlConfig, Asked]:
    """Return the settings in full, and the questions to learn from and held out, with what is learned beside them."""
    config = with_base(config)
    tokenizer = Tokenizer.load(resolve_checkpoint(config.base))
    learned, held_out = read_questions(config, tokenizer)
    if (config.temperature, config.top_p, config.top_k) != (1.0, 1.0, 0):
        log.warn(
            "answers are not drawn from the model's own distribution: log-probabilities learned are of another one"
        )
    full = with_questions(config, len(learned))
    return full, Asked(learned, held_out, conversations_beside(full, tokenizer))


@dataclass(frozen=True)
class Batch:
    """The answers of one or several steps."""

    number: int
    answers: list[Answer]
    n_tokens: int  # of all answers
    learned: ConversationRows  # the groups with a signal; tokens weigh their answer's advantage
    marked: ConversationRows  # the same rows, then those of the other groups; tokens of answers weigh 1
    silent: float  # share of groups without a signal
    old: Tensor | None = None  # log-probabilities of `marked` when it was written, if several steps learn from it


class Rewarded:
    """The objective of reinforcement learning; see `train.objective.Objective`. Rows depend on the weights."""

    reads_ahead = deals_out_rows = has_mfu = False

    def __init__(self, config: RlConfig | object, asked: Asked) -> None:
        assert isinstance(config, RlConfig)
        self.config = config
        self.base = resolve_checkpoint(config.base)
        self.tokenizer = Tokenizer.load(self.base)
        self.questions, self.held_out, self.beside = asked
        beside = self.beside.conversations.fingerprint() if self.beside else ""
        self.fingerprints = {"tokenizer": self.tokenizer.fingerprint, "text": fingerprint(self.questions, beside)}
        self.first_question = 0  # see `continue_at`
        self.batch: Batch | None = None
        self.n_beside = 0  # tokens that are learned of the step's conversations
        self.numbers: dict[str, float] = {}
        self.has_warned = False

    @cached_property
    def evaluator(self) -> ExactMatch:
        """Answers to held-out questions."""
        return ExactMatch(self.config, self.held_out, self.tokenizer, lambda: self.model)

    @cached_property
    def start(self) -> Transformer:
        """The model as it was before the first step."""
        return load_model(self.base, device=pick_device(self.config.device), dtype=torch.float32)

    def verify(self) -> None:
        """Do nothing more: the questions have been read already."""

    def initialise(self, model: Transformer) -> Kept | None:
        """Give the model the base's weights, LoRA where it is asked for (see `begin`), and keep hold of it."""
        self.model, c = model, self.config
        return begin(model, self.base, c.base, c.lora, self.tokenizer, c.seed)

    def example(self) -> ConversationRows:
        """Return a micro-batch in which every token is learned."""
        rows = self._packed([], [])
        return replace(rows, weights=torch.ones_like(rows.weights))

    def rows(self, step: int) -> ConversationRows:
        """Return the answers that the model as it is now gives at a step, packed, with their advantages as weights.

        Behind them are the conversations of the step, if there are some.
        """
        config = self.config
        number, update = divmod(step, config.updates_per_batch)
        if update == 0 or self.batch is None or self.batch.number != number:
            self.batch = self._write(number)
        batch, n_learned = self.batch, len(self.batch.learned)
        shows = (step + 1) % config.log_interval == 0 or step + 1 in (1, config.max_iters)
        seen = self._look(batch) if shows or config.updates_per_batch > 1 else None
        rows, share_clipped = batch.learned, 0.0
        if config.updates_per_batch > 1 and seen is not None:
            if batch.old is None:
                batch = self.batch = replace(batch, old=seen.logprobs)
            assert batch.old is not None
            now, old = (logprobs[:n_learned] for logprobs in (seen.logprobs, batch.old))
            weights, is_clipped = clipped(rows.weights, now, old, config.clip_low, config.clip_high)
            share_clipped = int(is_clipped.sum()) / batch.n_tokens
            rows = replace(rows, weights=weights)
        self.numbers = {**_numbers(batch), "clipped": share_clipped}
        if seen is not None:
            self.numbers |= {"entropy": seen.entropy, "kl": seen.kl}
        self._warn(batch)
        if self.beside is not None:
            n = config.rows_beside
            beside = self.beside.rows(step * n, n)
            self.n_beside, rows = beside.n_targets(), ConversationRows.joined([rows, beside])
        return rows

    def _write(self, number: int) -> Batch:
        """Ask the questions of a batch, judge the answers and pack them."""
        config, n = self.config, self.config.prompts_per_step
        asked = self._ask(self.first_question + number * n, n)
        answers = write_answers(
            self.model,
            self.tokenizer,
            [question for _, question in asked for _ in range(config.samples)],
            [seed_of(config.seed, number, place, i) for place, _ in asked for i in range(config.samples)],
            sampling=SamplingParams(temperature=config.temperature, top_p=config.top_p, top_k=config.top_k),
            max_new_tokens=config.max_new_tokens,
            before_step=self.evaluator.before_batch,
            source=f"{config.base} after {number * config.updates_per_batch} steps",
        )
        groups = [answers[i : i + config.samples] for i in range(0, len(answers), config.samples)]
        worth = [advantages([answer.reward for answer in group]) for group in groups]
        learned = [i for i, values in enumerate(worth) if any(values)]
        others = [answer for i, group in enumerate(groups) if i not in learned for answer in group]
        chosen = [answer for i in learned for answer in groups[i]]
        marked = [self._packed(part, [1.0] * len(part)) for part in (chosen, others) if part]
        return Batch(
            number,
            answers,
            sum(len(answer.ids) for answer in answers),
            self._packed(chosen, [value for i in learned for value in worth[i]]),
            ConversationRows.joined(marked),
            1 - len(learned) / len(groups),
        )

    def _ask(self, first: int, n: int) -> list[tuple[int, Question]]:
        """Return questions first .. first + n - 1 of an endless sequence of epochs, each in another order."""
        order, size = np.arange(first, first + n), len(self.questions)
        places: list[int] = []
        for epoch in np.unique(order // size):
            keys = np.random.SeedSequence([self.config.seed, int(epoch), 2]).generate_state(4, np.uint64)
            places += permute(order[order // size == epoch] % size, size, keys).tolist()
        return [(first + i, self.questions[place]) for i, place in enumerate(places)]

    def _packed(self, answers: Sequence[Answer], weights: Sequence[float]) -> ConversationRows:
        block, pad_id, multiple = self.config.block_size, self.tokenizer.pad_id or 0, self.config.batch_size
        return packed(answers, weights, block_size=block, pad_id=pad_id, multiple=multiple)

    def _look(self, batch: Batch) -> Look:
        dtype = pick_dtype(self.config.dtype, pick_device(self.config.device))
        return look(self.model, self.start, batch.marked, dtype, self.config.batch_size)

    def _warn(self, batch: Batch) -> None:
        if batch.silent > MOST_SILENT and not self.has_warned:
            self.has_warned = True
            why = "too easy" if self.numbers["reward"] > 0.5 else "too hard: begin with more fine-tuning"
            log.warn(f"{batch.silent:.0%} of the questions taught nothing, their answers were all alike: {why}")

    def loss_sum(self, model: Transformer, rows: ConversationRows, dtype: torch.dtype) -> Tensor:
        """Return -sum(advantage * log p) over the tokens of answers; those of conversations have advantage 1."""
        return answer_loss_sum(model, rows, dtype)

    def targets(self, rows: ConversationRows) -> int:
        """Return the tokens of all answers of the step: of groups without a signal too, and of conversations."""
        return self.tokens(rows) + self.n_beside

    def tokens(self, rows: ConversationRows) -> int:
        """Return how many tokens were written."""
        assert self.batch is not None
        return self.batch.n_tokens

    def noted(self, step: int) -> dict[str, float]:
        """Return what became of the step's answers."""
        return self.numbers

    def epoch(self, step: int) -> float:
        """Return how many times all questions have been asked before `step`."""
        return (self.first_question + step * self._a_step) / len(self.questions)

    @property
    def _a_step(self) -> float:
        return self.config.prompts_per_step / self.config.updates_per_batch

    def continue_at(self, step: int, epochs: float) -> None:
        """Let `step` begin where all questions have been asked `epochs` times."""
        self.first_question = round(epochs * len(self.questions) - step * self._a_step)


def _numbers(batch: Batch) -> dict[str, float]:
    n = len(batch.answers)
    return {
        "reward": sum(answer.reward for answer in batch.answers) / n,
        "silent": batch.silent,
        "length": batch.n_tokens / n,
        "stop_rate": sum(answer.finished for answer in batch.answers) / n,
    }
