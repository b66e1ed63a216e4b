"""Talk with a model in the terminal: answers on stdout, everything else on stderr, so that it works in a pipe too."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mini_llm import log, output
from mini_llm.errors import UsageError, UserError, did_you_mean
from mini_llm.files import write_text
from mini_llm.inference.chat import Conversation
from mini_llm.inference.continuation import Continuation, StopStrings
from mini_llm.inference.generate import Generator
from mini_llm.inference.look_back import Answer, text_after, tinted, whole, why
from mini_llm.inference.questions import kept_history, typed_lines, with_signs
from mini_llm.inference.remote import RemoteConversation
from mini_llm.inference.sampling.params import knobs
from mini_llm.tokenizer.chat import Message
from mini_llm.user_files import kind_of, read_file, writing_to

HELP = """\
/set NAME=VALUE  change temperature, top_p, max_new_tokens and the like; alone: show them
/set stop=TEXT   stop before TEXT, where \\n is a new line; without TEXT: stop before nothing
/seed N          the same seed, the same answers; alone: a new one each time
/retry           another answer to the last question
/undo            take the last question and its answer back
/edit TEXT       ask the last question anew, in other words
/tokens          the last answer, token by token, the unlikelier the redder
/why N           why its N-th token came: probabilities, alternatives, and where the dart fell
/branch N K      go on from the K-th alternative to its N-th token
/model STEP      talk with another checkpoint of the run
/save FILE       write the conversation to a file; /load FILE goes on with it
/reset           forget the conversation
/system TEXT     set the system message and start anew
/exit            leave (so does Ctrl-D); Ctrl-C stops an answer"""
FORMAT = "mini-llm chat 1"


class Session:
    """A conversation, its settings, and the last answer under the glass."""

    def __init__(
        self,
        conversation: Conversation | RemoteConversation,
        options: dict[str, Any],
        load: Callable[[str], Generator] | None = None,
    ) -> None:
        self.conversation, self.options, self._load = conversation, options, load
        self.last: Answer | None = None
        self._unanswered: str | None = None  # the question that nobody answered, and that is no part of it all

    def do(self, line: str) -> bool:
        """Obey a command, or ask a question; False: leave."""
        word, _, rest = line.strip().partition(" ")
        if not word:
            return True
        if word == "/exit":
            return False
        if not word.startswith("/"):
            self.ask(line)
            return True
        command = getattr(self, f"do_{word[1:]}", None)
        if command is None:
            known = [f"/{name.removeprefix('do_')}" for name in dir(self) if name.startswith("do_")]
            log.warn(f"no command {word}{did_you_mean(word, known)}; /help shows the commands")
        else:
            command(rest.strip())
        return True

    def ask(self, question: str) -> None:
        """Print the answer as it grows; Ctrl-C stops it and nothing else."""
        self.last, self._unanswered = None, question
        answer = self.conversation.ask(question, **self.options)
        said = self._show(answer)
        if isinstance(answer, Continuation):
            self.last = Answer(list(answer.ids.prompt_ids), list(answer.ids.drawn))  # type: ignore[attr-defined]
        self.conversation.hear(said)
        self._unanswered = None

    def _show(self, answer: Any, before: str = "") -> str:
        said = before
        output.write(before)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                for piece in answer:
                    output.write(piece)
                    said += piece
        except UserError:
            output.line()
            self.conversation.turns.pop()  # the question, which has no answer
            raise
        answer.cancel()
        output.line()
        if answer.finish_reason in ("length", "context"):
            log.note(f"cut off after {answer.n_tokens} tokens")
        return said

    def do_help(self, _: str) -> None:
        """Show the commands."""
        log.info(HELP)

    def do_reset(self, _: str) -> None:
        """Forget the conversation."""
        self.conversation.forget()
        self.last = self._unanswered = None

    def do_system(self, text: str) -> None:
        """Begin anew under a system message."""
        self.conversation.start(text or None)
        self.last = self._unanswered = None

    def do_set(self, words: str) -> None:
        r"""Change settings, all or none of them; without words, show them. `stop=` takes the rest of the line."""
        words, given, stop = words.partition("stop=") if words.startswith("stop=") else words.partition(" stop=")
        sampling = self.options["sampling"]
        kinds: dict[str, Any] = {knob.name: type(knob.default) for knob in knobs()}
        new: dict[str, Any] = {}
        for word in words.split():
            name, _, value = word.partition("=")
            kind = int if name == "max_new_tokens" else kinds.get(name)
            if kind is None:
                raise UsageError(f"no setting '{name}'{did_you_mean(name, [*kinds, 'max_new_tokens', 'stop'])}")
            try:
                new[name] = kind(value)
            except ValueError:
                raise UsageError(f"{word} must be a number, as in /set temperature=0.7") from None
        n_tokens = new.pop("max_new_tokens", self.options["max_new_tokens"])
        if n_tokens < 1:
            raise UsageError(f"max_new_tokens={n_tokens} must be 1 or more")
        self.options |= {"sampling": dataclasses.replace(sampling, **new), "max_new_tokens": n_tokens}
        self.options |= {"stop": [with_signs(stop)] if stop else []} if given else {}
        values = {name: getattr(self.options["sampling"], name) for name in kinds}
        log.info(" ".join(f"{name}={value}" for name, value in {**values, "max_new_tokens": n_tokens}.items()))
        if self.options.get("stop"):
            log.info("stop=" + " stop=".join(map(repr, self.options["stop"])))

    def do_seed(self, word: str) -> None:
        """Fix the seed, or let each answer have a new one."""
        seed = whole(word, "a seed") if word else None
        if seed is not None and seed < 0:
            raise UsageError(f"a seed must be 0 or more, not {seed}")
        self.options["seed"] = seed

    def do_undo(self, _: str) -> None:
        """Take the last question and its answer back."""
        self._take_back()

    def do_retry(self, _: str) -> None:
        """Answer the last question anew; with a seed, with the next one."""
        self.ask(self._take_back())

    def do_edit(self, text: str) -> None:
        """Ask another question in the last one's place."""
        if not text:
            raise UsageError("/edit needs the question in its new words")
        self._take_back()
        self.ask(text)

    def _take_back(self) -> str:
        if self._unanswered is not None:
            question, self._unanswered = self._unanswered, None
            return question
        turns = self.conversation.turns
        if not turns:
            raise UsageError("nothing was asked yet")
        self.last = None
        if turns[-1].role == "assistant":
            turns.pop()
        return turns.pop().content if turns else ""

    def do_save(self, name: str) -> None:
        """Write the conversation; a file that is no conversation of ours is not replaced."""
        path = _path(name)
        if path.exists():
            _read_conversation(path)
        messages = [vars(message) for message in [*self.conversation.system, *self.conversation.turns]]
        with writing_to(path, hint=None):
            text = json.dumps({"format": FORMAT, "messages": messages}, ensure_ascii=False, indent=1)
            write_text(path, text + "\n")
        log.note(f"saved {len(messages)} messages to {path}")

    def do_load(self, name: str) -> None:
        """Go on with a conversation that was saved."""
        path = _path(name)
        messages = _read_conversation(path)
        system = [message for message in messages if message.role == "system"]
        self.conversation.start(system[0].content if system else None)
        self.conversation.turns = [message for message in messages if message.role != "system"]
        self.last = self._unanswered = None
        log.note(f"loaded {len(messages)} messages from {path}")

    def _looked_at(self) -> tuple[Conversation, Answer]:
        if isinstance(self.conversation, RemoteConversation):
            raise UsageError("only a model of this machine can be looked into: mini-llm chat RUN")
        if self.last is None:
            raise UsageError("there is no answer to look at: ask something first")
        return self.conversation, self.last

    def do_tokens(self, _: str) -> None:
        """Show the last answer token by token."""
        conversation, last = self._looked_at()
        log.console().print(tinted(conversation.generator.tokenizer, last))

    def do_why(self, number: str) -> None:
        """Show how one token was drawn."""
        conversation, last = self._looked_at()
        log.info(why(conversation.generator.tokenizer, last.drawn_at(number)[1]))

    def do_branch(self, words: str) -> None:
        """Go on from another token than the one that came. The darts of what follows are thrown anew."""
        conversation, last = self._looked_at()
        number, _, rank = words.partition(" ")
        ids, kept = last.branch(number, rank)
        generator = conversation.generator
        decoded = text_after(generator.tokenizer, last.prompt_ids, ids)
        answer: Any = _Ended()
        if ids[-1] not in generator.engine.eos_ids:
            answer = conversation.go_on([*last.prompt_ids, *ids], **self.options)
        conversation.turns.pop()
        conversation.hear(self._show(answer, before=decoded))
        drawn = list(answer.ids.drawn) if isinstance(answer, Continuation) else []  # type: ignore[attr-defined]
        self.last = Answer(last.prompt_ids, [*kept, *drawn])

    def do_model(self, name: str) -> None:
        """Go on with another checkpoint of the run, or another model of the server."""
        if not name:
            raise UsageError("/model needs a step of the run, as in /model 500, or a server's model")
        if isinstance(self.conversation, RemoteConversation):
            self.conversation.use(name)
        elif self._load is not None:
            generator = self._load(name)
            generator.ready_to_chat()
            self.conversation.generator, self.last = generator, None
            log.note(f"now talking with {generator.folder}")


