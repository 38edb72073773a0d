"""Which pictures are the same or look alike: hashes of pixels, perceptual hashes, what confirms
them, and clusters of near duplicates."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Words = np.ndarray[Any, np.dtype[Any]]


def pixel_hash(image: Image.Image) -> str:
    """Equal for equal pixels, whatever file they come from: SHA-256 of size and RGB bytes."""
    return hashlib.sha256(f"{image.width}x{image.height}:".encode()
                          + image.convert("RGB").tobytes()).hexdigest()


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that change little when the picture changes little (DCT hash, `imagehash.phash`)."""
    import imagehash

    found = 0
    for bit in imagehash.phash(image).hash.flatten():
        found = (found << 1) | int(bit)
    return found


ALIKE = 6
"""Bits in which the hashes of two pictures that look alike differ at most."""
LUMA, CHROMA = 16, 8
"""Sides of a thumbnail: brightness is kept finer than colour."""
AT_ONCE = 4096
"""Thumbnails that are compared at once: some 20 MiB, however many there are."""
BYTES = LUMA * LUMA + 2 * CHROMA * CHROMA


@dataclass(frozen=True)
class Look:
    """How a picture looks: its perceptual hash, and a thumbnail that confirms a match of hashes.

    The hash sees the layout of grey alone: forms of one template and circles of any colour share
    it. The thumbnail is 16 x 16 brightness, then 8 x 8 blue and red differences (YCbCr), 384 bytes;
    b"" where only the hash was kept, as in runs of before, and then the hash alone decides.
    """

    bits: int
    thumbnail: bytes = b""

    @property
    def text(self) -> str:
        """16 hex digits, a colon, the thumbnail in base64."""
        return f"{self.bits:016x}:{base64.b64encode(self.thumbnail).decode()}"

    @classmethod
    def from_text(cls, text: str) -> Look:
        """The inverse of `text`. Raises ValueError for anything else."""
        bits, _, thumbnail = text.partition(":")
        return cls(int(bits, 16), thumbnail_from(thumbnail))


def thumbnail_from(text: str) -> bytes:
    """A thumbnail of base64; "" is none. Raises ValueError for anything else."""
    try:
        found = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no thumbnail in base64: {error}") from None
    if len(found) not in (0, BYTES):
        raise ValueError(f"a thumbnail of {len(found)} bytes; expected {BYTES}")
    return found


def look_of(image: Image.Image, *, mirrored: bool = False) -> Look:
    """The look of a picture, or of its mirror image."""
    seen = ImageOps.mirror(image) if mirrored else image
    small = seen.convert("RGB")
    luma, chroma = (np.asarray(small.resize((n, n), Image.Resampling.BOX).convert("YCbCr"))
                    for n in (LUMA, CHROMA))
    return Look(perceptual_hash(seen), luma[..., 0].tobytes() + chroma[..., 1:].tobytes())


def confirmed(one: Words, others: Words) -> Words:
    """Which thumbnails (K, 384) show the same picture as one (384): True or False each.

    Of brightness, less its mean and with a gain of .8 to 1.25, what differs is at most a fifth of
    the standard deviation (root mean square) and nowhere more than one; the means are within 24
    levels; of colour at most 10 levels (root mean square) and nowhere more than 32. On drawn
    photographs saved again (JPEG 30 to 90), resized to a quarter, and cropped by 4 % a fifth is
    never exceeded; among 4,950 pairs of invoices of one template it always is.
    """
    if len(others) > AT_ONCE:
        return np.concatenate([confirmed(one, others[i:i + AT_ONCE])
                               for i in range(0, len(others), AT_ONCE)])
    split = LUMA * LUMA
    y, many = one[:split].astype(np.float32), others[:, :split].astype(np.float32)
    mean, means = y.mean(), many.mean(1)
    std, stds = y.std(), many.std(1)
    gain = np.clip(stds / max(float(std), 1e-6), 0.8, 1.25)
    off = np.abs((y - mean)[None] * gain[:, None] - (many - means[:, None]))
    contrast = np.minimum(std, stds)
    colour = np.abs(one[split:].astype(np.float32) - others[:, split:].astype(np.float32))
    return np.asarray(
        (np.sqrt((off**2).mean(1)) <= np.maximum(0.5, 0.2 * contrast))
        & (off.max(1) <= np.maximum(2.0, contrast)) & (np.abs(mean - means) <= 24)
        & (np.sqrt((colour**2).mean(1)) <= 10) & (colour.max(1) <= 32))


def as_bytes(thumbnails: Sequence[bytes]) -> Words:
    """Thumbnails as an array (K, 384)."""
    return np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, BYTES)


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
