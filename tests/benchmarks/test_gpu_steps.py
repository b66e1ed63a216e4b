"""`make gpu` goes on whatever a step does: crash, hang, fill the memory, ignore signals; and its table says so."""

import importlib
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def gpu(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return the command's module; what it makes lands in a temporary folder."""
    folder = repository / "benchmarks" / "gpu"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("gpu_command", folder / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HOME", tmp_path / "home")
    return module


def run(gpu: Any, monkeypatch: pytest.MonkeyPatch, programs: dict[str, dict[str, Any]], *words: str) -> int:
    """Run steps made of Python programs instead of the real ones, as a rehearsal, and return the exit code."""
    Step = importlib.import_module("steps").Step
    made = [
        Step(name, 60, [], ["-c", what.pop("does")], **{"rehearsed": 20, **what}) for name, what in programs.items()
    ]
    monkeypatch.setattr(gpu, "steps", lambda: made)
    monkeypatch.setattr(sys, "argv", ["gpu", "--rehearse", *words])
    return gpu.main()


def rows(out: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in out.rpartition("| step |")[2].splitlines() if " | " in line]
    return {line[0]: line[1:] for line in lines if line[0] not in ("state", "---")}


def test_the_list_goes_on_and_the_table_says_how_each_ended(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    child = tmp_path / "child"
    hangs = (
        "import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('last words', flush=True);"
        f"p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(90)']); open({str(child)!r}, 'w')"
        ".write(str(p.pid)); time.sleep(90)"
    )
    programs = {
        "beside": {"does": "raise SystemExit('no text')", "beside": True},
        "crashes": {"does": "import os; os.abort()"},
        "hangs": {"does": hangs, "rehearsed": 3},
        "fills memory": {"does": "b = bytearray(10**15)", "only_cuda": "the card's own memory"},
        "needs it": {"does": "print('never')", "after": "beside"},
        "works": {"does": "print('| a result |')", "only_cuda": "recording"},
    }
    start = time.monotonic()
    assert run(gpu, monkeypatch, programs, "--out", str(tmp_path / "out")) == 1
    assert time.monotonic() - start < 30
    out = capsys.readouterr().out
    found = rows(out)
    assert {name: row[0] for name, row in found.items()} == {
        "beside": "failed, exit 1",
        "crashes": "failed, exit -6",
        "hangs": "its time was over",
        "fills memory": "failed, exit 1",
        "needs it": "failed",
        "works": "done",
    }
    assert {name: row[2] for name, row in found.items() if len(row) > 2 and row[2]} == {
        "fills memory": "the card's own memory",
        "works": "recording",
    }
    for words in ("last words", "MemoryError", "no text", "| a result |"):
        assert words in out
    assert (tmp_path / "out" / "results.tar.gz").is_file(), "what the others found is kept"
    assert not is_alive(int(child.read_text())), "what a step has started ends with it"


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_what_has_no_time_left_is_not_begun(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = {"first": {"does": "print(1)"}, "second": {"does": "import time; time.sleep(90)"}}
    assert run(gpu, monkeypatch, programs, "--minutes", "0.3") == 0
    found = rows(capsys.readouterr().out)
    assert {row[0] for row in found.values()} == {"no time was left"}


def test_a_list_in_hand_ends_within_its_minutes(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = {name: {"does": "import time; time.sleep(90)", "rehearsed": 60} for name in ("first", "second")}
    monkeypatch.setattr(gpu, "KEPT_FOR_THE_END", 1)
    monkeypatch.setattr(gpu, "LEAST", 2)
    monkeypatch.setattr(gpu, "report", lambda _device: ("", []))  # it imports torch, in seconds of its own
    start = time.monotonic()
    assert run(gpu, monkeypatch, programs, "--minutes", "0.08") == 1
    assert time.monotonic() - start < 0.08 * 60
    assert [row[0] for row in rows(capsys.readouterr().out).values()] == ["its time was over", "no time was left"]


def test_limits_leave_room_for_what_matters_most(gpu: Any) -> None:
    """What comes before the flagship leaves it three and a half minutes, whatever it takes itself."""
    module = importlib.import_module("steps")
    limits = {step.name: step.seconds for step in module.steps()}
    assert limits["correct"] <= 130
    assert limits["flagship"] <= 240
    before = sum(limits[name] for name in ("correct", "throughput 16x384", "forms 16x384"))
    assert 9 * 60 - 10 - before >= 215 > module.FLAGSHIP_SECONDS, "it took 203 s on an H100"
    names = list(limits)
    assert names.index("correct") < names.index("throughput 16x384") < names.index("flagship") < names.index("decode")
    assert all(step.only_cuda for step in module.steps() if step.name in ("correct", "decode", "decode profile"))
