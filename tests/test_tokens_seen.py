"""Tokens are counted by the run itself: after a change of the batch, steps times the last settings are wrong."""

import pytest

from mini_llm.tokens_seen import tokens_seen

COUNTED = [{"step": 10, "tokens": 1000}, {"step": 10, "val_loss": 2.0}, {"step": 20, "tokens": 4000}]


@pytest.mark.parametrize(
    ("step", "per_step", "found"),
    [(20, 300, 4000), (10, 300, 1000), (22, 300, 4600), (12, 300, 1600), (5, 300, 1500), (0, 300, 0), (25, None, 5000)],
)
def test_what_was_counted_counts(step: int, per_step: int | None, found: int) -> None:
    assert tokens_seen(COUNTED, step, per_step) == found


def test_what_nobody_can_tell_is_not_made_up() -> None:
    assert tokens_seen([], 5, None) is None
    assert tokens_seen([{"step": 5, "tokens": "many"}, {"step": True, "tokens": 9}], 5, None) is None
    assert tokens_seen([{"step": 5, "tokens": "many"}], 5, 7) == 35
