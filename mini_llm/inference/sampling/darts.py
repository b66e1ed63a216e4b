"""Chance by counting: the n-th number of a seed is a hash of the two, so that no request disturbs another's.

A generator with a state would give each request other numbers when another one joins the batch. The hash is SplitMix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014). `dart` is for the host, `darts` the
same for a row of requests on any device.
"""

import secrets

from torch import Tensor

STEP, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK = 2**64 - 1


def new_seed() -> int:
    """Return a seed that nobody can foresee."""
    return secrets.randbits(63)


def dart(seed: int, n: int) -> float:
    """Return the n-th number of `seed`: from 0 to below 1, a multiple of 2^-53."""
    return (_mix(_mix(seed) + n * STEP) >> 11) * 2.0**-53


def darts(seeds_B: Tensor, n_B: Tensor) -> Tensor:
    """Return `dart` of each row, (B,) float64; seeds and counts are int64 (B,), seeds as of `as_int64`."""
    hashed_B = _mix_tensor(_mix_tensor(seeds_B) + n_B * as_int64(STEP))
    return _shift_right(hashed_B, 11).double() * 2.0**-53


def as_int64(seed: int) -> int:
    """Return the 64 bits of `seed` as a signed number."""
    return ((seed & MASK) ^ 2**63) - 2**63


def _mix(z: int) -> int:
    z = (z + STEP) & MASK
    z = ((z ^ (z >> 30)) * MIX_1) & MASK
    z = ((z ^ (z >> 27)) * MIX_2) & MASK
    return z ^ (z >> 31)


def _mix_tensor(z: Tensor) -> Tensor:
    z = z + as_int64(STEP)  # int64 wraps around, as the hash wants
    z = (z ^ _shift_right(z, 30)) * as_int64(MIX_1)
    z = (z ^ _shift_right(z, 27)) * as_int64(MIX_2)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, n: int) -> Tensor:
    return (z >> n) & (2 ** (64 - n) - 1)  # torch shifts the sign in
