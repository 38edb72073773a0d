"""Randomness belongs to the item, not to the process.

Every draw is keyed by what is being drawn (seed, sample, role@version, call path, draw), so it
does not depend on the batch, the order or the number of processes, and a resumed run repeats it.
"""

from __future__ import annotations

import hashlib

import numpy as np


def bits(key: str) -> int:
    """64 bits that depend on nothing but `key`."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def generator(key: str) -> np.random.Generator:
    """A counter-based generator for `key` (Philox: the same stream on every platform)."""
    return np.random.Generator(np.random.Philox(key=bits(key)))


def uniforms(key: str, n: int) -> np.ndarray:
    """`n` float64 numbers in [0, 1), the first `k` of which do not depend on `n`."""
    return generator(key).random(n)


def shuffled(n: int, key: str) -> list[int]:
    """A permutation of range(n)."""
    return [int(i) for i in generator(key).permutation(n)]
