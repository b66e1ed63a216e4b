"""Does training lose anything when it is killed? A run is killed with -9 again and again, and resumed each time.

`--verb` chooses which: pretraining, fine-tuning (of all weights, or LoRA), preferences or reinforcement learning.

Lives end at random instants, inside the writing of a checkpoint, or with the disk full (a file may not grow beyond a
random size: the kernel refuses the write half-way, as a full disk does). Each kind gets a third of the kills; a life
that meets its full disk before it is killed ends by itself, and is no kill. Every other life saves in the background.
After each life every checkpoint is read and checked; a run that reaches its end is compared with one never disturbed.

`--ranks 2` kills one of two processes that train together under `torchrun --max-restarts`; see _crash_ranks.py.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _crash_runs import SAVE_INTERVAL, VERBS, as_words, make_run
from _harness import finish, machine, note, read_result, table, write_result

if TYPE_CHECKING:
    from _crash_ranks import RanksCampaign

STATE = ("training_state/optimizer.safetensors", "training_state/state.json")
REFUSALS = ("File too large", "file-size limit of this process")  # the kernel's words, and ours
ENDS = ("any moment", "while saving", "disk full")
CONTEXT = multiprocessing.get_context("forkserver")  # a life starts in milliseconds, with torch imported already
CONTEXT.set_forkserver_preload(["mini_llm.tune.dpo", "torch._dynamo"])


def live(words: list[str], stderr: str, file_limit: int | None) -> None:
    """In a process of its own: `mini-llm WORDS`."""
    sys.stderr = open(stderr, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 (ends with the process)
    sys.argv = ["mini-llm", *words]
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    import torch

    from mini_llm.cli import main

    torch.set_num_threads(1)
    main()


def best_of(run: Path) -> str | None:
    """Return which checkpoint `run` holds for its best, if any was."""
    return os.readlink(run / "best") if (run / "best").is_symlink() else None


class Campaign:
    """Kills and resumes one run after the other, and counts what goes wrong."""

    def __init__(self, verb: str, folder: Path, seed: int, device: str) -> None:
        self.verb, self.folder, self.dice = verb, folder, random.Random(seed)
        self.settings = make_run(verb, folder, device)
        self.results = ("adapter_model.safetensors" if verb == "lora" else "model.safetensors", *STATE)
        self.count: Counter[str] = Counter()
        self.began = 0  # this life, in nanoseconds
        self.lost_max = {"async": 0, "sync": 0}
        self.different: list[str] = []
        self.unreadable: list[str] = []
        self.errors: list[str] = []
        self.unbroken = folder / "unbroken"
        for run in (self.unbroken, folder / "again"):  # the first one also waits until torch is imported
            start = time.perf_counter()
            self.run = run
            if self.start().wait() != 0:
                sys.exit(f"the unbroken run failed:\n{self.stderr}")
        self.seconds = time.perf_counter() - start  # of a whole run
        self.largest = max(path.stat().st_size for path in self.run.glob("latest/**/*"))
        self.compare("undisturbed, twice")
        self.count["finished"] = 0

    def new_run(self) -> None:
        self.count["runs"] += 1
        self.run = self.folder / f"run-{self.count['runs']}"

    def start(self, *, async_save: bool = True, file_limit: int | None = None) -> Life:
        """Begin or resume the run."""
        words = as_words({**self.settings, "out_dir": str(self.run), "async_save": async_save})
        return Life(["sft" if self.verb == "lora" else self.verb, *words], self.folder / "stderr.txt", file_limit)

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")

    def life(self, how: str) -> bool:
        """Start or resume the run and end it `how`; tell whether it was killed."""
        is_async = self.count["lives"] % 2 == 0
        self.count["lives"] += 1
        most = self.largest * 11 // 10  # now and then enough for every file
        limit = self.dice.randrange(1_000, most) if how == "disk full" else None
        self.began = time.time_ns()
        life = self.start(async_save=is_async, file_limit=limit)
        if how == "while saving" or (how == "disk full" and self.dice.random() < 0.5):
            begun = self.dice.randrange(1, 4) if limit is None else 1  # which checkpoint of this life
            self.wait_for_writing(life, begun)
            time.sleep(self.dice.random() * 0.02)
        else:  # with the disk full, time enough to meet it, or to reach the run's end
            life.process.join(self.dice.random() * self.seconds / (1 if limit else 2))
        was_killed = life.kill()
        self.check(how, is_async, life, was_killed)
        return was_killed

    def wait_for_writing(self, life: Life, begun: int) -> None:
        """Return as soon as the `begun`-th unfinished checkpoint is there, or the life has ended."""
        seen: set[str] = set()
        while life.process.is_alive() and len(seen) < begun:
            with contextlib.suppress(FileNotFoundError):
                seen |= {name for name in os.listdir(self.run / "checkpoints") if ".tmp-" in name}

    def check(self, how: str, is_async: bool, life: Life, was_killed: bool) -> None:
        """Read every checkpoint; count the steps that the next life must repeat; compare a finished run."""
        from mini_llm.checkpoint import verify_checkpoint
        from mini_llm.errors import UserError
        from mini_llm.pointers import list_checkpoints
        from mini_llm.train.run.metrics import read_metrics
        from mini_llm.weights import read_tensors

        where = f"life {self.count['lives']} ({how})"
        checkpoints = list_checkpoints(self.run)
        for _, folder in checkpoints:
            try:
                verify_checkpoint(folder)
                for name in self.results[:2]:
                    read_tensors(folder / name)
            except UserError as problem:
                self.unreadable.append(f"{where}: {problem}")
        if self.has_trained():
            done = max((row["step"] for row in read_metrics(self.run)), default=0)
            lost = done - max((step for step, _ in checkpoints), default=0)
            mode = "async" if is_async else "sync"
            self.lost_max[mode] = max(self.lost_max[mode], lost)
        if was_killed:
            self.count[how] += 1
            if list((self.run / "checkpoints").glob(".*")):
                self.count["half-written"] += 1
        elif life.code == 0:
            self.compare(where)
        elif life.code == 1 and how == "disk full" and self.says_disk_full():
            self.count["refused"] += 1
        else:
            self.errors.append(f"{where}: exit {life.code}: {self.stderr[-500:]}")

    def says_disk_full(self) -> bool:
        """Tell whether the life ended with a user's error about it."""
        return "Traceback" not in self.stderr and any(text in self.stderr for text in REFUSALS)

    def has_trained(self) -> bool:
        """Tell whether this life came to its first line; else the lines, and the loss, are those of the life before."""
        metrics = self.run / "metrics.jsonl"
        return metrics.exists() and metrics.stat().st_mtime_ns > self.began

    def compare(self, where: str) -> None:
        """Compare a finished run with the unbroken one, byte for byte, and begin the next."""
        names = ["metrics.jsonl", *(f"latest/{name}" for name in self.results)]
        names += ["samples.jsonl"] if (self.unbroken / "samples.jsonl").exists() else []
        for name in names:
            if (self.run / name).read_bytes() != (self.unbroken / name).read_bytes():
                self.different.append(f"{where}: {name}")
        if best_of(self.run) != best_of(self.unbroken):
            self.different.append(f"{where}: best")
        if list((self.run / "checkpoints").glob(".*")):
            self.errors.append(f"{where}: a finished run has left half a checkpoint behind")
        self.count["finished"] += 1
        shutil.rmtree(self.run)
        self.new_run()

    def finish_run(self) -> None:
        """Let the last run reach its end."""
        self.began = time.time_ns()
        life = self.start()
        life.wait()
        self.count["lives"] += 1
        self.check("to the end", True, life, was_killed=False)


