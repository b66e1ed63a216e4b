"""Where do the minutes of `make demo` go, in a fresh clone with nothing compiled and pip's cache warm?

Installation, tokenizer, tokens, compiling, training and looks at it, told apart by when the command says what. Torch's
and Mini-LLM's caches are empty. `--quick` takes this environment as it is and trains for ten seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _harness import ROOT, finish, machine, note, table

# What a line of the command ends, in order.
ENDS = {
    "start": r"\[1/4\]",
    "tokenizer": r"\[2/4\]",
    "tokens": "measuring this machine",
    "compiling, and six steps to measure the machine": r"\[3/4\]",
    "a new model, its weights counted": "parameters .* on ",
    "first evaluation, compiled too": r"^step 0: held-out",
    "steps": r"\[4/4\]",
    "results": r"\Z(?!)",  # the command's end
}
AFTER = "evaluations, samples and checkpoints between them"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4, help="of training; default 4, the demo's own")
    parser.add_argument("--here", action="store_true", help="this environment, nothing is installed")
    parser.add_argument("--warm", action="store_true", help="with what torch and Mini-LLM have compiled before")
    parser.add_argument("--pip-flags", default="", help="PIP_FLAGS of make")
    parser.add_argument("--quick", action="store_true", help="--here --minutes 0.17")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    args = parser.parse_args()
    if args.quick:
        args.here, args.minutes = True, 0.17
    return args


def install(clone: Path, pip_flags: str) -> tuple[Path, dict[str, float]]:
    """Clone the repository, let make install the demo, and return its Python and the seconds of each part."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    seconds = {}
    for what, target in (("environment", ".venv/.made"), ("installation", ".venv/.demo")):
        note(f"  {what} ...")
        started = time.perf_counter()
        subprocess.run(["make", target, f"PIP_FLAGS={pip_flags}"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        seconds[what] = time.perf_counter() - started
    return next(path for path in clone.glob(".venv/*/python*") if path.stem == "python"), seconds


def demo(python: Path, out: Path, minutes: float, env: dict[str, str]) -> dict[str, float]:
    """Run the demo, and return the seconds of each part."""
    command = [str(python), "-m", "mini_llm", "demo", "--minutes", f"{minutes:g}", "--out", str(out)]
    seconds, parts = dict.fromkeys(ENDS, 0.0), iter(ENDS)
    part, since = next(parts), time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env, cwd=out.parent
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(ENDS[part], line):
                seconds[part], since = time.perf_counter() - since, time.perf_counter()
                part = next(parts)
                note(f"  {part} ...")
    seconds[part] = time.perf_counter() - since
    if process.returncode or part != "results":
        sys.exit(f"the demo ended with {process.returncode} in the middle of: {part}")
    training = seconds_of_steps(out / "run")
    return {**seconds, "steps": training, AFTER: seconds["steps"] - training}


def seconds_of_steps(run: Path) -> float:
    """Return what a run's steps alone have taken, as its own log tells their speed."""
    rows: dict[int, dict[str, Any]] = {}
    for name in ("metrics.jsonl", "timing.jsonl"):
        for line in (run / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.setdefault(row["step"], {}).update(row)
    total, before = 0.0, 0
    for _, row in sorted(rows.items()):
        if "tokens_per_second" in row:
            total += (row["tokens"] - before) / row["tokens_per_second"]
            before = row["tokens"]
    return total


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder, installed, python = Path(name), {}, Path(sys.executable)
        if not args.here:
            python, installed = install(folder / "clone", args.pip_flags)
        env = dict(os.environ)
        if not args.warm:
            for variable in ("TMPDIR", "XDG_CACHE_HOME"):
                (folder / variable).mkdir()
                env[variable] = str(folder / variable)
        seconds = installed | demo(python, folder / "demo", args.minutes, env)
    rows = [[part, f"{value:.1f}"] for part, value in seconds.items()]
    whole, training = sum(seconds.values()), seconds["steps"] + seconds[AFTER]
    sums = {"together": whole, "all but training": whole - training, "all but the steps": whole - seconds["steps"]}
    print(table(["", "seconds"], rows + [[f"**{name}**", f"{value:.1f}"] for name, value in sums.items()]))
    about = {"benchmark": "first_minutes", "machine": machine(), "minutes": args.minutes, "warm": args.warm}
    result = {**about, "installed": not args.here, "seconds": seconds}
    result |= {name.replace(" ", "_"): value for name, value in sums.items()}
    finish("first_minutes", result, as_json=args.json, keep=not args.quick)


if __name__ == "__main__":
    main()
