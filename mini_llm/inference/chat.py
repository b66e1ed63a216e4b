"""A conversation with a model of this machine: what was said, and what a full context forgets."""

from __future__ import annotations

from typing import Any

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.inference.continuation import Continuation
from mini_llm.inference.generate import Generator
from mini_llm.tokenizer.chat import Message, encode_chat

N_CANDIDATES = 9  # that `/why` and `/branch` know of, for each token


class Messages:
    """What was said so far, whoever answers."""

    def start(self, system: str | None = None) -> None:
        """Begin anew, with or without a system message."""
        self.system = [] if system is None else [Message("system", system)]
        self.forget()

    def forget(self) -> None:
        """Begin anew, under the same system message."""
        self.turns: list[Message] = []
        self.n_asked = 0  # of questions, those too that the context has lost

    def hear(self, answer: str) -> None:
        """Make what was answered part of the conversation."""
        self.turns.append(Message("assistant", answer))


class Conversation(Messages):
    """The messages so far. Each turn asks with all of them; the engine reads only what is new."""

    def __init__(self, generator: Generator, system: str | None) -> None:
        self.generator = generator
        self.start(system)

    def ask(self, question: str, *, max_new_tokens: int, seed: int | None, **options: Any) -> Continuation:
        """Return the answer as it grows. `hear` it afterwards, whole or not. `options`: see `Generator.continue_ids`.

        Raises:
            UserError: the question alone is longer than the context; it is forgotten.
        """
        before, context = self.turns, self.generator.model.config.max_seq_len
        self.turns = [*before, Message("user", question)]
        seed = None if seed is None else seed + self.n_asked  # the same question may get another answer
        try:
            ids = self._fit(room=min(max_new_tokens, context // 4))
            answer = self.go_on(ids, max_new_tokens=max_new_tokens, seed=seed, **options)
        except UserError:
            self.turns = before
            raise
        if forgotten := len(before) + 1 - len(self.turns):
            log.note(f"the context of {context} tokens is full: forgot {forgotten // 2} old questions")
        self.n_asked += 1
        return answer

    def go_on(self, ids: list[int], **options: Any) -> Continuation:
        """Return what follows `ids`, each token with how it was drawn."""
        return self.generator.continue_ids(ids, inspect=N_CANDIDATES, **options)

    def _fit(self, room: int) -> list[int]:
        """Return the conversation's ids, its oldest turns dropped until the context has `room` for an answer."""
        while True:
            ids = encode_chat(self.generator.tokenizer, self.system + self.turns)
            if len(ids) + room <= self.generator.model.config.max_seq_len or len(self.turns) == 1:
                return ids
            del self.turns[:2]  # a question and its answer
