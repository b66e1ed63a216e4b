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


def test_a_contender_that_ends_in_an_error_fails_the_command(
    harness: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a step of `make gpu` whose own contender does not start any more would be `done`."""
    monkeypatch.setattr(harness, "CRASHED", [])
    answers = "print({mark!r} + '{{\"ready\": true}}', flush=True); input(); print({mark!r} + '{{\"s\": 1}}')"
    good = [sys.executable, "-c", answers.format(mark=harness.MARK)]
    absent = [sys.executable, "-c", f'print({harness.MARK!r} + \'{{"skipped": "pip install it"}}\')']
    full = [sys.executable, "-c", "raise RuntimeError('CUDA out of memory')"]
    broken = [sys.executable, "-c", "raise AttributeError('no loader')"]
    found, skipped = harness.take_turns({"good": good, "absent": absent, "full": full}, 1)
    assert found == {"good": [{"s": 1}]}
    assert set(skipped) == {"absent", "full"}
    harness.finish("decode", {}, as_json=False, keep=False)
    harness.take_turns({"broken": broken}, 1)
    with pytest.raises(SystemExit, match="broken: exit 1: AttributeError: no loader"):
        harness.finish("decode", {"answer": 42}, as_json=True, keep=False)
    assert json.loads(capsys.readouterr().out)["answer"] == 42, "what is found is kept"


def test_the_same_rows_are_trained_on_without_a_token_store(harness: Any) -> None:
    model = {"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 64, "max_seq_len": 16}
    settings = {"model": model, "block_size": 16, "batch_size": 2, "compile": False, "device": "cpu"}
    stepper = harness.stepper_of_same_rows({**settings, "learning_rate": 1e-2, "warmup_iters": 0})
    stepper.compile()
    assert stepper.step().loss > [stepper.step().loss for _ in range(20)][-1]


def test_each_round_leaves_what_is_found_so_far(harness: Any) -> None:
    """A card's step may be ended in the middle of a round: its figures are those of the rounds before."""
    counts = "import itertools\nprint({mark!r} + '{{}}', flush=True)\nfor n in itertools.count():\n    input()\n"
    counts += (
        "    if n == {last}: raise RuntimeError('out of memory')\n    print({mark!r} + '{{\"n\": %d}}' % n, flush=True)"
    )
    rows = {name: counts.format(mark=harness.MARK, last=last) for name, last in (("lasts", 9), ("ends", 1))}
    left: list[tuple[dict[str, Any], list[str]]] = []
    harness.take_turns(
        {name: [sys.executable, "-c", program] for name, program in rows.items()},
        3,
        after_round=lambda answers, skipped: left.append((answers, list(skipped))),
    )
    assert [(list(answers), skipped) for answers, skipped in left] == [
        (["lasts", "ends"], []), (["lasts"], ["ends"]), (["lasts"], ["ends"]),
    ]  # fmt: skip
    assert [answer["n"] for answer in left[-1][0]["lasts"]] == [0, 1, 2]
