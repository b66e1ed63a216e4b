"""The demo's settings for a machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mini_llm.demo import FEW_TOKENS, demo_config, demo_template


@pytest.mark.parametrize(("pace", "share"), [(0.8, 0.8), (0.1, 0.0)])
def test_with_time_for_few_tokens_the_demo_learns_from_soft_targets_too_and_in_longer_steps(
    pace: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mini_llm.demo.seconds_per_step", lambda config: pace)
    monkeypatch.setattr("mini_llm.demo.fit_memory", lambda config, measure: measure(config))
    store: Any = SimpleNamespace(
        split=lambda name: SimpleNamespace(n_tokens=10**6), manifest=SimpleNamespace(vocab_size=8192)
    )
    config = demo_config(store, 4.0, {"data_dir": "tokens", "out_dir": "run", "device": "cpu"})
    assert config.max_iters == pytest.approx(240 / pace, rel=0.03)
    assert config.soft_targets == share
    assert config.eval_iters == (16 if share else 64)
    template, times = demo_template(), 1.5 if share else 1
    assert config.learning_rate == pytest.approx(times * template.learning_rate)
    assert config.muon_learning_rate == pytest.approx(times * template.muon_learning_rate)
    assert (config.max_iters * config.tokens_per_step < FEW_TOKENS) == bool(share)
