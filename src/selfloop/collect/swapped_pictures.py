"""Other pictures in the place of the right ones: any of a pool, a similar one, another order.

Frames of one video, and pages of one document, are exchanged together: they become frames of one
other, in their order. A video is a file, or pictures that a row lists as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from statistics import fmean
from typing import Any

from PIL import Image

from selfloop import keys
from selfloop.likeness import ALIKE, perceptual_hash
from selfloop.pictures import Library
from selfloop.roles import SelfloopError
from selfloop.types import Media, digest

Vector = tuple[float, ...]
Pictures = tuple[Media, ...]


@dataclass(frozen=True, repr=False)
class Pool:
    """Pictures that may stand in for another, with their perceptual hashes (64 bits).

    With `vectors` (unit vectors of an image-text encoder) likeness is their cosine, that is by
    meaning; else the hashes' distance, by layout. Pictures whose hashes are as close as the
    project calls alike (`likeness.ALIKE`) never stand in for each other, however likeness
    is told: a copy in another format is no negative.
    """

    media: Pictures
    hashes: tuple[int, ...]
    vectors: tuple[Vector, ...] = ()

    def __repr__(self) -> str:
        """How many pictures, a hash of them, the first few by name, and how likeness is told; the
        fingerprint of a loop has them all."""
        first = ", ".join(_name(m) for m in self.media[:3]) + ", ..." * (len(self.media) > 3)
        how = "meaning" if self.vectors else "layout"
        return (f"Pool({len(self.media):,} pictures #{digest([m.identity for m in self.media])}, "
                f"likeness by {how}: {first})")

    def __post_init__(self) -> None:
        for name, of in (("hashes", self.hashes), ("vectors", self.vectors or self.media)):
            if len(of) != len(self.media):
                raise SelfloopError(f"Pool: {len(of)} {name} for {len(self.media)} pictures; build "
                                    "it with pool_of(media, library)")

    @cached_property
    def _files(self) -> dict[str, Pictures]:
        """Its pictures by file or listed video, frames in the order of time."""
        found: dict[str, list[Media]] = {}
        for medium in self.media:
            found.setdefault(_file(medium), []).append(medium)
        return {name: tuple(sorted(held, key=_when)) for name, held in found.items()}

    @cached_property
    def _place(self) -> dict[str, int]:
        return {medium.identity: i for i, medium in enumerate(self.media)}

    def others(self, clip: Pictures) -> list[Pictures]:
        """What may stand in for a picture, or for several of one file: as many of one other file.

        For several, files with several are taken if there are any. What looks alike is left out,
        if the pool has the clip itself. Raises SelfloopError where the pool has no other file.
        """
        files = [held for name, held in self._files.items() if name != _file(clip[0])]
        if not files:
            raise SelfloopError(
                f"the pool has no picture besides {clip[0].sha256[:12]}; give it more pictures")
        if len(clip) > 1:
            files = [held for held in files if len(held) > 1] or files
            found = [_in_step(clip, held) for held in files]
        else:
            found = [(medium,) for held in files for medium in held]
        return [one for one in found if not self._alike(clip, one)]

    def by_likeness(self, clip: Pictures) -> list[Pictures]:
        """`others`, those first that are most like the clip, frame by frame on average.

        Raises SelfloopError when a picture of it is not in the pool, since nothing is known of it.
        """
        for medium in clip:
            if medium.plain.identity not in self._place:
                raise SelfloopError(
                    f"picture {medium.sha256[:12]} is not in the pool, so its hash is not known; "
                    "build the pool of all training pictures")
        return sorted(self.others(clip), key=lambda one: (
            fmean(self._apart(a, b) for a, b in zip(clip, one, strict=True)),
            [m.identity for m in one]))

    def _apart(self, a: Media, b: Media) -> float:
        one, other = self._place[a.plain.identity], self._place[b.identity]
        if not self.vectors:
            return (self.hashes[one] ^ self.hashes[other]).bit_count()
        return -sum(x * y for x, y in zip(self.vectors[one], self.vectors[other], strict=True))

    def _alike(self, clip: Pictures, other: Pictures) -> bool:
        """Whether every picture looks like the one that would stand there."""
        places = [(self._place.get(a.plain.identity), self._place[b.identity])
                  for a, b in zip(clip, other, strict=True)]
        return all(a is not None and (self.hashes[a] ^ self.hashes[b]).bit_count() <= ALIKE
                   for a, b in places)


def pool_of(media: Sequence[Media], library: Library, encoder: Any = None) -> Pool:
    """The pool of these pictures, each once; every one is opened to be hashed.

    With `encoder`, whose `embeddings(picture, text)` gives a picture's vector first (such as
    `organize.verify.similarity.encoder_named(...)`), likeness is by that, and else by hash.
    """
    once = tuple({m.identity: m for m in media if m.kind == "image"}.values())
    hashes = tuple(perceptual_hash(library.open(m)) for m in once)
    return Pool(once, hashes, () if encoder is None else tuple(
        _vector(encoder, library.open(m)) for m in once))


def _vector(encoder: Any, picture: Image.Image) -> Vector:
    """The picture's unit vector."""
    if not hasattr(encoder, "embeddings"):
        raise SelfloopError(f"pool_of: encoder {type(encoder).__name__} has no embeddings(picture, "
                            "text); give a dual encoder, such as similarity.DualEncoder(folder)")
    found = [float(x) for x in encoder.embeddings(picture, "a picture")[0]]
    length = math.sqrt(sum(x * x for x in found))
    return tuple(x / length for x in found) if length else tuple(found)


