"""Nothing that is evaluated on may be trained on (primitives F19): a stage that blocks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from selfloop.likeness import Look, as_bytes, confirmed, look_of, pixel_hash
from selfloop.organize.refine.duplicates import looks_of
from selfloop.organize.refine.near import BitIndex, grams_of, shingles
from selfloop.roles import SelfloopError
from selfloop.types import Group, Media, Sample, digest

SHOWN = 5
"""Offending samples that an error names; the rest are counted."""
COMMON = 10
"""Evaluation questions that may share an n-gram before it counts as mere wording."""


_NEWER = ("pixels", "signatures")
"""Sets that prints of version 0.1 do not have."""


@dataclass(frozen=True, repr=False)
class EvaluationPrints:
    """What evaluation sets are recognised by; no question can be read from it, and of a picture no
    more than a thumbnail of 16 x 16 shows."""

    samples: frozenset[str]
    """Identities of the contexts (prompt and pictures)."""
    pictures: frozenset[str]
    """SHA-256 of the media's bytes."""
    looks: frozenset[int]
    """Perceptual hashes of the pictures and of their mirror images."""
    grams: frozenset[str]
    """Hashes of the word n-grams of questions without pictures."""
    n: int = 13
    distance: int = 6
    name: str = ""
    pixels: frozenset[str] = frozenset()
    """Hashes of the pictures' decoded pixels, which another file may hold too."""
    wording: Literal["words", "normal"] = "words"
    """How questions were cut into n-grams: "normal" by their normal form (wording.py); "words" by
    white space alone, in prints that were written before."""
    signatures: frozenset[str] = frozenset()
    """The looks with their thumbnails (likeness.Look.text); of a hash without one, as in prints
    that were written before, the hash alone decides."""

    def __repr__(self) -> str:
        return (f"EvaluationPrints({self.name!r}: {len(self.samples)} questions, "
                f"{len(self.pictures)} pictures, {self.fingerprint})")

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of all of it."""
        return digest(json.loads(self.to_json()))

    @cached_property
    def index(self) -> BitIndex:
        """The perceptual hashes, to be asked for near ones."""
        return BitIndex(sorted(self.looks), self.distance)

    @cached_property
    def thumbnails(self) -> dict[int, Any]:
        """The thumbnails (K, 384) of each perceptual hash that has some."""
        found: dict[int, list[bytes]] = {}
        for look in map(Look.from_text, sorted(self.signatures)):
            found.setdefault(look.bits, []).append(look.thumbnail)
        return {bits: as_bytes(own) for bits, own in found.items()}

    def shows(self, look: Look) -> bool:
        """Whether a picture looks like one of these: a near hash, confirmed by a thumbnail. Never
        by way of a third picture."""
        for place in self.index.near(look.bits):
            known = self.thumbnails.get(int(self.index.values[place]))
            if known is None or not look.thumbnail \
                    or confirmed(as_bytes([look.thumbnail])[0], known).any():
                return True
        return False

    def to_json(self) -> str:
        """One JSON document, equal for equal sets."""
        sets = {k: sorted(getattr(self, k)) for k in ("samples", "pictures", "looks", "grams")}
        # what prints of before do not have is left out, so that theirs stay the same
        newer: dict[str, Any] = {} if self.wording == "words" else {"wording": self.wording}
        newer |= {k: sorted(found) for k in _NEWER if (found := getattr(self, k))}
        return json.dumps({**sets, "n": self.n, "distance": self.distance, "name": self.name,
                           **newer})

    def grams_of(self, text: str) -> frozenset[str]:
        """The n-grams of a question, cut as those of these prints were."""
        return shingles(text, self.n) if self.wording == "normal" \
            else grams_of(text.lower().split(), self.n)

    @classmethod
    def from_json(cls, text: str | bytes) -> EvaluationPrints:
        """The inverse of `to_json`. Raises SelfloopError for anything else."""
        try:
            found = json.loads(text)
            sets: dict[str, Any] = {k: frozenset(found.pop(k))
                                    for k in ("samples", "pictures", "looks", "grams")}
            newer: dict[str, Any] = {k: frozenset(found.pop(k, ())) for k in _NEWER}
            made = cls(**sets, **newer, **found)
            _ = made.thumbnails  # a damaged one is refused here
            return made
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SelfloopError(f"evaluation prints: {error}; write them again with "
                                "prints_of(samples, open_picture).to_json()") from None


def prints_of(samples: Iterable[Sample], open_picture: Callable[[Media], Any] | None, *,
              n: int = 13, distance: int = 6, name: str = "", thumbnails: bool = True,
              see: See | None = None) -> EvaluationPrints:
    """The prints of every evaluation sample; opens each picture once, or none for None. Without
    `thumbnails` the perceptual hash alone says what looks alike.

    `see` says what is taken of an opened picture, by default its pixels and its looks. 13-grams as
    in Brown et al. 2020 (arXiv 2005.14165, appendix C); as there, those of more than `COMMON`
    questions are wording and no evidence. Only questions without pictures leave n-grams: with a
    picture, a question asked in the same words is no leak. A question of fewer than n words
    is one n-gram, so that it is known however it is punctuated.
    """
    see = see or seen_by(open_picture)
    contexts: set[str] = set()
    seen: set[str] = set()
    looks: set[Look] = set()
    pixels: set[str] = set()
    grams: Counter[str] = Counter()
    for sample in samples:
        if sample.context.identity in contexts:
            continue
        contexts.add(sample.context.identity)
        for medium in sample.media:
            if medium.identity not in seen:
                pixel, own = see(medium)
                pixels |= set() if pixel is None else {pixel}
                looks |= set(own)
            seen |= {medium.identity, medium.sha256}
        if not sample.media:
            grams.update(digest(g) for g in shingles(sample.context.text, n))
    rare = frozenset(g for g, held in grams.items() if held <= COMMON)
    return EvaluationPrints(
        frozenset(contexts), frozenset(seen), frozenset(look.bits for look in looks), rare, n,
        distance, name, frozenset(pixels), "normal",
        frozenset(look.text for look in looks if thumbnails))


See = Callable[[Media], tuple[str | None, tuple[Look, ...]]]
"""(hash of its pixels, its look and that of its mirror image) of a medium; None and () for what is
not known."""


def seen_by(open_picture: Callable[[Media], Any] | None) -> See:
    """All of these of every picture that it opens; nothing of sounds, and nothing for None."""
    def see(medium: Media) -> tuple[str | None, tuple[Look, ...]]:
        if open_picture is None or medium.kind != "image":
            return None, ()
        picture = open_picture(medium)
        return pixel_hash(picture), both_looks(picture)
    return see


def both_looks(picture: Any) -> tuple[Look, Look]:
    """The picture's look and that of its mirror image."""
    return look_of(picture), look_of(picture, mirrored=True)


