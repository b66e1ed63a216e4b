"""Files that other trainers crash on, or learn nothing from without a word."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

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


@pytest.mark.parametrize("words", [["sft", "--data"], ["dpo", "--data"], ["rl", "--task"]])
def test_a_moved_runs_own_record_goes_on_where_it_is(  # type: ignore[no-untyped-def]
    words: list[str], answering: Path, spelling_file: Path, tmp_path: Path, run_cli
) -> None:
    record = tmp_path / "moved" / "config.yaml"
    (record.parent / "checkpoints" / "step-00000002").mkdir(parents=True)
    record.write_text(f"base: {answering}\nout_dir: {tmp_path / 'before'}\n", encoding="utf-8")
    what = "spelling" if words[0] == "rl" else spelling_file
    for more, expected in (([], record.parent), (["out_dir=elsewhere"], "elsewhere")):
        result = run_cli(*words, what, "--config", record, "--print-config", *more)
        assert result.returncode == 0, result.stderr
        assert f"out_dir: {expected}\n" in result.stdout
        assert ("was moved or copied" in result.stderr) == (not more)


def test_text_that_was_changed_is_neither_replayed_nor_measured(  # type: ignore[no-untyped-def]
    base: Path, write_rows, tiny_chat_store: Path, tmp_path: Path, run_cli
) -> None:
    store = tmp_path / "tokens"
    for name, words in (("train-00000.bin", ["sft"]), ("val-00000.bin", ["eval"])):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(tiny_chat_store, store)
        data = bytearray((store / name).read_bytes())
        data[len(data) // 2] ^= 1
        (store / name).write_bytes(data)
        if words == ["sft"]:
            rows = write_rows(*(talk(f"Say {i}.", "cat cat cat") for i in range(60)))
            words += ["--base", base, "--data", rows, f"out_dir={tmp_path / 'run'}", "replay=0.5", f"data_dir={store}"]
            words += WORDS
        else:
            words += [base, "--store", store, "--device", "cpu"]
        result = run_cli(*words, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
        assert result.returncode == 1, result.stderr
        assert name in result.stderr
    assert not list((tmp_path / "run").glob("checkpoints/*"))
