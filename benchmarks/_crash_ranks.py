"""One of several processes is killed with -9, and torchrun starts all of them again: `crash.py --ranks N`.

A job is torchrun with `--max-restarts`; a life is what lies between two of its starts. Half of the jobs write
checkpoints in shares, by all processes, the others gather them; half of each in the background. The dice choose which
process dies. Three kinds of ends take turns, as in crash.py, and a job that reaches its end is compared with one that
was never disturbed, byte for byte: the same shape of job gives the same bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

from _crash_runs import as_words, make_run

ENDS = ("any moment", "while saving", "disk full")
REFUSALS = ("File too large", "file-size limit of this process")  # the kernel's words, and ours
MOST_LIVES = 200  # of a job
MOST_OF_A_JOB = 8  # kills: then it may go on to its end
MOST_SECONDS = 300  # that a life may take: a job that hangs is an error


class Job:
    """torchrun with its processes; `folder` is where they tell their pids."""

    def __init__(self, ranks: int, words: list[str], folder: Path, limits: dict[int, int]) -> None:
        self.ranks, self.folder, self.said = ranks, folder, ""
        for mark in folder.glob("life-*"):
            mark.unlink()
        (folder / "limits.json").write_text(json.dumps({str(k): v for k, v in limits.items()}), encoding="ascii")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        entry = str(Path(__file__).with_name("_crash_rank.py"))
        self.process = subprocess.Popen(
            [*torchrun, f"--max-restarts={MOST_LIVES}", entry, "train", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "CRASH_FOLDER": str(folder), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        )
        self.listener = threading.Thread(target=self._listen, args=(self.process.stderr,), daemon=True)
        self.listener.start()

    def _listen(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            self.said += line.decode(errors="replace")

    def pids(self, life: int) -> list[int]:
        """Return the pids of a life's processes, by rank; none until all have told theirs."""
        try:
            return [int((self.folder / f"life-{life}-{rank}").read_text()) for rank in range(self.ranks)]
        except FileNotFoundError:
            return []

    def is_over(self) -> bool:
        """Tell whether torchrun has ended."""
        return self.process.poll() is not None

    def wait_until(self, condition: Callable[[], object], seconds: float) -> bool:
        """Return True as soon as `condition`, False when torchrun or the time has ended before."""
        end = time.monotonic() + seconds
        while not condition():
            if self.is_over() or time.monotonic() > end:
                return bool(condition())
            time.sleep(0.001)
        return True

    def end(self) -> int:
        """End what is left of it, and return torchrun's exit status."""
        if not self.is_over():
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()
        code = self.process.wait()
        self.listener.join(10)
        return code