def _name(medium: Media) -> str:
    """The file's name, with the place in it of a page or frame; of bytes their hash."""
    uri, page = str(medium.meta.get("uri") or medium.sha256[:12]), medium.ops[:1]
    return uri.replace("\\", "/").rpartition("/")[2] + (f"[{page[0].key}]" if page else "")


def _file(medium: Media) -> str:
    """What it is a part of: its file, or the video that it was listed in."""
    return str(medium.meta.get("video") or medium.sha256)


def _when(medium: Media) -> tuple[float, int]:
    """When a frame is shown, or which page or listed frame it is."""
    seconds, place = medium.meta.get("seconds"), medium.meta.get("place")
    page = next((int(op.key) for op in medium.ops if op.name == "page"), 0)
    return (float(seconds) if isinstance(seconds, int | float) else 0.0,
            place if isinstance(place, int) else page)


def _in_step(clip: Pictures, held: Pictures) -> Pictures:
    """As many pictures of another file: one for one where it has as many, or else, for each, the
    one nearest in time (of a document: in pages)."""
    if len(held) == len(clip):
        return held
    return tuple(min(held, key=lambda m: tuple(abs(x - y) for x, y in zip(
        _when(m), _when(own), strict=True))) for own in clip)


def clips(media: Sequence[Media]) -> list[Pictures]:
    """The pictures cut into stretches of one file each: the frames of a video, a document."""
    return [tuple(run) for _, run in groupby(media, key=_file)]


def any_other(media: Sequence[Media], pool: Pool, severity: float, key: str) -> Pictures:
    """A `severity` share of the pictures (each with that probability) replaced by any other.

    A video or document counts as one. What has no other in the pool but look-alikes stays.
    """
    found: list[Media] = []
    for i, clip in enumerate(clips(media)):
        others = pool.others(clip)
        u, pick = keys.uniforms(f"{key}/{i}", 2)
        found += others[int(pick * len(others))] if others and u < severity else clip
    return tuple(found)


def near_other(media: Sequence[Media], pool: Pool, severity: float) -> Pictures:
    """Every picture replaced by one from the pool: the most alike near 0, the least alike at 1.

    A video or document counts as one. What has no other in the pool but look-alikes stays.
    """
    if severity == 0:
        return tuple(media)
    found: list[Media] = []
    for clip in clips(media):
        order = pool.by_likeness(clip)
        found += order[min(len(order) - 1, int(severity * len(order)))] if order else clip
    return tuple(found)


def reordered(media: Sequence[Media], severity: float, key: str) -> Pictures:
    """A `severity` share of the pictures (or frames) moved, each to the place of the next moved.

    Frames of a video, and pages of a document, change places among themselves; pictures of files of
    their own only where no file has several. One alone cannot move, so that any severity above 0
    moves at least two. Video-R1 compares answers on ordered and shuffled frames (arXiv 2503.21776).
    Raises SelfloopError for fewer than two pictures.
    """
    if len(media) < 2:
        raise SelfloopError(f"shuffle needs several pictures in one sample; this has {len(media)}")
    stretches = clips(media)
    if len(stretches) == 1 or all(len(clip) == 1 for clip in stretches):
        return _moved(media, severity, key)
    return tuple(m for i, clip in enumerate(stretches)
                 for m in _moved(clip, severity, f"{key}/{i}"))


def _moved(media: Sequence[Media], severity: float, key: str) -> Pictures:
    if len(media) < 2 or severity == 0:
        return tuple(media)
    moved = keys.shuffled(len(media), key)[:max(2, round(severity * len(media)))]
    found = list(media)
    for place, source in zip(moved, moved[1:] + moved[:1], strict=True):
        found[place] = media[source]
    return tuple(found)