class _Ended(Iterator[str]):
    """What follows a token that ends the text."""

    finish_reason, n_tokens = "stop", 0

    def __next__(self) -> str:
        raise StopIteration

    def cancel(self) -> None:
        """Nothing is computed."""


def chat(
    generator: Generator,
    *,
    system: str | None,
    stop: Sequence[str],
    load: Callable[[str], Generator] | None = None,
    **options: Any,
) -> None:
    """Read questions from stdin until it ends, or until /exit, and stream the answers to stdout.

    Raises:
        UserError: the model has no chat template, or the weights are damaged.
    """
    generator.ready_to_chat()  # refused before the first question, not after
    StopStrings(stop)
    talk(Session(Conversation(generator, system), {**options, "stop": stop}, load))


def talk(session: Session, lines: Iterable[str] | None = None) -> None:
    """Obey line after line."""
    with kept_history():
        for line in typed_lines() if lines is None else lines:
            try:
                if not session.do(line):
                    return
            except UserError as problem:
                log.error(problem.message, problem.hint)


def _path(name: str) -> Path:
    if not name:
        raise UsageError("name a file, as in /save talk.json")
    path = Path(os.path.expanduser(name))  # Path's own raises where there is no such user
    kind_of(path)  # a name that no file can have is refused here: what escaped would end the conversation
    return path


def _read_conversation(path: Path) -> list[Message]:
    data = read_file(path)
    try:
        found = json.loads(data)
        messages = [Message(one["role"], one["content"]) for one in found["messages"]]
        if found["format"] != FORMAT or not all(isinstance(one.role + one.content, str) for one in messages):
            raise ValueError("another format")
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{path} holds no conversation that /save has written", "name another file") from None
    return messages