def leak(sample: Sample, looks: Sequence[Look], prints: EvaluationPrints,
         pixels: Sequence[str] = ()) -> str | None:
    """How a sample is known from the evaluation, in words, or None.

    `looks`: of its pictures, `pixels`: hashes of their pixels. Exact context, equal bytes, equal
    pixels, a picture (or its mirror image) within `prints.distance` bits whose thumbnail confirms
    it, or (without pictures) one shared n-gram. Pictures saved again and resized are found; those
    cropped by more than a few percent are not, nor is small print told apart: forms that differ
    in one number look the same.
    """
    if sample.context.identity in prints.samples:
        return "the same question and pictures"
    if any(m.sha256 in prints.pictures for m in sample.media):
        return "the same picture"
    if any(pixel in prints.pixels for pixel in pixels):
        return "the same picture, pixel by pixel, in another file"
    if any(map(prints.shows, looks)):
        return "a picture that looks like one there"
    if not sample.media and prints.grams:
        for gram in sorted(prints.grams_of(sample.context.text)):
            if digest(gram) in prints.grams:
                return f'the same words ("{gram[:60]}")'
    return None


def leaks(samples: Iterable[Sample], prints: EvaluationPrints,
          open_picture: Callable[[Media], Any] | None = None, *, see: See | None = None
          ) -> list[tuple[int, str]]:
    """(index, how) of every training sample known from the evaluation: the check before a run.

    Without `open_picture` (or `see`) look-alikes and copies in other files go unnoticed.
    """
    see = see or seen_by(open_picture)
    found = []
    for index, sample in enumerate(samples):
        told = [see(medium) for medium in sample.media]
        how = leak(sample, [own[0] for _, own in told if own], prints,
                   [pixel for pixel, _ in told if pixel is not None])
        if how:
            found.append((index, how))
    return found


@dataclass(frozen=True)
class Decontaminated:
    """Stop at groups that are known from an evaluation set, or drop and count them.

    Raises SelfloopError naming the offending samples (`on_found="raise"`), or drops them and
    counts all so far in the state under "contaminated". Groups with pictures need
    `annotations["perceptual_hashes"]`, one a picture; without them look-alikes cannot be known
    and the step raises, unless `exact_only`.
    """

    prints: EvaluationPrints
    on_found: Literal["raise", "drop"] = "raise"
    exact_only: bool = False

    @classmethod
    def against(cls, path: str | Path, **options: Any) -> Decontaminated:
        """With the prints stored in a file."""
        return cls(EvaluationPrints.from_json(Path(path).read_bytes()), **options)

    def __call__(self, groups: Sequence[Group], state: Mapping[str, Any]
                 ) -> tuple[list[Group], dict[str, Any]]:
        """(clean groups, the state update)."""
        kept: list[Group] = []
        found: list[str] = []
        for group in groups:
            how = leak(group.sample, self._looks(group), self.prints)
            if how is None:
                kept.append(group)
            else:
                found.append(f"sample {group.sample.id} ({how})")
        if found and self.on_found == "raise":
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise SelfloopError(
                f"{len(found)} of {len(groups)} training samples are in the evaluation set"
                f"{' ' + self.prints.name if self.prints.name else ''}: "
                f"{'; '.join(found[:SHOWN])}{more}; take them out of the training data, or use "
                'Decontaminated(on_found="drop")')
        return kept, {"contaminated": int(state.get("contaminated", 0)) + len(found)}

    def _looks(self, group: Group) -> list[Look]:
        looks = looks_of(group)
        pictures = [m for m in group.sample.media if m.kind == "image"]
        if len(looks) < len(pictures) and not self.exact_only:
            raise SelfloopError(
                f"sample {group.sample.id} has {len(pictures)} pictures and {len(looks)} entries "
                "in annotations['perceptual_hashes']: whether they look like an evaluation "
                "picture is unknown; wrap the verifier in annotate.WithHashes, or use "
                "Decontaminated(exact_only=True)")
        return looks
