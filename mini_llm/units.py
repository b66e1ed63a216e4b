"""Large numbers for a person: three digits and an SI prefix, `1.24 G` or `131 kB`."""

from __future__ import annotations

import math


def size(n_bytes: float) -> str:
    """Return bytes as `1.50 GB`, three digits."""
    return f"{si(n_bytes)}B"


def si(number: float) -> str:
    """Return a number with three digits and its SI prefix: `1.24 G`."""
    power = min(8, max(0, int(math.log10(abs(number)) // 3))) if number >= 1 else 0
    value = number / 1000**power
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {['', 'k', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y'][power]}"
