"""The plan for a person: plain columns in a pipe, frames and colours on a terminal."""

from mini_llm.plan.show import hours


def test_a_pipe_gets_whole_plain_lines(run_cli) -> None:
    result = run_cli("plan", "--config", "configs/llama-1b.yaml", "--gpu", "4090", env={"NO_COLOR": ""})
    assert (result.returncode, result.stderr) == (0, "")
    assert not set(result.stdout) & set("\x1b│╭┃")
    for text in ("1,235,814,400", "KV cache", "optimizer state", "peak", "2203.15556", "It does not fit", "by formula"):
        assert text in result.stdout


def test_a_terminal_gets_frames(run_cli) -> None:
    result = run_cli("plan", "--config", "configs/125m.yaml", "--gpu", "a100", env={"FORCE_COLOR": "1", "NO_COLOR": ""})
    assert "╭" in result.stdout
    assert "It fits as configured." in result.stdout


def test_times_are_in_the_unit_that_reads_best() -> None:
    assert [hours(h) for h in (None, 0.5, 5, 72, 20000)] == [
        "an unknown time",
        "30.0 minutes",
        "5.0 hours",
        "3.0 days",
        "2.3 years",
    ]
