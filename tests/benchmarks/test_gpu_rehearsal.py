"""`make gpu REHEARSE=1`: every step of the GPU's command runs on a CPU, and leaves what a card's run would leave."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.timeout(600)
def test_every_step_is_rehearsed(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu", "--rehearse", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=590, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    table = [line.split(" | ") for line in result.stdout.rpartition("| step |")[2].splitlines() if " | " in line]
    states = {row[0].strip("| "): row[1] for row in table if row[0].strip("| ") not in ("", "---", "state")}
    assert set(states.values()) == {"done"}
    assert len(states) == 11
    assert "| only CUDA can do |" in result.stdout
    with tarfile.open(tmp_path / "results.tar.gz") as archive:
        names = set(archive.getnames())
        summary = json.load(archive.extractfile("results/gpu.json"))  # type: ignore[arg-type]
        flagship = json.load(archive.extractfile(next(n for n in names if "results/flagship-" in n)))  # type: ignore[arg-type]
    assert summary["rehearsal"] is True
    assert {f"logs/{name.replace(' ', '-')}.txt" for name in states} <= names
    assert {"shown/curves.png", "shown/metrics.jsonl", "shown/samples.jsonl"} <= names
    assert sum("results/" in name and name.endswith(".json") for name in names) == 9
    assert len(flagship["samples"]) == len(flagship["held_out"]) - 1 == 8
    assert sorted(p.name for p in tmp_path.glob("*.tar.0*")) == flagship["pieces"]["files"]
    assert not any("rehears" in path.read_text() for path in (repository / "benchmarks" / "results").glob("*.json"))


@pytest.fixture
def gpu(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(repository / "benchmarks" / "gpu"))
    return importlib.import_module


def test_pieces_join_to_what_was_cut(gpu: Any, tmp_path: Path) -> None:
    pieces = gpu("pieces")
    file, data = tmp_path / "a.tar", os.urandom(2500)
    with tarfile.open(file, "w") as archive:
        (tmp_path / "x").write_bytes(data)
        archive.add(tmp_path / "x", arcname="x")
    whole = file.read_bytes()
    cut = pieces.cut(file, tmp_path / "out", piece_bytes=999)
    assert max(piece.stat().st_size for piece in cut) <= 999
    assert len(cut) > 5
    result = subprocess.run(
        pieces.join_command("a.tar"), shell=True, cwd=tmp_path / "out", capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "a.tar").read_bytes() == whole
    assert (tmp_path / "out" / "x").read_bytes() == data


def test_the_flagships_pieces_and_results_fit_into_eight_files(gpu: Any) -> None:
    bfloat16_bytes = 2 * 50_049_408 + 3_000_000  # and its tokenizer and numbers
    assert -(-bfloat16_bytes // gpu("pieces").PIECE_BYTES) + 1 <= 8


def test_what_is_missing_is_said_before_anything_is_spent(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = gpu("check")
    monkeypatch.setattr(check, "LUGGAGE", tmp_path)
    monkeypatch.setitem(check.NEEDED, "no_such_module", "no-such-package")
    problems = check.report("cpu")[1]
    assert len(problems) == 1
    assert "no-such-package" in problems[0]
    assert "make luggage" in problems[0]
    monkeypatch.delitem(check.NEEDED, "no_such_module")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "REHEARSE=1" in check.report("cuda")[1][0]


def test_a_package_that_is_missing_comes_out_of_its_wheel(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = gpu("check")
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "travels-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("travels/__init__.py", "here = True")
    monkeypatch.setattr(check, "LUGGAGE", tmp_path)
    monkeypatch.setattr(check, "SITE", tmp_path / "site")
    monkeypatch.setitem(check.NEEDED, "travels", "travels")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert check.missing() == ["travels"]
    assert check.unpack_wheels() == ["travels"]
    assert check.missing() == []
