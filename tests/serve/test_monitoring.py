"""What Prometheus reads: every number is there, and the engine's steps are counted and timed."""

import time

from running_server import RunningServer

COUNTERS = ("requests_total", "prompt_tokens_total", "prompt_tokens_cached_total", "generated_tokens_total")
GAUGES = ("requests_running", "requests_waiting", "slots_used")
SECONDS = ("time_to_first_token", "inter_token", "request", "step", "loop_lag")
NAMES = (*COUNTERS, *GAUGES, *(f"{name}_seconds_count" for name in SECONDS))


def test_every_number_is_there_without_a_text(server: RunningServer) -> None:
    server.ask("/v1/completions", prompt="A secret", max_tokens=2)
    page = server.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert [name for name in NAMES if f"\nmini_llm_{name}" not in page.text] == []
    assert "secret" not in page.text


def test_each_step_of_the_engine_is_timed(busy_server: RunningServer) -> None:
    busy_server.wait_for("requests_running", 0)
    before, seconds = busy_server.metric("step_seconds_count"), busy_server.metric("step_seconds_sum")
    began = time.monotonic()
    busy_server.ask("/v1/completions", prompt="Hello", max_tokens=20)
    took = time.monotonic() - began
    assert busy_server.metric("step_seconds_count") == before + 20  # the prompt's step gives the first token
    assert 0 < busy_server.metric("step_seconds_sum") - seconds < took
