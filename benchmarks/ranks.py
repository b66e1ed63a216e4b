"""Is it one run, whoever computes it? Killed and gone on with by 1, 2, 1 and 4 processes, beside one never disturbed.

Each stage is the same command under another torchrun, with weights and optimizer spread in another way; all processes
of it are killed with -9 once it has passed its share of the steps, and the next stage goes on from the last checkpoint.
Every process adds up a CRC-32 of the rows that it learns from: together they must have seen, in every step, the
rows that one process sees. The model has 64,000 parameters, in float32 and without dropout, which each process would
draw for itself. What is shown is the largest difference of a step's loss from that of the undisturbed process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _crash_runs import as_words, make_run
from _harness import finish, machine, note, table

STEPS, SAVE_INTERVAL = 80, 5
STAGES = (
    ("one process", 1, {}),
    ("two, in shares", 2, {"parallel.shard": "full", "parallel.gather_up_to": 0}),
    ("one process", 1, {}),
    ("four, products and shares", 4, {"parallel.shard": "full", "parallel.tensor": 2, "parallel.gather_up_to": 0}),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", nargs="+", choices=("adamw", "muon"), default=["adamw", "muon"])
    parser.add_argument("--quick", action="store_true", help="AdamW alone, and no result file")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mini-llm-ranks-") as name:
        found = [measure(Path(name), optimizer) for optimizer in (args.optimizer[:1] if args.quick else args.optimizer)]
    rows = [[run["optimizer"], *stage.values()] for run in found for stage in run["stages"]]
    head = ["optimizer", "stage", "processes", "steps", "done again", "steps with other rows", "loss off by at most"]
    print(table(head, [[str(cell) for cell in row] for row in rows]))
    for run in found:
        print(f"{run['optimizer']}: held-out loss {run['held_out']:.6f}, undisturbed {run['held_out_alone']:.6f}")
    finish("ranks", {"runs": found, "machine": machine()}, as_json=args.json, keep=not args.quick)
    return 1 if any(stage["other_rows"] for run in found for stage in run["stages"]) else 0


def measure(folder: Path, optimizer: str) -> dict[str, Any]:
    """Return what became of the stages with one optimizer."""
    from mini_llm.train.run.metrics import read_metrics

    folder = folder / optimizer
    folder.mkdir()
    settings = make_run("train", folder, "cpu") | {
        "max_iters": STEPS, "eval_interval": STEPS, "save_interval": SAVE_INTERVAL, "skip_spikes": None,
        "model.dropout": 0.0, "optimizer": optimizer, "sample_interval": None, "keep_last": 99,
        "gradient_accumulation_steps": 2, "async_save": False, "model.tie_embeddings": False,
    }  # fmt: skip
    alone, run = folder / "alone", folder / "run"
    start(alone, folder / "rows-alone", settings, 1).wait()
    begun, stages = 0, []
    for number, (name, processes, spread) in enumerate(STAGES):
        until = STEPS * (number + 1) // len(STAGES)
        ended = train_until(run, folder / f"rows-{number}", {**settings, **spread}, processes, until)
        stages.append({"stage": name, "processes": processes, "first": begun + 1, "last": ended})
        begun = max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)
        stages[-1]["saved"] = begun
        note(f"  {optimizer}: {processes} process(es) to step {ended}, saved {begun}")
    losses = [{row["step"]: row["loss"] for row in read_metrics(of) if "loss" in row} for of in (run, alone)]
    held_out = [next(row["val_loss"] for row in reversed(read_metrics(of)) if "val_loss" in row) for of in (run, alone)]
    one = seen_rows(folder / "rows-alone", 1)
    shown = []
    for number, stage in enumerate(stages):
        tensor = int(STAGES[number][2].get("parallel.tensor", 1))  # neighbours see the same rows
        steps = range(stage["first"], stage["saved"] + 1)
        rows = seen_rows(folder / f"rows-{number}", tensor)
        if min(rows) != stage["first"]:
            sys.exit(f"stage {number + 1} began with step {min(rows)} and not where the one before it had saved")
        shown.append({
            "stage": stage["stage"], "processes": stage["processes"], "steps": f"{stage['first']} to {stage['saved']}",
            "done_again": stage["last"] - stage["saved"],
            "other_rows": sum(rows.get(step) != one[step] for step in steps),
            "loss_off_by": f"{max(abs(losses[0][step] - losses[1][step]) for step in steps):.1e}",
        })  # fmt: skip
    return {"optimizer": optimizer, "stages": shown, "held_out": held_out[0], "held_out_alone": held_out[1]}


def train_until(run: Path, rows: Path, settings: dict[str, Any], processes: int, until: int) -> int:
    """Train with so many processes, kill all of them after step `until` or let them end; return the last step seen."""
    from mini_llm.train.run.metrics import read_metrics

    def last() -> int:
        return max((row["step"] for row in read_metrics(run) if "loss" in row), default=0)

    job, kills = start(run, rows, settings, processes), False
    while job.poll() is None:
        if kills := until < STEPS and last() > until:
            for pid in [job.pid, *(int(path.name.partition("-")[2]) for path in rows.iterdir())]:
                with contextlib.suppress(ProcessLookupError):  # torchrun's processes outlive it
                    os.kill(pid, signal.SIGKILL)
            job.wait()
        time.sleep(0.005)
    if job.returncode and not kills:
        sys.exit(f"the stage of {processes} process(es) ended with {job.returncode}")
    return last()


def start(run: Path, rows: Path, settings: dict[str, Any], processes: int) -> subprocess.Popen[bytes]:
    """Start the command."""
    rows.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [__file__, "train", *as_words({**settings, "out_dir": str(run)})]
    command = [sys.executable, *(torchrun if processes > 1 else ()), *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RANKS_ROWS": str(rows)}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seen_rows(folder: Path, tensor: int) -> dict[int, int]:
    """Return of each step the sum over its rows' checksums, whoever saw them."""
    sums: dict[int, int] = {}
    for path in folder.iterdir():
        for line in path.read_text(encoding="ascii").splitlines():
            step, value = json.loads(line)
            sums[step] = sums.get(step, 0) + value
    return {step: value // tensor for step, value in sums.items()}


def train_and_tell() -> None:
    """Be `mini-llm train`, and write the checksum of this process's rows of each step to a file."""
    from mini_llm import ranks
    from mini_llm.cli import main as command_line
    from mini_llm.train.parallel.world import World
    from mini_llm.train.step import Stepper

    plain_own, plain_backward, now = World.own, Stepper._backward, [0]
    file = (Path(os.environ["RANKS_ROWS"]) / f"{ranks.rank()}-{os.getpid()}").open("a", encoding="ascii")

    def own(world: World, rows: Any) -> Any:
        mine = plain_own(world, rows)
        print(json.dumps([now[0] + 1, sum(zlib.crc32(row.numpy().tobytes()) for row in mine)]), file=file, flush=True)
        return mine

    def backward(stepper: Stepper, step: int) -> Any:
        now[0] = step
        return plain_backward(stepper, step)

    World.own, Stepper._backward = own, backward  # type: ignore[method-assign]
    command_line()


if __name__ == "__main__":
    if "RANKS_ROWS" in os.environ:
        train_and_tell()
    else:
        sys.exit(main())
