"""The training rows that no evaluation set knows: decontamination before a run's first draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfloop.data import Samples, load
from selfloop.likeness import Look, pixel_hash
from selfloop.organize.refine.decontaminate import (
    SHOWN,
    See,
    both_looks,
    leaks,
    prints_of,
    seen_by,
)
from selfloop.pictures import Library
from selfloop.roles import SelfloopError
from selfloop.types import Media, Sample

How = Literal["exact", "looks", "raise", "none"]


@dataclass(frozen=True)
class Cleaned:
    """Rows that remain, and what was taken out, in words."""

    samples: Samples
    notes: tuple[str, ...] = ()
    """One line an evaluation set that knew some: how many rows, and the first of them. Also what
    could not be compared."""
    dropped: tuple[int, ...] = ()
    """Which rows went, from 0."""


def cleaned(samples: Samples, against: Mapping[str, Sequence[Sample]], *,
            on_found: Literal["drop", "raise"] = "drop",
            open_picture: Callable[[Media], Any] | None = None, see: See | None = None) -> Cleaned:
    """`samples` without those that a set of `against` (name -> its samples) knows.

    Known are: the same question and pictures, a picture of the same bytes, a shared 13-gram of a
    question without pictures, and with `open_picture` (opens every picture) a picture of the same
    pixels and one that looks alike; `see` says what else is taken of a picture. See
    decontaminate.py. Raises SelfloopError naming the count and examples with on_found="raise",
    and always when nothing would remain.
    """
    see = see or seen_by(open_picture)
    gone: set[int] = set()
    notes: list[str] = []
    for name, held in against.items():
        prints = prints_of(held, open_picture, name=name, see=see)
        found = leaks(samples, prints, see=see)
        if not found:
            continue
        shown = "; ".join(f"row {i + 1} (sample {samples[i].id}): {how}" for i, how in
                          found[:SHOWN if on_found == "raise" else 1])
        told = (f"{len(found)} of {len(samples)} training rows are known from the {name} set: "
                f"{shown}")
        if on_found == "raise" or len(found) == len(samples):
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise SelfloopError(f"{told}{more if on_found == 'raise' else ''}; take them out of "
                                f"the training data or out of the {name} set (`selfloop init` "
                                "makes splits that share nothing), or write data.decontaminate: "
                                f"{'exact, which drops them, or ' if on_found == 'raise' else ''}"
                                "none in run.yaml")
        notes.append(f"{told}; they are left out")
        gone |= {i for i, _ in found}
    kept = samples if not gone else Samples.of(
        (s for i, s in enumerate(samples) if i not in gone), samples.name)
    if not len(kept):
        raise SelfloopError(f"no training row remains: {' '.join(notes)}")
    return Cleaned(kept, tuple(notes), tuple(sorted(gone)))


def unknown_to(train: Samples, dev: Samples | None, test: Path | None, how: How,
               suites: Sequence[Path] = ()) -> Cleaned:
    """The stage before every run that run.yaml describes: train without what is evaluated on.

    That is dev, the test file and the files of `suites`, of which only hashes are taken. What
    cannot be compared is told: rows that cannot be read, and a sealed test, which `Sealed.open`
    compares at the end.
    """
    if how == "none":
        return Cleaned(train)
    against: dict[str, Sequence[Sample]] = {} if dev is None else {"dev": dev}
    files = {f"suites[{i}] ({path.name})": path for i, path in enumerate(suites)}
    untold: list[str] = []
    if test is not None and test.suffix == ".sealed":
        untold.append(f"the test set {test.name} is sealed, so training rows were not compared "
                      "with it: its pictures are when it is opened after the run")
    elif test is not None:
        files = {"test": test, **files}
    for name, path in files.items():
        held = load(path, on_bad="report")
        against[name] = held
        if held.problems:
            more = len(held.problems) - 1
            untold.append(f"the {name} set was compared without what cannot be read: "
                          f"{held.problems[0]}" + (f" (and {more} more)" if more else ""))
    found = cleaned(train, against, see=_Seen(looks=how == "looks"),
                    on_found="raise" if how == "raise" else "drop")
    return Cleaned(found.samples, (*found.notes, *untold), found.dropped)


@dataclass(frozen=True)
class _Seen:
    """The pixels of every picture, and its look if asked for: each is opened once a process.

    Without looks, the frames of a video are known by its bytes alone, because decoding it costs
    seconds; so is a picture that cannot be opened, at which a run that draws it stops.
    """

    looks: bool

    def __call__(self, medium: Media) -> tuple[str | None, tuple[Look, ...]]:
        at = (medium.identity, self.looks)
        if at not in _KNOWN:
            _KNOWN[at] = self._hashes(medium)
        return _KNOWN[at]

    def _hashes(self, medium: Media) -> tuple[str | None, tuple[Look, ...]]:
        if medium.kind != "image" or ("frame" in medium.meta and not self.looks):
            return None, ()
        try:
            picture = _LIBRARY.open(medium)
        except SelfloopError:
            if self.looks:
                raise
            return None, ()
        return pixel_hash(picture), both_looks(picture) if self.looks else ()


_LIBRARY = Library(None, keep_pixels=0)
_KNOWN: dict[tuple[str, bool], tuple[str | None, tuple[Look, ...]]] = {}
"""By what a picture shows (`Media.identity`), so that a plan that reads the data thrice opens the
pictures once."""
