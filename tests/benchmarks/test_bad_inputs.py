"""A seeded slice of the campaign of bad inputs: each is refused in words, told, or has the right result."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the campaign forks, limits and watches as Linux does")


@pytest.fixture
def parts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module("_bad_inputs.campaign"), importlib.import_module("_bad_inputs.case")


def test_a_slice_of_the_campaign_finds_nothing(parts: Any, tmp_path: Path) -> None:
    campaign, case = parts
    (tmp_path / "campaign").mkdir()
    running = campaign.Campaign(tmp_path / "campaign", 1)
    try:
        running.make_world()
        every = campaign.all_cases(running.world, seed=0)
        cases = campaign.chosen([one for one in every if campaign.is_quick(one)], 40, seed=0)
        found = [
            (one.area, one.name, verdict, reason)
            for one, verdict, reason, _ in running.results(cases)
            if verdict in case.BAD
        ]
    finally:
        running.close()
    assert len(every) >= 1500
    assert found == []


@pytest.mark.parametrize(
    ("code", "stderr", "verdict"),
    [
        (0, b"", "silent"),
        (1, b"error: no", "refused"),
        (1, b"", "wordless"),
        (3, b"error: no", "wordless"),
        (1, b"Traceback (most recent call last):\nKeyError", "traceback"),
        (-6, b"", "abort"),
        (1, b"error: \x1b]0;PWN\x07", "escape"),
    ],
)
def test_a_verdict(parts: Any, tmp_path: Path, code: int, stderr: bytes, verdict: str) -> None:
    _, case = parts
    outcome = case.Outcome(code, 0.1, False, b"", stderr, tmp_path)
    assert case.judge(case.Case("x", "y", [], lambda _: None, accept=False), outcome)[0] == verdict


@pytest.mark.parametrize(
    ("said", "misleads"),
    [("try --dry-run", False), ("try --no-such", True), (f"no such option: │ --{'x' * 70}", False)],
)
def test_an_option_is_advised_that_the_command_has(parts: Any, said: str, misleads: bool) -> None:
    words = ["train", "--config", "train.yaml", f"--{'x' * 5000}"]
    assert (importlib.import_module("_bad_inputs.hints").wrong_hint(words, said) is not None) is misleads
