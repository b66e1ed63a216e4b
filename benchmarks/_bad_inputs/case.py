"""A case: one bad input, the command that meets it, and what would be right; then the verdict on what came."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from _bad_inputs.hints import wrong_hint

GOOD = ("right", "refused", "told")
BAD = ("traceback", "hang", "abort", "silent", "lost", "escape", "wordless", "litter", "overkill", "misleading")
FAULTS = re.compile(r"Traceback \(most recent|Exception ignored in|Fatal Python error|panicked at|terminate called")
# What a terminal would obey: control characters and the C1 codes, but neither line ends, tabs and carriage returns
# nor the sequences that rich writes itself (colours, cursor movements).
OURS = re.compile(r"\x1b\[[0-9;]*[mABCDEFGHJK]|\x1b\[\?(25|2004|2026)[hl$p]+")
RAW = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass
class Outcome:
    """What a command left. `stdout` and `stderr` are bytes; under a pseudo-terminal both are in `stdout`."""

    code: int  # negative: the signal that ended it
    seconds: float
    timed_out: bool
    stdout: bytes
    stderr: bytes
    folder: Path  # the case's, as the command left it
    lost: list[str] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)

    @property
    def said(self) -> str:
        """Return what a person would have seen."""
        return (self.stderr + b"\n" + self.stdout).decode("utf-8", "replace")


Check = Callable[[Outcome], str | None]  # None: right; else what is wrong


@dataclass
class Case:
    """One bad input. `make` fills the empty folder in which the command runs.

    `refuse` and `accept` say which of both is right, or either. An accepted input is held against `check`; where that
    fails it must have been told in words (`told`, a pattern). `changes` are the files that the command may change:
    patterns of names, relative to the folder. All others must be as they were.
    """

    area: str
    name: str
    words: list[str]
    make: Callable[[Path], None]
    refuse: bool = True
    accept: bool = True
    check: Check | None = None
    told: str | None = None
    changes: tuple[str, ...] = ("out", "out/*")
    codes: tuple[int, ...] = ()  # right besides 0, 1 and 2: 141 of a reader that left, 130 of Ctrl-C
    stdin: str = "null"  # null, closed, folder, endless, or the name of a file in the folder
    stdout: str = "file"  # file, closed, full, left (a pipe whose reader is gone), terminal
    stderr: str = "file"
    limits: dict[str, int] = field(default_factory=dict)  # of resource.RLIMIT_..., in bytes or pieces
    env: dict[str, str] = field(default_factory=dict)
    kill: tuple[int, float] | None = None  # a signal, and after so many seconds
    deadline: float = 40.0
    fresh: bool = False  # a new interpreter rather than a fork of one
    script: str | None = None  # one of the seed's scripts instead of mini-llm
    nobody: bool = False  # as a user without rights
    may_litter: bool = False

    @property
    def is_terminal(self) -> bool:
        return self.stdout == "terminal"


def judge(case: Case, outcome: Outcome) -> tuple[str, str]:
    """Return the verdict, one of GOOD and BAD, and the reason in words."""
    said = outcome.said
    if outcome.timed_out:
        return "hang", f"still at work after {case.deadline:.0f} s"
    if outcome.code == -signal.SIGPIPE and 141 in case.codes:  # a shell calls it 141
        outcome.code = 141
    ended_by = -outcome.code if outcome.code < 0 else 0
    if ended_by and not (case.kill and ended_by == case.kill[0]):
        return "abort", f"ended by {signal.Signals(ended_by).name}"
    if fault := FAULTS.search(said):
        last = [line for line in said.splitlines() if line.strip()]
        return "traceback", next((line for line in reversed(last) if "Error" in line), fault[0])[:300]
    if outcome.lost:
        return "lost", ", ".join(outcome.lost[:4])
    if raw := _raw(case, outcome):
        return "escape", raw
    if outcome.litter and not ended_by and not case.may_litter:
        return "litter", ", ".join(outcome.litter[:4])
    if ended_by or outcome.code in case.codes:
        return "right", f"exit {outcome.code}"
    if outcome.code == 0:
        return _judge_success(case, outcome)
    if outcome.code not in (1, 2):
        return "wordless", f"exit {outcome.code}"
    words = said.strip().splitlines()
    heard = case.stderr not in ("closed", "full", "left", "null")
    if heard and not re.search(r"error", said, re.IGNORECASE):
        return "wordless", f"exit {outcome.code}: {words[-1][:200] if words else 'not a word'}"
    if not case.refuse:
        return "overkill", words[0][:300] if words else "refused"
    if not case.script and (wrong := wrong_hint(case.words, outcome.stderr.decode("utf-8", "replace"))):
        return "misleading", wrong
    return "refused", words[0][:200] if words else ""


def _judge_success(case: Case, outcome: Outcome) -> tuple[str, str]:
    wrong = None if case.accept else "taken without a word"
    if case.accept and case.check:
        wrong = case.check(outcome)
    if wrong is None:
        return "right", ""
    if case.told and (words := re.search(case.told, outcome.said, re.IGNORECASE)):
        return "told", words[0]
    return "silent", wrong[:300]


def _raw(case: Case, outcome: Outcome) -> str | None:
    """Return what a terminal would have obeyed. A pipe gets results byte for byte: there only messages count."""
    shown = outcome.stdout if case.is_terminal else outcome.stderr
    text = OURS.sub("", shown.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", ""))
    found = RAW.search(text)
    return f"{found[0]!r} in {text[max(0, found.start() - 30) : found.start() + 30]!r}" if found else None
