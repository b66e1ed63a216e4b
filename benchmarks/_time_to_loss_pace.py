"""What a step of each contender takes, measured in turns: it makes tokens of time_to_loss.py into seconds.

Losses need hours and no clock; a step's time needs an idle machine, and minutes of it. All contenders of a size are
built and compiled one after the other, then each does some steps a round, so that all see the same minutes.
"""

from __future__ import annotations

import os
import statistics
from typing import TYPE_CHECKING, Any

from _harness import machine, machine_slug, mean_and_spread, take_turns

if TYPE_CHECKING:
    from time_to_loss import Runs


def paces(runs: Runs, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return of each contender the median seconds of a step, of each round too, of building and of compiling.

    What was measured on this machine with as many threads, of the same code, is in `work/pace.jsonl`: without that
    file it is measured again.
    """
    args, about = runs.args, machine(runs.args.device)
    jobs = {name: runs.job(name, 1.0, 1.0, 1) | {"pace": args.pace} for name in names}
    for job in jobs.values():
        job["steps"] = max(job["steps"], 8 + args.pace * (args.rounds + 1))  # nobody comes to the end
        job["rows"] = str(runs.rows(1, job["steps"]))
    known = [
        [runs.known(name, 1.0, 1.0, 1) for name in names], args.pace, args.rounds,
        machine_slug(about, args.device), about["threads"], os.environ.get("OMP_NUM_THREADS"),
    ]  # fmt: skip

    def measured() -> dict[str, Any]:
        commands = {name: runs.command(name, job) for name, job in jobs.items()}
        answers, _ = take_turns(commands, args.rounds, dict.fromkeys(names, runs.environment()))
        return {"size": runs.size, "contenders": {name: of_rounds(found) for name, found in answers.items()}}

    found: dict[str, dict[str, Any]] = runs.kept_paces.get(known, measured)["contenders"]
    return found


def of_rounds(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a contender's rounds say: the middle one of all steps, so that a hiccup moves nothing."""
    return {
        "step_seconds": statistics.median(second for answer in answers for second in answer["seconds"]),
        "each_round": [statistics.median(answer["seconds"]) for answer in answers],
        "building": answers[0]["building"],
        "compiling": answers[0]["compiling"],
    }


def add_seconds(about: dict[str, Any], pace: dict[str, Any], step_tokens: int) -> None:
    """Write into what is known of a contender the seconds to the target: building, and all its steps."""
    per_token = pace["step_seconds"] / step_tokens
    about |= pace | {
        "seconds": mean_and_spread([pace["building"] + per_token * tokens for tokens in about["tokens"]["each"]]),
        "tokens_per_second": 1 / per_token,
    }
