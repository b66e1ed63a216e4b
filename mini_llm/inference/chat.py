"""Talk with a model in the terminal: answers on stdout, everything else on stderr, so that it works in a pipe too."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from mini_llm import log, output
from mini_llm.errors import UserError
from mini_llm.inference.continuation import Continuation, StopStrings
from mini_llm.inference.generate import Generator
from mini_llm.tokenizer.chat import Message, encode_chat

PROMPT = "you> "
HELP = """\
/reset        forget the conversation
/system TEXT  set the system message and start anew
/exit         leave (so does Ctrl-D); Ctrl-C stops an answer"""


class Conversation:
    """The messages so far. Each turn asks with all of them; the engine reads only what is new."""

    def __init__(self, generator: Generator, system: str | None) -> None:
        self.generator = generator
        self.start(system)

    def start(self, system: str | None = None) -> None:
        """Begin anew, with or without a system message."""
        self.system = [] if system is None else [Message("system", system)]
        self.forget()

    def forget(self) -> None:
        """Begin anew, under the same system message."""
        self.turns: list[Message] = []
        self.n_asked = 0  # of questions, those too that the context has lost

    def ask(self, question: str, *, max_new_tokens: int, seed: int | None, **options: Any) -> Continuation:
        """Return the answer as it grows. `hear` it afterwards, whole or not. `options`: see `Generator.continue_ids`.

        Raises:
            UserError: the question alone is longer than the context; it is forgotten.
        """
        self.turns.append(Message("user", question))
        ids = self._fit(room=min(max_new_tokens, self.generator.model.config.max_seq_len // 4))
        seed = None if seed is None else seed + self.n_asked  # the same question may get another answer
        try:
            answer = self.generator.continue_ids(ids, max_new_tokens=max_new_tokens, seed=seed, **options)
        except UserError:
            self.turns.pop()
            raise
        self.n_asked += 1
        return answer

    def hear(self, answer: str) -> None:
        """Make what was answered part of the conversation."""
        self.turns.append(Message("assistant", answer))

    def _fit(self, room: int) -> list[int]:
        """Return the conversation's ids, its oldest turns dropped until the context has `room` for an answer."""
        context = self.generator.model.config.max_seq_len
        n_turns = len(self.turns)
        while True:
            ids = encode_chat(self.generator.tokenizer, self.system + self.turns)
            if len(ids) + room <= context or len(self.turns) == 1:
                break
            del self.turns[:2]  # a question and its answer
        if len(self.turns) < n_turns:
            log.note(
                f"the context of {context} tokens is full: forgot {(n_turns - len(self.turns)) // 2} old questions"
            )
        return ids


def chat(generator: Generator, *, system: str | None, stop: Sequence[str], **options: Any) -> None:
    """Read questions from stdin until it ends, or until /exit, and stream the answers to stdout.

    Raises:
        UserError: the tokenizer has no chat markers, or the weights are damaged.
    """
    encode_chat(generator.tokenizer, [])  # refused before the first question, not after
    StopStrings(stop)
    conversation = Conversation(generator, system)
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # Windows has no readline and needs none
            import readline  # noqa: F401 (gives `input` arrow keys and a history)
        log.note("/help shows the commands, Ctrl-D leaves")
    while (line := _read_line()) is not None:
        match line.split(maxsplit=1):
            case []:
                pass
            case ["/exit"]:
                return
            case ["/help"]:
                log.info(HELP)
            case ["/reset"]:
                conversation.forget()
            case ["/system", *text]:
                conversation.start(*text)
            case [word, *_] if word.startswith("/"):
                log.warn(f"no command {word}; /help shows the commands")
            case _:
                _answer(conversation, line, stop=stop, **options)


def _answer(conversation: Conversation, question: str, **options: Any) -> None:
    """Print the answer as it grows; Ctrl-C stops it and nothing else."""
    try:
        answer = conversation.ask(question, **options)
    except UserError as problem:
        log.error(problem.message, problem.hint)
        return
    said = ""
    with contextlib.suppress(KeyboardInterrupt):
        for piece in answer:
            output.write(piece)
            said += piece
    answer.cancel()
    output.line()
    conversation.hear(said)
    if answer.finish_reason in ("length", "context"):
        log.note(f"cut off after {answer.n_tokens} tokens")


def _read_line() -> str | None:
    """Return a line of stdin, or None at its end; ask for it where a person types it."""
    person = sys.stdin.isatty()
    prompt = PROMPT if person else ""
    if not sys.stdout.isatty():  # the answers go to a file: keep the prompt out of it
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    try:
        return input(prompt)
    except OSError as problem:
        raise UserError(f"cannot read standard input: {problem.strerror or problem}") from None
    except (EOFError, KeyboardInterrupt) as end:
        if person:  # the shell's next prompt gets a line of its own
            print(file=sys.stderr)
        if isinstance(end, KeyboardInterrupt):
            raise
        return None
