"""Large numbers have three digits and a prefix."""

import pytest

from mini_llm.units import si, size


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0.00 "), (999, "999 "), (1234, "1.23 k"), (999_999, "1000 k"), (8.03e9, "8.03 G")]
)
def test_numbers_have_three_digits(number: float, text: str) -> None:
    assert si(number) == text


def test_sizes_are_in_bytes() -> None:
    assert [size(n) for n in (131072, 1.5e9, 0)] == ["131 kB", "1.50 GB", "0.00 B"]
