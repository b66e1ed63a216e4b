"""Everything that a GPU must show, in one command: python benchmarks/gpu [--rehearse] [--only NAMES] [--out DIR]

A list of steps (steps.py), each with its own time limit, log and results; one that fails does not stop the next. At the
end a table, and in --out what is to be kept: results.tar.gz, and the flagship's pieces. `--rehearse` does the same on a
CPU at toy size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from check import ROOT, SITE, nvidia_smi, report
from steps import FLAGSHIP_SECONDS, Step, steps

HOME = ROOT / "build" / "gpu"
KEPT_FOR_THE_END = 10  # seconds of all that are not given to a step
LEAST = 15  # a step that would have fewer seconds is not begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="every step on a CPU, at toy size")
    parser.add_argument("--only", default="", help="names of steps, or beginnings of them, comma-separated")
    parser.add_argument("--minutes", type=float, default=9, help="all of it ends within so many; default 9")
    parser.add_argument("--out", type=Path, help="where to put what is to be kept; default build/gpu/out")
    options = parser.parse_args()
    home = HOME / "rehearsal" if options.rehearse else HOME
    out = options.out or home / "out"
    session = Session(home, options.rehearse, time.monotonic() + 60 * options.minutes)
    lines, problems = report("cpu" if options.rehearse else "cuda")
    print(lines, *problems, "" if options.rehearse else nvidia_smi(), sep="\n", flush=True)
    if problems:
        return 1
    wanted = [name for name in options.only.split(",") if name]
    chosen = [step for step in steps() if not wanted or any(step.name.startswith(name) for name in wanted)]
    needed = {step.after for step in chosen}
    session.flagship_is_due = any(step.name == "flagship" for step in chosen)
    for step in steps():
        if step in chosen or step.name in needed:
            session.run(step)
    session.finish()
    session.pack(out)
    print(session.table())
    print(f"\n{'rehearsed' if options.rehearse else 'measured'} in {session.elapsed():.0f} s; to be kept: {out}")
    return 0 if all(row["state"] in ("done", "no time was left") for row in session.rows.values()) else 1


class Session:
    """Runs steps one after the other, and remembers how each ended."""

    def __init__(self, home: Path, rehearse: bool, deadline: float) -> None:
        self.home, self.rehearse, self.deadline, self.began = home, rehearse, deadline, time.monotonic()
        self.results, self.logs = home / "results", home / "logs"
        for folder in (self.results, self.logs):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.rows: dict[str, dict[str, Any]] = {}
        self.beside: dict[str, tuple[subprocess.Popen[bytes], float, float]] = {}
        self.flagship_is_due = False

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.began

    def run(self, step: Step) -> None:
        """Run one step to its end, or start it where it runs beside others."""
        limit = step.rehearsed if self.rehearse else step.seconds
        left = self.deadline - time.monotonic() - KEPT_FOR_THE_END
        if step.name == "flagship":
            self.flagship_is_due = False
        elif self.flagship_is_due and not self.rehearse and not step.beside:
            left -= FLAGSHIP_SECONDS
        if left < LEAST:
            self.rows[step.name] = {"state": "no time was left", "seconds": 0.0, "said": ""}
            return
        if step.after in self.beside:
            self.wait(step.after)
        if step.after and self.rows.get(step.after, {}).get("state") != "done":
            self.rows[step.name] = {"state": "failed", "seconds": 0.0, "said": f"needs '{step.after}'"}
            return
        limit = min(limit, max(1.0, self.deadline - time.monotonic() - KEPT_FOR_THE_END))
        print(f"== {step.name} ({limit:.0f} s at most)", flush=True)
        words = step.toy if self.rehearse else step.real
        log = self.log_path(step.name).open("wb")
        env = self.environment(limit)
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.beside[step.name] = process, time.monotonic(), limit
        if not step.beside:
            self.wait(step.name)

    def environment(self, limit: float) -> dict[str, str]:
        """Return what every step sees: the source tree and the wheels, where results go, and how long it has."""
        path = os.pathsep.join(
            filter(None, [str(ROOT), str(SITE) if SITE.is_dir() else "", os.environ.get("PYTHONPATH")])
        )
        more = {
            "MINI_LLM_RESULTS": str(self.results),
            "MINI_LLM_SECONDS": f"{limit:.0f}",
            "MINI_LLM_GPU_HOME": str(self.home),
        }
        if self.rehearse:  # compiling is tested elsewhere, and takes minutes for all of them
            more |= {
                "MINI_LLM_REHEARSE": "1",
                "TORCHDYNAMO_DISABLE": "1",
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
            }
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "160", **more}

    def wait(self, name: str) -> None:
        """Wait for a step, at most until its limit, and end all that it started."""
        process, began, limit = self.beside.pop(name)
        ended = process.poll() is not None  # beside others, some time ago: when it said its last word
        try:
            code = process.wait(max(0.1, began + limit - time.monotonic()))
            state = "done" if code == 0 else f"failed, exit {code}"
        except subprocess.TimeoutExpired:
            state = "its time was over"
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(3)
            except (ProcessLookupError, PermissionError):
                break
            except subprocess.TimeoutExpired:
                continue
        seconds = time.monotonic() - began
        if ended:
            seconds -= max(0.0, time.time() - self.log_path(name).stat().st_mtime)
        said = [line for line in self.log(name).splitlines() if line.strip()]
        self.rows[name] = {
            "state": state,
            "seconds": round(seconds, 1),
            "said": (said or [""])[-1][:100],
        }
        if state != "done":
            print("\n".join(said[-25:]), flush=True)
        elif name != "text":
            print(
                "\n".join(line for line in said if line.startswith(("|", "Eight", "=", "SKIPPED")))[:4000], flush=True
            )

    def log(self, name: str) -> str:
        """Return what a step has written."""
        return self.log_path(name).read_text(encoding="utf-8", errors="replace")

    def log_path(self, name: str) -> Path:
        """Return the file of a step's log."""
        return self.logs / f"{name.replace(' ', '-')}.txt"

    def finish(self) -> None:
        """Wait for what still runs."""
        for name in list(self.beside):
            self.wait(name)

    def table(self) -> str:
        """Return how each step ended."""
        lines = ["", "| step | state | seconds | only CUDA can do |", "| --- | --- | --- | --- |"]
        for step in steps():
            if row := self.rows.get(step.name):
                only = step.only_cuda if self.rehearse else ""
                lines.append(f"| {step.name} | {row['state']} | {row['seconds']:.0f} | {only} |")
        return "\n".join(lines)

    def pack(self, out: Path) -> None:
        """Put results and logs as one archive, and the pieces of the run, into `out`."""
        out.mkdir(parents=True, exist_ok=True)
        summary = {
            "rehearsal": self.rehearse,
            "card": nvidia_smi(),
            "seconds": round(self.elapsed(), 1),
            "steps": self.rows,
        }
        (self.results / "gpu.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        if not self.rehearse:
            for result in self.results.glob("*.json"):
                if result.name != "gpu.json":
                    shutil.copy(result, ROOT / "benchmarks" / "results")
        with tarfile.open(out / "results.tar.gz", "w:gz") as archive:
            for folder in (self.results, self.logs, self.home / "shown"):
                if folder.is_dir():
                    archive.add(folder, arcname=folder.name)
        for piece in sorted((self.home / "pieces").glob("*.tar.[0-9]*")):
            shutil.copy(piece, out)


if __name__ == "__main__":
    sys.exit(main())