def is_alive(pid: int) -> bool:
    """Tell whether the process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def unfinished(run: Path) -> set[str]:
    """Return the names of the checkpoints that are being written, or were when somebody was killed."""
    try:
        return {name for name in os.listdir(run / "checkpoints") if ".tmp-" in name}
    except FileNotFoundError:
        return set()


class RanksCampaign:
    """Kills one process of one job after the other, and counts what goes wrong."""

    def __init__(self, ranks: int, folder: Path, seed: int, note: Callable[[str], None]) -> None:
        self.ranks, self.folder, self.dice, self.note = ranks, folder, random.Random(seed), note
        self.settings = make_run("train", folder, "cpu") | {"model.dropout": 0.1}
        self.count: Counter[str] = Counter()
        self.lost_max = 0
        self.different: list[str] = []
        self.unreadable: list[str] = []
        self.errors: list[str] = []
        for kind in ("shares", "gathered"):
            job = Job(ranks, self.words(folder / kind, kind, is_async=False), folder, {})
            began = time.monotonic()
            if not job.wait_until(job.is_over, MOST_SECONDS) or job.end() != 0:
                job.end()
                sys.exit(f"the undisturbed job failed:\n{job.said[-2000:]}")
            self.seconds = time.monotonic() - began  # of a whole job, its start included
        self.largest = max(path.stat().st_size for path in (folder / "gathered").glob("latest/**/*"))
        note(f"  a whole job of {ranks} processes takes {self.seconds:.1f} s")

    def words(self, run: Path, kind: str, *, is_async: bool) -> list[str]:
        """Return the settings of a job as words."""
        spread = {"parallel.shard": "full", "parallel.gather_up_to": 0 if kind == "shares" else 10**9}
        return as_words({**self.settings, **spread, "out_dir": str(run), "async_save": is_async})

    @property
    def kills(self) -> int:
        """How many processes have been killed."""
        return sum(self.count[how] for how in ENDS)

    def run_job(self, wanted: int) -> None:
        """Start a job, kill in each of its lives until `wanted` kills are reached in all, and compare its end."""
        number = self.count["jobs"]
        self.count["jobs"] += 1
        kind, run = ("shares", "gathered")[number % 2], self.folder / f"job-{number}"
        offset = self.dice.randrange(3)
        fates = [ENDS[(life + offset) % 3] for life in range(MOST_LIVES)]
        most = self.largest * 11 // 10
        limits = {life: self.dice.randrange(1000, most) for life, how in enumerate(fates) if how == "disk full"}
        job = Job(self.ranks, self.words(run, kind, is_async=number % 4 < 2), self.folder, limits)
        for life, how in enumerate(fates):
            if not job.wait_until(lambda life=life: job.pids(life), MOST_SECONDS):
                break
            before = self.seen_checkpoints(run)
            if self.kills < wanted:
                self.end_life(job, life, how, run)
            if not job.wait_until(lambda life=life: not any(map(is_alive, job.pids(life))), MOST_SECONDS):
                self.errors.append(f"job {number}, life {life} ({how}): it hangs; {job.said[-500:]}")
                break
            self.check(run, f"job {number}, life {life} ({how})", before)
            if job.wait_until(job.is_over, 0.3):
                break
        code = job.end()
        if code != 0 or "Traceback (most recent" in job.said:
            self.errors.append(f"job {number}: exit {code}: {job.said[-1500:]}")
            return
        self.count["finished"] += 1
        self.compare(run, kind, f"job {number} ({kind})")

    def end_life(self, job: Job, life: int, how: str, run: Path) -> None:
        """Kill one process of this life, at the moment that its fate says; a full disk may end it before."""
        pids = job.pids(life)
        rank = self.dice.randrange(self.ranks)

        def is_over() -> bool:
            return not all(map(is_alive, pids))

        if how == "any moment":
            job.wait_until(is_over, self.dice.random() * self.seconds)
        else:
            begun, seen, old = (self.dice.randrange(1, 4) if how == "while saving" else 1), set[str](), unfinished(run)

            def writes() -> bool:
                seen.update(unfinished(run) - old)  # without what the life before it has left behind
                return len(seen) >= begun or is_over()

            job.wait_until(writes, MOST_SECONDS)
            if how == "disk full" and self.dice.random() < 0.5:
                job.wait_until(is_over, self.seconds)  # time enough to meet it
            time.sleep(self.dice.random() * 0.02)
        if is_over():  # by itself: at its end, or with the disk full
            self.count["ended by itself"] += 1
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[rank], signal.SIGKILL)
            self.count[how] += 1
            self.count[f"rank {rank}"] += 1
            if list((run / "checkpoints").glob(".*")):
                self.count["half-written"] += 1

    def seen_checkpoints(self, run: Path) -> int:
        """Return the newest step that is saved."""
        from mini_llm.pointers import list_checkpoints

        return max((step for step, _ in list_checkpoints(run)), default=0)

    def check(self, run: Path, where: str, before: int) -> None:
        """Read every checkpoint; count the steps that the next life must repeat; no saved step may be gone."""
        from mini_llm.checkpoint import verify_checkpoint
        from mini_llm.errors import UserError
        from mini_llm.pointers import list_checkpoints
        from mini_llm.train.run.metrics import read_metrics

        self.count["lives"] += 1
        checkpoints = list_checkpoints(run)
        for _, folder in checkpoints:
            try:
                verify_checkpoint(folder, training_state=True)
            except UserError as problem:
                self.unreadable.append(f"{where}: {problem}")
        newest = max((step for step, _ in checkpoints), default=0)
        if newest < before:
            self.unreadable.append(f"{where}: step {before} was saved and is gone")
        done = max((row["step"] for row in read_metrics(run)), default=0)
        self.lost_max = max(self.lost_max, done - newest)

    def compare(self, run: Path, kind: str, where: str) -> None:
        """Compare a finished job with the undisturbed one of its kind, byte for byte."""
        one, other = self.folder / kind, run
        names = [path.relative_to(one / "latest") for path in (one / "latest").rglob("*.safetensors")]
        for name in ["metrics.jsonl", "samples.jsonl", *(f"latest/{name}" for name in names)]:
            if (one / name).read_bytes() != (other / name).read_bytes():
                self.different.append(f"{where}: {name}")
        if os.readlink(one / "best") != os.readlink(other / "best"):
            self.different.append(f"{where}: best")
        if list((run / "checkpoints").glob(".*")):
            self.errors.append(f"{where}: a finished job has left half a checkpoint behind")
