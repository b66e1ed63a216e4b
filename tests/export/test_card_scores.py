"""A model card says of its scores what the results say: how many items, whether it is above chance, what was known."""

import json
import os
from pathlib import Path
from typing import Any

from mini_llm.export.card_scores import doubts, read_scores, score_table


def write(folder: Path, number: int, items: int, **changes: Any) -> None:
    line = {"task": "piqa", "shots": 0, "metric": "acc", "above_chance": False, "overlap": None, **changes}
    values = {
        "results": {"piqa": {"alias": "piqa", "acc,none": number / 10, "acc_stderr,none": 0.1}},
        "n-samples": {"piqa": {"original": 1838, "effective": items}},
        "mini_llm": {"checkpoint": "step-1", "lines": [line]},
    }
    path = folder / f"results_{number}.json"
    path.write_text(json.dumps(values))
    os.utime(path, (number, number))


def test_a_trial_of_some_items_says_so(tmp_path: Path) -> None:
    write(tmp_path, 5, 20)
    scores = read_scores(tmp_path, "step-1")
    assert "| piqa | 20 of 1,838 | 0 | acc | 0.5000 | 0.1000 | not above chance |" in score_table(scores)
    said = " ".join(doubts(scores))
    assert "Only some of the items were asked of piqa" in said
    assert "Not above chance: piqa" in said
    assert "not searched" in said


def test_a_trial_does_not_replace_the_whole_set(tmp_path: Path) -> None:
    write(tmp_path, 6, 1838, above_chance=True, overlap={"found": 3, "checked": 1838})
    write(tmp_path, 7, 20)
    scores = read_scores(tmp_path, "step-1")
    assert "| piqa | 1,838 | 0 | acc | 0.6000 | 0.1000 |  |" in score_table(scores)
    assert doubts(scores) == ["The training text holds items of piqa (3): these scores may be remembered."]
    write(tmp_path, 8, 1838)
    assert "| 0.8000 |" in score_table(read_scores(tmp_path, "step-1"))
    assert read_scores(tmp_path, "step-2") == []


def test_a_task_s_name_stays_in_its_cell(tmp_path: Path) -> None:
    values = {"results": {"a|b<c": {"acc,none": 0.5}}}
    (tmp_path / "results.json").write_text(json.dumps(values))
    assert "| a\\|b&lt;c |  |  | acc | 0.5000 |  |  |" in score_table(read_scores(tmp_path, "step-1"))
