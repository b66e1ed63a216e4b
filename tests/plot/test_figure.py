"""`mini-llm plot`: pictures that show what the runs hold, in PNG, SVG and PDF."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

MakeRun = Callable[..., Path]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def test_one_run_gives_a_png_and_an_svg_beside_it(make_run: MakeRun, run_cli) -> None:  # type: ignore[no-untyped-def]
    folder = make_run()
    result = run_cli("plot", folder, env=ONE_THREAD, fresh=True)
    assert result.returncode == 0, result.stderr
    assert (folder / "plots" / "curves.png").read_bytes().startswith(b"\x89PNG")
    svg = (folder / "plots" / "curves.svg").read_text()
    for text in ("loss (nats per token)", "tokens seen (thousands)", "step", "learning rate", "gradient norm", "speed"):
        assert text in svg
    assert re.search(r"best 2\.\d{3} \(1\.\d{3} bits per byte\)", svg)
    assert "at step 80" in svg
    assert "loss (nats per token)" in result.stdout  # the curve in the terminal
    assert "picture: " in result.stderr


def test_several_runs_share_a_picture_and_its_legend(make_run: MakeRun, run_cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    runs = [make_run("slow", scale=1.3), make_run("quick", timing=False), make_run("short", steps=10)]
    result = run_cli("plot", *runs, "--x", "steps", "--out", tmp_path / "new" / "all.svg", env=ONE_THREAD)
    assert result.returncode == 0, result.stderr
    svg = (tmp_path / "new" / "all.svg").read_text()
    assert [name for name in ("slow", "quick", "short", "at step 80, quick") if name not in svg] == []
    again = run_cli("plot", *runs, "--x", "steps", "--out", tmp_path / "again.svg", env=ONE_THREAD)
    assert again.returncode == 0
    assert (tmp_path / "again.svg").read_text() == svg


def test_pdf_and_json(make_run: MakeRun, run_cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = run_cli("plot", make_run(), "--out", tmp_path / "a.pdf", "--json", env=ONE_THREAD)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert json.loads(result.stdout)["runs"][0]["best_step"] == 80


def test_the_newest_run_is_meant_when_none_is_named(
    make_run: MakeRun, run_cli, tmp_path: Path, repository: Path
) -> None:  # type: ignore[no-untyped-def]
    env = {"PYTHONPATH": str(repository)}
    nothing = run_cli("plot", "--terminal", cwd=tmp_path, env=env)
    assert nothing.returncode == 1
    assert "no run in" in nothing.stderr
    assert "mini-llm demo" in nothing.stderr
    make_run("runs/a")
    make_run("runs/b/run", scale=1.5)
    result = run_cli("plot", "--terminal", cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert " b: " in result.stdout
    assert not (tmp_path / "runs" / "b" / "run" / "plots").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["no-such-run"], 1, "no such run: no-such-run"),
        (["RUN", "--out", "a.bmp"], 2, "cannot draw .bmp files"),
        (["RUN", "--terminal", "--out", "a.png"], 2, "--terminal draws no picture"),
        (["RUN", "--x", "hours"], 2, "Invalid value for '--x'"),
        (["RUN", "--out", "RUN/metrics.jsonl/a.png"], 1, "cannot write"),
    ],
)
def test_wrong_words_are_named(words: list[str], code: int, message: str, make_run: MakeRun, run_cli) -> None:  # type: ignore[no-untyped-def]
    run = str(make_run())
    result = run_cli("plot", *(word.replace("RUN", run) for word in words), env=ONE_THREAD)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_without_matplotlib_there_is_still_the_curve(
    make_run: MakeRun, run_cli, tmp_path: Path, repository: Path
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "hidden" / "matplotlib").mkdir(parents=True)
    (tmp_path / "hidden" / "matplotlib" / "__init__.py").write_text("raise ImportError('not installed')")
    env = {"PYTHONPATH": f"{tmp_path / 'hidden'}:{repository}"}
    run = make_run()
    result = run_cli("plot", run, env=env)
    assert result.returncode == 0, result.stderr
    assert "loss (nats per token)" in result.stdout
    assert "matplotlib is missing" in result.stderr
    asked = run_cli("plot", run, "--out", tmp_path / "a.png", env=env)
    assert asked.returncode == 1
    assert "pip install 'mini-llm[demo]'" in asked.stderr


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.pdf"])
def test_only_a_picture_of_ours_is_replaced(make_run: MakeRun, run_cli, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    run, path = make_run(), tmp_path / name
    for _ in range(2):
        result = run_cli("plot", run, "--out", path, env=ONE_THREAD)
        assert result.returncode == 0, result.stderr
    path.write_bytes(b"a holiday picture")
    refused = run_cli("plot", run, "--out", path, env=ONE_THREAD)
    assert refused.returncode == 1
    assert "Mini-LLM did not make it: not replaced" in refused.stderr
    assert path.read_bytes() == b"a holiday picture"
