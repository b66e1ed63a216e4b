"""What a person sees: a line off a terminal, a table on one."""

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from mini_llm import log
from mini_llm.train.evaluate import HeldOutLoss
from mini_llm.train.run.display import Clock, Display, Reading, duration, plain_line, sparkline

READING = Reading(
    step=1200,
    max_iters=10_000,
    loss=3.21987,
    lr=6e-4,
    grad_norm=0.5,
    tokens_per_second=12_345.6,
    mfu=0.417,
    memory_gb=1.5,
    epoch=0.25,
    seconds_left=4000,
)


def test_a_line_says_it_all() -> None:
    line = plain_line(READING)
    for part in ("1,200/10,000", "loss 3.2199", "lr 6.00e-04", "12,346 tok/s", "MFU 41.7%", "1.50 GB", "1h06m left"):
        assert part in line
    assert "MFU" not in plain_line(Reading(**{**vars(READING), "mfu": None}))


def test_a_terminal_gets_a_live_table_and_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=terminal, width=100, highlight=False)
        monkeypatch.setattr(log, "console", lambda c=console: c)
        display = Display()
        with display.live():
            display.show(READING, is_log_step=True)
            display.show(READING, is_log_step=False)
            display.show_held_out(1200, HeldOutLoss(3.5, 1.75, 1).describe(), True)
        text = screen.getvalue()
        assert ("\x1b[?25l" in text) is terminal  # the cursor is hidden, and comes back
        assert ("\x1b[?25h" in text) is terminal
        assert text.count("step  1,200/10,000") == (0 if terminal else 1)
        assert "held-out loss 3.5000 nats/token, 1.7500 bits/byte (best so far)" in text
        if terminal:
            assert "tokens/s" in text
            assert "1,200 / 10,000" in text


def test_the_table_shows_what_the_model_writes_and_what_was_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(log, "console", lambda: console)
    display = Display()
    with display.live():
        display.show(READING, is_log_step=True)
        display.show_sample(1200, "Once upon", " a time [/]")
        display.show_skipped(1200, "loss 9")
    last = screen.getvalue().rpartition("1,200 / 10,000")[2]
    assert "Once upon a time [/]" in last
    assert "1 batch" in last


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90_000, "25h00m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sparklines() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0]) == "▁"
    assert sparkline([2.0] * 5) == "▁" * 5
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert len(sparkline([float(i) for i in range(1000)])) == 40


def test_a_skipped_batch_without_a_loss_leaves_the_table_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(log, "console", lambda: shown)
    display = Display()
    with display.live():
        for loss in (3.0, math.nan, math.inf, 2.5):
            display.show(replace(READING, loss=loss), is_log_step=True)
            display.show_skipped(7, "its loss is not finite")
    assert "█" in sparkline(display.losses)


def test_the_clock_leaves_out_what_comes_between_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("mini_llm.train.run.display.time.perf_counter", lambda: now[0])
    clock = Clock()
    for now[0] in (1.0, 3.0):
        clock.step()
    assert clock.seconds_per_step == 1.5
    now[0] = 100.0  # an evaluation
    clock.restart()
    now[0] = 100.5
    clock.step()
    assert clock.seconds_per_step == 0.5
    now[0] = 200.0
    clock.restart()
    for now[0] in (201.0, 202.0, 203.0):
        clock.step()
    now[0] = 300.0
    assert clock.lap() == 3.5 / 4  # of both stretches after the first one, in which something was compiled
    for now[0] in (302.0, 304.0):
        clock.step()
    assert clock.lap() == 2.0


def test_a_message_during_the_live_table_does_not_show_its_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich draws the table anew with the options of whatever is printed above it, and `log` prints without markup."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(log, "console", lambda: console)
    display = Display()
    with display.live():
        display.show(READING, is_log_step=True)
        log.info("a message")
    assert "a message" in screen.getvalue()
    assert "[bold]" not in screen.getvalue()


def test_what_an_objective_has_to_show_stands_beside_the_loss() -> None:
    reading = replace(READING, more={"reward": 0.512345, "stop_rate": 1.0})
    assert "loss 3.2199 | reward 0.512 | stop rate 1 | lr" in plain_line(reading)
    assert reading.metrics(7) == {
        "tokens": 7, "loss": 3.21987, "lr": 6e-4, "grad_norm": 0.5, "reward": 0.512345, "stop_rate": 1.0
    }  # fmt: skip
