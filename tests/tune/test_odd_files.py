"""Files that other trainers crash on, or learn nothing from without a word."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mini_llm.train.run.metrics import read_metrics

WORDS = ["device=cpu", "dtype=float32", "compile=false", "batch_size=2", "block_size=63", "epochs=null", "max_iters=2"]
LONG = "cat " * 200


def talk(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant") * 2
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


def test_conversations_longer_than_a_row_are_counted_and_the_rest_is_learned(  # type: ignore[no-untyped-def]
    base: Path, write_rows, tmp_path: Path, run_cli
) -> None:
    short = [talk(f"Say {i}.", "cat cat cat") for i in range(60)]
    data = write_rows(*short, talk("Say cat.", "cat", "Say more.", LONG), talk("Say it all.", LONG))
    result = run_cli("sft", "--base", base, "--data", data, f"out_dir={tmp_path / 'run'}", *WORDS)
    assert result.returncode == 0, result.stderr
    assert "62 conversations" in result.stderr
    assert "1 shortened to whole answers" in result.stderr
    assert "1 left out, whose first answer does not fit into a row" in result.stderr
    losses = [row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_nothing_to_learn_is_said(base: Path, write_rows, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    for name, rows, message in (
        ("all-user", [talk(f"Say {i}.") for i in range(9)], "chat.jsonl:1"),
        ("empty", [], "nothing to learn"),
        ("too long", [talk(f"Say {i}.", LONG) for i in range(9)], "9 left out"),
        ("one", [talk("Say cat.", "cat")], "no conversation is held out"),
    ):
        result = run_cli("sft", "--base", base, "--data", write_rows(*rows), f"out_dir={tmp_path / name}", *WORDS)
        assert result.returncode in (1, 2), (name, result.stderr)
        assert message in result.stderr, name
        assert "Traceback" not in result.stderr
        assert not (tmp_path / name / "checkpoints").exists()


def test_damaged_files_are_named_whatever_their_kind(  # type: ignore[no-untyped-def]
    base: Path, tmp_path: Path, run_cli
) -> None:
    rows = [talk(f"Say {i}.", "cat cat cat") for i in range(60)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    files = {
        "half.parquet": (whole[: len(whole) // 2], "half.parquet is corrupt or cut short"),
        "pages.parquet": (whole[:20] + b"\xff" * 200 + whole[220:], "pages.parquet: "),
        "empty.parquet": (b"", "empty.parquet holds no records"),
        "empty.jsonl": (b"\n", "empty.jsonl holds no records"),
        "marked.jsonl": (lines.encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        "latin.jsonl": (lines.replace("cat", "caf\xe9").encode("latin-1"), "iconv -f WINDOWS-1252 -t UTF-8"),
        "letter.jsonl": (lines.replace("cat", r"\ud83d").encode(), r"letter.jsonl:1 holds half a character: \ud83d"),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        result = run_cli("sft", "--base", base, "--data", tmp_path / name, f"out_dir={tmp_path / 'run'}", *WORDS)
        assert result.returncode == 1, (name, result.stderr)
        assert message in result.stderr, name
        assert "Traceback" not in result.stderr, name


def test_what_a_folder_of_conversations_holds_besides_is_told(base: Path, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "talks"
    folder.mkdir()
    lines = "".join(json.dumps(talk(f"Say {i}.", "cat cat cat")) + "\n" for i in range(60))
    for name in ("talk.jsonl", "table.csv", ".hidden.jsonl"):
        (folder / name).write_text(lines, encoding="utf-8")
    (folder / "gone.jsonl").symlink_to("nowhere")
    (folder / "loop").symlink_to("..")
    result = run_cli("sft", "--base", base, "--data", folder, "--show", 1, f"out_dir={tmp_path / 'run'}", *WORDS)
    assert result.returncode == 0, result.stderr
    for what in ("1 hidden", "1 broken links", "1 links in a circle", f"1 .csv files ({folder / 'table.csv'})"):
        assert what in result.stderr
