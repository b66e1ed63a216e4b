"""What do bad inputs do? More than 1,500 of them, each through the real command line, and what came of it.

Settings, words of the command, corpora, tokenizers, token stores, checkpoints, runs, standard streams, limits and
terminal codes are spoiled by seeded dice. Each case says what would be right: refused with a message and exit code 1
or 2, or accepted with the right result, or told in words. Wrong are a traceback, a hang, an abort, a wrong result in
silence, files that are lost, a terminal code that gets through, an exit code without a word, litter in the temporary
folder, and a sound input that is refused. Needs Linux; as root some cases of rights run as the user nobody.

Most commands are forked from a process that has imported everything (_bad_inputs/server.py); some start from nothing.
To add a verb: an entry in `verbs` of _bad_inputs/world.py. To add an area: a file with `cases` in _bad_inputs/areas.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _bad_inputs.campaign import Campaign, all_cases, area_names, chosen, is_quick, repository_version
from _bad_inputs.case import BAD, GOOD
from _harness import finish, machine, note, table

NAMES = {"right": "right result", "refused": "refused", "told": "told", "overkill": "sound, refused"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the dice")
    parser.add_argument(
        "--area", action="append", choices=area_names(), help="only these files of areas/; may be repeated"
    )
    parser.add_argument("--match", default="", help="only cases whose name holds this")
    parser.add_argument("--cases", type=int, default=1800, help="how many (default 1,800); 0: all, three times as many")
    parser.add_argument("--servers", type=int, default=len(os.sched_getaffinity(0)), help="commands at a time")
    parser.add_argument("--show", action="store_true", help="say what each case wrote")
    parser.add_argument("--quick", action="store_true", help="60 cases, and no result file")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    arguments = parser.parse_args()
    begin, verdicts, faults = time.perf_counter(), Counter[tuple[str, str]](), []
    with tempfile.TemporaryDirectory(prefix="mini-llm-bad-inputs-") as name:
        campaign = Campaign(Path(name), arguments.servers)
        try:
            campaign.make_world()
            cases = [c for c in all_cases(campaign.world, arguments.seed, arguments.area) if arguments.match in c.name]
            if arguments.quick:
                cases = chosen([case for case in cases if is_quick(case)], 60, arguments.seed)
            elif arguments.cases:
                cases = chosen(cases, arguments.cases, arguments.seed)
            note(f"  {len(cases)} cases; the world took {time.perf_counter() - begin:.0f} s")
            for number, (case, verdict, reason, outcome) in enumerate(campaign.results(cases), 1):
                verdicts[case.area, verdict] += 1
                if verdict in BAD:
                    faults.append({"area": case.area, "case": case.name, "verdict": verdict, "reason": reason})
                    note(f"  {verdict}: {case.area}: {case.name!r}: {reason!r}\n      {shlex.join(case.words)[:200]!r}")
                if arguments.show:
                    note(f"  [{verdict}] {case.name!r} exit {outcome.code}, {outcome.seconds:.2f} s")
                    note(outcome.said[-1500:])
                if number % 200 == 0:
                    note(f"  {number} done, {len(faults)} wrong, {time.perf_counter() - begin:.0f} s")
        finally:
            campaign.close()
    print(by_area(verdicts))
    result = {
        "seed": arguments.seed,
        "commit": repository_version(),
        "cases": len(cases),
        "verdicts": {verdict: sum(n for (_, v), n in verdicts.items() if v == verdict) for verdict in (*GOOD, *BAD)},
        "areas": {
            area: {v: verdicts[area, v] for v in (*GOOD, *BAD) if verdicts[area, v]} for area, _ in sorted(verdicts)
        },
        "faults": faults,
        "seconds": round(time.perf_counter() - begin),
        "machine": machine(),
    }
    whole = not (arguments.quick or arguments.area or arguments.match)
    finish("bad_inputs", result, as_json=arguments.json, keep=whole)
    return 1 if faults else 0


def by_area(verdicts: Counter[tuple[str, str]]) -> str:
    """Return the verdicts as a table, a line an area."""
    kinds = [*GOOD, *BAD]
    names = sorted({area for area, _ in verdicts})
    rows = [
        [area, str(sum(verdicts[area, v] for v in kinds)), *(str(verdicts[area, v]) for v in kinds)] for area in names
    ]
    total = ["all", str(verdicts.total()), *(str(sum(verdicts[area, v] for area in names)) for v in kinds)]
    return table(["area", "cases", *(NAMES.get(v, v) for v in kinds)], [*rows, total])


if __name__ == "__main__":
    sys.exit(main())
