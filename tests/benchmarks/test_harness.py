"""What every result file says of itself: the command that was typed, without the paths of one machine."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def harness(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module("_harness")


@pytest.mark.parametrize(
    ("words", "threads", "command"),
    [
        ([], None, "python benchmarks/decode.py"),
        (["--rounds", "7", "--quick"], "1", "OMP_NUM_THREADS=1 python benchmarks/decode.py --rounds 7 --quick"),
        (["--llama-python", "/opt/a b/python"], None, "python benchmarks/decode.py --llama-python .../python"),
        (["--work=/tmp/x/y", "a b/c"], None, "python benchmarks/decode.py --work=.../y 'a b/c'"),
        (["--config", "ROOT/configs/demo.yaml"], None, "python benchmarks/decode.py --config configs/demo.yaml"),
    ],
)
def test_a_result_names_its_command(
    harness: Any, words: list[str], threads: str | None, command: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    typed = [word.replace("ROOT", str(harness.ROOT)) for word in words]
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/decode.py", *typed])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    harness.finish("decode", {"answer": 42}, as_json=True, keep=False)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"command": command, "answer": 42}
    assert command in shown.err
