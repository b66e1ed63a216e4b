"""The chat evaluation for a reader: a Markdown table, twenty answers to look at, and a file of it all."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_llm import __version__
from mini_llm.eval.chat import Answered
from mini_llm.eval.chat_items import LATE, LATE_ALONE, REWORDED, TAUGHT
from mini_llm.files import write_text
from mini_llm.tune.skills import SKILLS

IFEVAL = "forms of IFEval-lite"
SHOWN = 300  # characters of an answer in the table; the file has all


def markdown(found: dict[str, Any], answers: Sequence[Answered]) -> str:
    """Return the tables, and the answers to the open questions."""
    parts = [table(("Measure", "Value", "Of"), _measures(found))]
    rows = []
    for skill in SKILLS:
        new = [found["groups"].get(f"{skill}, new {what}") for what in ("arguments", "phrasings")]
        if any(new):
            rows.append((skill, *(_percent(one["right"]) if one else "" for one in new)))
    parts.append(table(("Skill: right answers", "New arguments", "New phrasings"), rows))
    forms = found["groups"][IFEVAL]["forms"]
    parts.append(table(("IFEval-lite", "Right"), [(form, _percent(right)) for form, right in forms.items()]))
    said = [f"> {a.item.messages[-1].content}\n{_shown(a)}" for a in answers if a.item.group == "prompts"]
    return "\n\n".join([*parts, "Twenty questions, greedily:", *said])


def _measures(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    every, prompts = found["form"]["all"], found["form"]["prompts"]
    loss, groups = found["answers"], found["groups"]
    left_out = f", {loss['left_out']} left out as too long" if loss["left_out"] else ""
    (late, n_late), (alone, _) = _share(groups[LATE]), _share(groups[LATE_ALONE])
    rows = [
        ("loss of right answers, bits/byte", f"{loss['bits_per_byte']:.4f}", f"{loss['n']:,}: {loss['of']}{left_out}"),
        ("stopped within 256 tokens", _percent(every["stop_rate"]), f"{every['n']:,} answers"),
        ("... to open questions", _percent(prompts["stop_rate"]), f"{prompts['n']}"),
        ("repeats four words three times", _percent(every["repetition"]), f"{every['n']:,}"),
        ("... to open questions", _percent(prompts["repetition"]), f"{prompts['n']}"),
        ("different pairs of words", _percent(prompts["distinct_2"]), f"{prompts['n']} open questions"),
        ("empty", _percent(every["empty"]), f"{every['n']:,}"),
        ("says its name, asked in new words", *_share(groups["identity, new phrasings"])),
        ("recall over turns", *_share(groups["recall, new arguments"])),
        ("right after other turns", f"{late} (alone {alone})", n_late),
        ("IFEval-lite, strict", *_share(groups[IFEVAL])),
    ]
    if TAUGHT in groups:
        rows.append(("facts of the addresses, as taught", *_share(groups[TAUGHT])))
        rows.append(("... in new words", *_share(groups[REWORDED])))
    if forgotten := found["forgetting"]:
        change = f"{forgotten['now']:.4f} ({forgotten['change']:+.1%} on the base's {forgotten['base']:.4f})"
        rows.append(("held-out text, bits/byte", change, forgotten["text"]))
    return rows


def _share(group: dict[str, Any]) -> tuple[str, str]:
    return _percent(group["right"]), f"{group['n']}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _shown(answered: Answered) -> str:
    answer = answered.answer.strip()
    shown = answer if len(answer) <= SHOWN else f"{answer[:SHOWN]} ..."
    return shown if answered.stopped else f"{shown} (not ended)"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; from the second column on numbers stand to the right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in [head, *cells])) for i in range(len(head))]
    marks = ["-" * width if i == 0 else f"{'-' * (width - 1)}:" for i, width in enumerate(widths)]
    lines = [head, marks, *cells]
    pad = [str.ljust, *[str.rjust] * (len(head) - 1)]
    padded = [[side(cell, width) for side, cell, width in zip(pad, row, widths, strict=True)] for row in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def as_json(found: dict[str, Any], answers: Sequence[Answered]) -> dict[str, Any]:
    """Return the results in the shape of the other evaluations' JSON, with the answers to the open questions."""
    results = {
        f"chat_{group.replace(', ', '_').replace(' ', '_')}": {"alias": group, "right,none": v["right"], "n": v["n"]}
        for group, v in found["groups"].items()
    }
    said = [{"question": a.item.messages[-1].content, "answer": a.answer, "stopped": a.stopped}
            for a in answers if a.item.group == "prompts"]  # fmt: skip
    return {
        "results": results,
        "model_source": "mini-llm",
        "model_name": found["model"],
        "date": found["date"],
        "total_evaluation_time_seconds": str(found["seconds"]),
        "mini_llm": {"version": __version__, "chat": found, "prompts": said},
    }


def keep(folder: Path, values: dict[str, Any], answers: Sequence[Answered], *, samples: bool) -> Path:
    """Write chat_DATE.json and, with `samples`, chat_answers_DATE.jsonl into a folder; return the first.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    date = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(values["date"])) + f".{values['date'] % 1:.6f}"[2:]
    path = folder / f"chat_{date}.json"
    write_text(path, json.dumps(values, indent=2, default=str) + "\n")
    if samples:
        lines = [
            {
                "group": a.item.group,
                "messages": [{"role": m.role, "content": m.content} for m in a.item.messages],
                "answer": a.answer,
                "stopped": a.stopped,
                "expected": a.item.exercise.answer if a.item.exercise else None,
                "right": a.score if a.item.exercise else None,
            }
            for a in answers
        ]
        write_text(folder / f"chat_answers_{date}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return path
