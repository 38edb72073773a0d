"""Which pictures look alike: perceptual hashes, and clusters of near duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

Words = np.ndarray[Any, np.dtype[Any]]


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that change little when the picture changes little (DCT hash, `imagehash.phash`)."""
    import imagehash

    found = 0
    for bit in imagehash.phash(image).hash.flatten():
        found = (found << 1) | int(bit)
    return found


ALIKE = 6
"""Bits in which the hashes of two pictures that look alike differ at most."""


def near_duplicates(hashes: Sequence[int], max_distance: int = ALIKE) -> list[int]:
    """The cluster of each hash: hashes within `max_distance` bits share one, and so on in chains.

    Clusters are numbered 0, 1, ... in order of first appearance. Every pair is compared, a row at
    a time in numpy: about a second for 30,000 pictures.
    """
    if not len(hashes):
        return []
    values, back = np.unique(np.array(hashes, dtype=np.uint64), return_inverse=True)
    label = np.arange(len(values))
    for i in range(len(values) - 1):
        near = label[i + 1:][bits_set(values[i + 1:] ^ values[i]) <= max_distance]
        if near.size and (near != label[i]).any():
            joined = np.append(near, label[i])
            # `label` is small integers, so membership is one table look-up.
            member = np.zeros(len(values), dtype=bool)
            member[joined] = True
            label[member[label]] = joined.min()
    first: dict[int, int] = {}
    return [first.setdefault(int(one), len(first)) for one in label[back]]


_TABLE = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def bits_set(words: Words) -> Words:
    """How many bits are 1 in each 64-bit word."""
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(words))
    # numpy < 2.0
    return np.asarray(_TABLE[words.view(np.uint8).reshape(-1, 8)].sum(axis=1))
