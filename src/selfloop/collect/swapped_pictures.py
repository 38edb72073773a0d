"""Other pictures in the place of the right ones: any of a pool, a similar one, another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfloop import keys
from selfloop.pictures import Library, perceptual_hash
from selfloop.roles import SelfloopError
from selfloop.types import Media


@dataclass(frozen=True)
class Pool:
    """Pictures that may stand in for another, with their perceptual hashes (64 bits)."""

    media: tuple[Media, ...]
    hashes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.media) != len(self.hashes):
            raise SelfloopError(
                f"Pool: {len(self.hashes)} hashes for {len(self.media)} pictures; build it with "
                "pool_of(media, library)")

    def others(self, medium: Media) -> list[int]:
        """Places of the pictures in the pool that are not this one, by the bytes."""
        found = [i for i, m in enumerate(self.media) if m.sha256 != medium.sha256]
        if not found:
            raise SelfloopError(
                f"the pool has no picture besides {medium.sha256[:12]}; give it more pictures")
        return found

    def by_likeness(self, medium: Media) -> list[Media]:
        """The other pictures, those first whose hash differs least from this picture's.

        Raises SelfloopError when the picture itself is not in the pool, since its hash is unknown.
        """
        own = next((h for m, h in zip(self.media, self.hashes, strict=True)
                    if m.sha256 == medium.sha256), None)
        if own is None:
            raise SelfloopError(
                f"picture {medium.sha256[:12]} is not in the pool, so its hash is not known; "
                "build the pool of all training pictures")
        order = sorted(self.others(medium),
                       key=lambda i: ((self.hashes[i] ^ own).bit_count(), self.media[i].sha256))
        return [self.media[i] for i in order]


def pool_of(media: Sequence[Media], library: Library) -> Pool:
    """The pool of these pictures, each once; every one is opened to be hashed."""
    once = tuple({m.identity: m for m in media if m.kind == "image"}.values())
    return Pool(once, tuple(perceptual_hash(library.open(m)) for m in once))


def any_other(media: Sequence[Media], pool: Pool, severity: float, key: str) -> tuple[Media, ...]:
    """A `severity` share of the pictures (each with that probability) replaced by any other."""
    found = []
    for i, medium in enumerate(media):
        others = pool.others(medium)
        u, pick = keys.uniforms(f"{key}/{i}", 2)
        found.append(pool.media[others[int(pick * len(others))]] if u < severity else medium)
    return tuple(found)


def near_other(media: Sequence[Media], pool: Pool, severity: float) -> tuple[Media, ...]:
    """Every picture replaced by one from the pool: the most alike near 0, the least alike at 1.

    Likeness is by perceptual hash, that is by layout and not by meaning.
    """
    if severity == 0:
        return tuple(media)
    found = []
    for medium in media:
        order = pool.by_likeness(medium)
        found.append(order[min(len(order) - 1, int(severity * len(order)))])
    return tuple(found)


def reordered(media: Sequence[Media], severity: float, key: str) -> tuple[Media, ...]:
    """A `severity` share of the pictures (or frames) moved, each to the place of the next moved.

    Video-R1 compares answers on ordered and shuffled frames (arXiv 2503.21776). Raises
    SelfloopError for fewer than two pictures; a share that is less than two moves nothing.
    """
    if len(media) < 2:
        raise SelfloopError(f"shuffle needs several pictures in one sample; this has {len(media)}")
    moved = keys.shuffled(len(media), key)[:round(severity * len(media))]
    found = list(media)
    for place, source in zip(moved, moved[1:] + moved[:1], strict=True):
        found[place] = media[source]
    return tuple(found)
