"""The curve in the terminal: as wide as asked, falling where the loss falls, plain in a pipe."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_llm.plot.curves import read_runs
from mini_llm.plot.terminal import HEIGHT, MARGIN, curve_lines, print_curve

MakeRun = Callable[..., Path]


def heights(lines: list[str]) -> list[float]:
    """Return the mean row of the ink in each column that has some."""
    columns = []
    for column in range(MARGIN + 1, max(map(len, lines))):
        rows = [row for row, line in enumerate(lines) if column < len(line) and line[column] != " "]
        if rows:
            columns.append(sum(rows) / len(rows))
    return columns


@pytest.mark.parametrize("width", [20, 80, 200])
def test_it_keeps_to_the_width_and_fills_it(make_run: MakeRun, width: int) -> None:
    lines = [line.plain.rstrip() for line in curve_lines(read_runs([make_run()]), width)]
    assert max(map(len, lines)) <= width
    assert max(map(len, lines)) >= width - 2
    assert len(lines) == 2 + HEIGHT + 2


def test_a_falling_loss_falls(make_run: MakeRun) -> None:
    plain = [line.plain for line in curve_lines(read_runs([make_run(steps=50)]), 60)]
    found = heights(plain[2 : 2 + HEIGHT])
    assert found[0] < found[10] < found[-1]
    assert any("●" in line for line in plain[2:])


def test_what_it_says_is_what_was_measured(make_run: MakeRun) -> None:
    text = "\n".join(line.plain for line in curve_lines(read_runs([make_run(), make_run("other", scale=2)]), 100))
    assert "● run-a: 2.000 training, best 2.102 at step 80 = 1.051 bits per byte" in text
    assert "▲ other: 4.001 training" in text
    assert "6.4k tokens" in text


def test_a_constant_loss_and_a_single_point_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 64, "loss": 3.0}\n')
    assert len(curve_lines(read_runs([tmp_path]), 80, "steps")) == 2 + HEIGHT + 2


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_pipe_gets_no_colours_and_an_old_terminal_ascii(make_run: MakeRun, encoding: str) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    print_curve(read_runs([make_run()]), file=file)
    file.flush()
    text = raw.getvalue().decode(encoding)
    assert "\x1b" not in text
    assert ("⠉" in text) == (encoding == "utf-8")
    assert "?" not in text
