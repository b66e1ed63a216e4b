"""What was kept and what was dropped, by step and reason, from what every task has counted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mini_llm.data.clean.plan import Plan

LEFT_OUT = "left out: "  # what a count of a reader's task begins with
NAMES = {  # of datatrove's steps; the words of the table
    "language": "language",
    "Gopher Repetition": "gopher_repetition",
    "Gopher Quality": "gopher_quality",
    "C4 Quality": "c4",
    "FineWeb Quality": "fineweb",
    "exact-deduplication stage 3": "exact_duplicates",
    "MinHash stage 4": "near_duplicates",
    "N-grams decontaminate": "contaminated",
}


@dataclass
class Step:
    """A step that drops documents."""

    name: str
    read: int = 0
    dropped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass
class Report:
    """All steps in order."""

    documents: int
    characters: int
    kept: int
    steps: list[Step]
    left_out: dict[str, int] = field(default_factory=dict)  # while reading: nulls, blank documents

    def as_json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        steps = [{"step": s.name, "read": s.read, "dropped": s.dropped, "reasons": dict(s.reasons)} for s in self.steps]
        counts = {"documents": self.documents, "characters": self.characters, "kept": self.kept}
        return {**counts, "steps": steps, "left_out": self.left_out}

    def strictest(self) -> str:
        """Return the name of the step that dropped most."""
        return max(self.steps, key=lambda step: step.dropped).name

    def markdown(self) -> str:
        """Return it as a table."""
        lines = ["| step | documents | dropped | why |", "|---|---|---|---|"]
        for step in self.steps:
            why = ", ".join(f"{reason} {n:,}" for reason, n in step.reasons.most_common())
            share = f" ({step.dropped / step.read:.1%})" if step.read else ""
            lines.append(f"| {step.name} | {step.read:,} | {step.dropped:,}{share} | {why} |")
        share = f" ({self.kept / self.documents:.1%})" if self.documents else ""
        lines.append(f"| **kept** | **{self.kept:,}**{share} | {self.documents - self.kept:,} | |")
        if self.left_out:
            lines += ["", f"left out while reading: {', '.join(f'{n:,} {kind}' for kind, n in self.left_out.items())}"]
        return "\n".join(lines)


def read_report(plan: Plan) -> Report:
    """Add up what the tasks of all stages have counted."""
    steps: dict[tuple[int, int], Step] = {}
    documents = characters = 0
    left_out = Counter[str]()
    for number, _ in enumerate(plan.stages()):
        for path in sorted(plan.logs(number).glob("stats/*.json")):
            for place, counted in enumerate(json.loads(path.read_text(encoding="utf-8"))):
                stats = {name: _total(value) for name, value in counted["stats"].items()}
                if place == 0 and number == 0:
                    documents += stats.get("documents", 0)
                    characters += stats.get("doc_len", 0)
                    left_out.update({key.removeprefix(LEFT_OUT): n for key, n in stats.items() if LEFT_OUT in key})
                name = next((ours for theirs, ours in NAMES.items() if theirs in counted["name"]), None)
                if name is None:
                    continue
                step = steps.setdefault((number, place), Step(name))
                step.read += stats.get("total", 0)
                step.dropped += stats.get("dropped", 0)
                reasons = {key.removeprefix("dropped_"): n for key, n in stats.items() if key.startswith("dropped_")}
                step.reasons.update(reasons)
    in_order = [steps[place] for place in sorted(steps)]
    return Report(documents, characters, documents - sum(step.dropped for step in in_order), in_order, dict(left_out))


def _total(value: Any) -> int:
    return int(value["total"] if isinstance(value, dict) else value)