class Life:
    """One process of `mini-llm`."""

    def __init__(self, words: list[str], stderr: Path, file_limit: int | None) -> None:
        self.process = CONTEXT.Process(target=live, args=(words, str(stderr), file_limit))
        self.process.start()

    def wait(self) -> int | None:
        self.process.join(300)
        self.kill()
        return self.code

    def kill(self) -> bool:
        """Kill it with -9; False: it had ended before."""
        self.process.kill()
        self.process.join()
        return self.code == -signal.SIGKILL

    @property
    def code(self) -> int | None:
        return self.process.exitcode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verb", choices=VERBS, default="train", help="what is killed; lora: sft with an adapter")
    parser.add_argument("--kills", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the dice")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
    parser.add_argument("--quick", action="store_true", help="10 kills, and no result file")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--ranks", type=int, default=1, help="kill one of so many processes; pretraining alone")
    parser.add_argument("--add", action="store_true", help="with --ranks: the kills of the result file count too")
    parser.add_argument("--minutes", type=float, default=1e9, help="with --ranks: begin no new job after so long")
    arguments = parser.parse_args()
    if arguments.ranks > 1:
        return kill_ranks(arguments)
    wanted = 10 if arguments.quick else arguments.kills
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mini-llm-crash-") as name:
        campaign = Campaign(arguments.verb, Path(name), arguments.seed, arguments.device)
        note(f"  a whole run takes {campaign.seconds:.1f} s")
        while (kills := sum(campaign.count[how] for how in ENDS)) < wanted:
            if campaign.life(min(ENDS, key=lambda how: campaign.count[how])) and (kills + 1) % 10 == 0:
                note(f"  {kills + 1} of {wanted} kills, {campaign.count['finished']} runs finished")
            if len(campaign.errors) > 5:
                break
        campaign.finish_run()
    count = campaign.count
    result = {
        "verb": arguments.verb,
        "kills": kills,
        **{f"kills {how}": count[how] for how in ENDS},
        "kills_that_left_half_a_checkpoint": count["half-written"],
        "ends_by_full_disk": count["refused"],
        "runs_finished": count["finished"],
        "unreadable": len(campaign.unreadable),
        "different_bits": len(campaign.different),
        "other_errors": len(campaign.errors),
        "save_interval": SAVE_INTERVAL,
        **{f"steps_lost_max_{mode}": lost for mode, lost in campaign.lost_max.items()},
        **{
            f"steps_lost_beyond_save_interval_{mode}": max(0, lost - SAVE_INTERVAL)
            for mode, lost in campaign.lost_max.items()
        },
        "seconds": round(time.perf_counter() - begin),
        "device": arguments.device,
        "machine": machine(arguments.device),
    }
    for problem in [*campaign.unreadable, *campaign.different, *campaign.errors]:
        note(f"  {problem}")
    print(table(["", ""], [[key.replace("_", " "), str(value)] for key, value in result.items() if key != "machine"]))
    finish(
        "crash" if arguments.verb == "train" else f"crash-{arguments.verb}",
        result,
        as_json=arguments.json,
        device=arguments.device,
        keep=not arguments.quick and wanted >= (100 if arguments.verb == "train" else 20),
    )
    return 1 if campaign.unreadable or campaign.different or campaign.errors else 0


def kill_ranks(arguments: argparse.Namespace) -> int:
    """Run a campaign on several processes, and return the exit status; what is found is kept after each job."""
    from _crash_ranks import MOST_OF_A_JOB, RanksCampaign

    name, about = f"crash-{arguments.ranks}-ranks", machine()
    before = (read_result(name, about) if arguments.add else None) or {}
    wanted = 6 if arguments.quick else arguments.kills - before.get("kills", 0)
    begin, seed = time.perf_counter(), arguments.seed + before.get("kills", 0)
    with tempfile.TemporaryDirectory(prefix="mini-llm-crash-") as folder:
        campaign = RanksCampaign(arguments.ranks, Path(folder), seed, note)
        end = begin + 60 * arguments.minutes
        result = ranks_result(campaign, before, 0) | {"machine": about}
        while campaign.kills < wanted and len(campaign.errors) < 3 and time.perf_counter() < end:
            campaign.run_job(min(wanted, campaign.kills + MOST_OF_A_JOB))
            note(f"  {campaign.kills} of {wanted} kills, {campaign.count['finished']} jobs finished")
            result = ranks_result(campaign, before, time.perf_counter() - begin) | {"machine": about}
            if not arguments.quick:
                write_result(name, {"command": f"python benchmarks/crash.py --ranks {arguments.ranks}", **result})
    for problem in [*campaign.unreadable, *campaign.different, *campaign.errors]:
        note(f"  {problem}")
    print(table(["", ""], [[key.replace("_", " "), str(value)] for key, value in result.items() if key != "machine"]))
    finish(name, result, as_json=arguments.json, keep=not arguments.quick)
    return 1 if campaign.unreadable or campaign.different or campaign.errors else 0


def ranks_result(campaign: RanksCampaign, before: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the counts of a campaign, with those of an earlier result."""
    count = campaign.count
    result = {
        "ranks": campaign.ranks,
        "kills": campaign.kills,
        **{f"kills {how}": count[how] for how in ENDS},
        **{f"kills of rank {rank}": count[f"rank {rank}"] for rank in range(campaign.ranks)},
        "kills_that_left_half_a_checkpoint": count["half-written"],
        "lives": count["lives"],
        "lives_that_ended_by_themselves": count["ended by itself"],
        "jobs_finished": count["finished"],
        "unreadable_or_lost": len(campaign.unreadable),
        "different_bits": len(campaign.different),
        "other_errors": len(campaign.errors),
        "save_interval": SAVE_INTERVAL,
        "steps_lost_max": campaign.lost_max,
        "seconds": round(seconds),
    }
    for key, value in before.items():
        if isinstance(value, int) and key in result and key not in ("ranks", "save_interval"):
            result[key] = max(value, result[key]) if key == "steps_lost_max" else value + result[key]
    return result


if __name__ == "__main__":
    sys.exit(main())
