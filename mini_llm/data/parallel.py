"""A large corpus is prepared by several processes, part by part; what is done stays done when the work is stopped.

The parts lie in `.NAME.parts` beside the store until it is whole. No token is copied when they become one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mini_llm import log
from mini_llm.data.part_worker import Work
from mini_llm.data.parts import PARTS_FOLDER, Part, PartRecord, cut, only_named, read_part
from mini_llm.data.reading import Reading
from mini_llm.data.remote import File, name_of
from mini_llm.data.store_writer import TokenStoreWriter
from mini_llm.errors import Interrupted, UserError
from mini_llm.files import check_replaceable
from mini_llm.temporary import lock, temporary_name
from mini_llm.threads import Worker as Thread
from mini_llm.tokenizer.fast import DifferentIds, slower
from mini_llm.user_files import shown

Answers = queue.SimpleQueue[tuple["_Process", dict[str, Any] | None]]


@contextlib.contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """Yield the folder for the parts of the store at `out`. It vanishes when the block ends well.

    Else the parts that are done stay for the next run, and the message says so; not where another run has this folder,
    or the disk knows no locks: then it is one of this run alone.

    Raises:
        UserError: something else lies there, or what the block raised, or the disk is full.
        Interrupted: a signal came.
    """
    folder = out.absolute().with_name(f".{out.name}.parts")
    check_replaceable(folder, PARTS_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder)
    if held is None:
        folder = temporary_name(out.absolute())
        folder.mkdir()
    try:
        try:
            yield folder
        finally:
            for made in (*folder.glob("lines-*.jsonl"), *folder.glob("fetched-*")):
                _remove(made)
    except BaseException as problem:
        done = len(list(folder.glob("part-*")))
        if held is None or not done or isinstance(problem, DifferentIds):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        kept = (
            f"{done:,} part{'s' * (done != 1)} of it are kept in {shown(folder)}: the same command goes on from there"
        )
        if isinstance(problem, Interrupted):
            raise Interrupted(problem.exit_code - 128, f"{problem.message}; {kept}") from None
        if isinstance(problem, UserError):
            raise type(problem)(problem.message, f"{problem.hint}\n{kept}" if problem.hint else kept) from None
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk is full: {shown(out)} was not written", f"make room; {kept}") from None
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        if held is not None:
            os.close(held)


def fill_in_parts(
    writer: TokenStoreWriter,
    files: list[File],
    work: Work,
    workers: int,
    reading: Reading,
    show: Callable[[int], None],
    max_tokens: int | None = None,
) -> None:
    """Fill a store from `files` by `workers` processes, and count in `reading` what was read.

    `show` is told how many bytes of the files are done. The part that reaches `max_tokens` is the last.

    Raises:
        UserError: some text is damaged, or a process died.
        DifferentIds: the faster library cannot be trusted with this text.
        OSError: a part cannot be written.
    """
    folder, records = Path(work.folder), {}

    def is_done(number: int, key: str) -> bool:
        record = read_part(folder / f"part-{number:05d}")
        return record is not None and record.key == key

    def is_enough(parts: list[Part]) -> bool:
        """Tell whether the first parts, as far as all of them are done, have `max_tokens`."""
        tokens = 0
        for part in parts if max_tokens is not None else ():
            if part.number not in records:
                if not is_done(part.number, part.key):
                    return False
                records[part.number] = read_part(folder / part.folder_name)
            record = records[part.number]
            tokens += sum(split.tokens for split in record.splits.values()) if record else 0
            if tokens >= (max_tokens or 0):
                del parts[parts.index(part) + 1 :]
                return True
        return False

    crew = _Crew(work, workers, show)
    try:
        todo = cut(files, work.settings(), folder, is_done)
        if max_tokens is None and only_named(files):  # the largest first, or one process does it while the others rest
            todo = iter(sorted(todo, key=lambda part: -part.weight))
        parts = sorted(crew.do_all(todo, is_done, is_enough), key=lambda part: part.number)
    finally:
        crew.end()
    found = []
    for part in parts:
        record = read_part(folder / part.folder_name)
        if record is None:
            raise UserError(f"{shown(folder / part.folder_name)} was changed meanwhile", "run the same command again")
        writer.adopt(folder / part.folder_name, record.splits)
        found.append((part, record))
    read_names = {piece.name for part in parts for piece in part.slices}
    _add_up(found, [file for file in files if name_of(file) in read_names], reading)


def _add_up(records: list[tuple[Part, PartRecord]], files: list[File], reading: Reading) -> None:
    with_text = set()
    for part, record in records:
        with_text |= {part.slices[place].name for place in record.with_text}
        reading.documents += record.documents
        for kind, number in record.left_out.items():
            reading.leave_out(kind, record.examples[kind], number)
    reading.files += len(with_text)
    for name in map(name_of, files):
        if name not in with_text:
            reading.leave_out("files without text", name)


def _remove(made: Path) -> None:
    if made.is_dir():
        shutil.rmtree(made, ignore_errors=True)
    else:
        made.unlink(missing_ok=True)


class _Process:
    """A worker, and a thread that hears it."""

    def __init__(self, work: Work, answers: Answers) -> None:
        command = [sys.executable, "-m", "mini_llm.data.part_worker"]
        environment = {**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        self._tell(dataclasses.asdict(work))
        self.part: Part | None = None
        self.share = 0.0  # of its part that is done
        Thread(lambda: self._hear(answers))

    def give(self, part: Part) -> None:
        """Let it work on `part`."""
        self.part, self.share = part, 0.0
        self._tell(dataclasses.asdict(part))

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()

    def code(self) -> int:
        """Return the exit code."""
        return self._process.wait()

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: that is heard
            print(json.dumps(message), file=self._process.stdin, flush=True)

    def _hear(self, answers: Answers) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                answers.put((self, json.loads(line)))
        answers.put((self, None))


class _Crew:
    """The workers, started when there is something to do for them."""

    def __init__(self, work: Work, most: int, show: Callable[[int], None]) -> None:
        self._work, self._most, self._show = work, most, show
        self._answers: Answers = queue.SimpleQueue()
        self._all: list[_Process] = []
        self._idle: list[_Process] = []
        self._done = 0  # bytes of the parts that are done
        self._slower = ""  # why, once it was told

    def do_all(
        self,
        parts: Iterator[Part],
        is_done: Callable[[int, str], bool],
        is_enough: Callable[[list[Part]], bool],
    ) -> list[Part]:
        """Do those parts that are not done; return all, in order, as far as they are enough."""
        found = []
        for part in parts:
            found.append(part)
            if is_done(part.number, part.key):
                self._done += part.weight
                if is_enough(found):
                    return found
                continue
            while not self._idle and len(self._all) >= self._most:
                self._wait()
            if is_enough(found):
                return found
            if not self._idle:
                self._all.append(_Process(self._work, self._answers))
                self._idle.append(self._all[-1])
            self._idle.pop().give(part)
        while len(self._idle) < len(self._all) and not is_enough(found):
            self._wait()
        return found

    def end(self) -> None:
        """End all."""
        for process in self._all:
            process.end()

    def _wait(self) -> None:
        process, answer = self._answers.get()
        part = process.part
        if answer is None or part is None:
            raise UserError(
                f"a process that tokenizes ended with code {process.code()}",
                "was there too little memory? Fewer need less: --workers 1",
            )
        if "done" in answer:
            process.share = answer["done"]
        elif "finished" in answer:
            self._done += part.weight
            process.part, process.share = None, 0.0
            self._idle.append(process)
            if part.made:
                _remove(Path(part.made))
        elif "slower" in answer:
            if not self._slower:
                log.note(slower(answer["slower"]))
            self._slower = answer["slower"]
        elif "differs" in answer:
            raise DifferentIds
        elif "errno" in answer:
            raise OSError(answer["errno"], answer["message"])
        else:
            raise UserError(answer["message"], answer["hint"])
        busy = sum(other.share * other.part.weight for other in self._all if other.part is not None)
        self._show(self._done + int(busy))
