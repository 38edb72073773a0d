"""The training rows that no evaluation set knows: decontamination before a run's first draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfloop.data import Samples, load
from selfloop.organize.refine.decontaminate import SHOWN, leaks, prints_of
from selfloop.pictures import Library
from selfloop.roles import SelfloopError
from selfloop.types import Media, Sample


@dataclass(frozen=True)
class Cleaned:
    """Rows that remain, and what was taken out, in words."""

    samples: Samples
    notes: tuple[str, ...] = ()
    """One line an evaluation set that knew some: how many rows, and the first of them."""
    dropped: tuple[int, ...] = ()
    """Which rows went, from 0."""


def cleaned(samples: Samples, against: Mapping[str, Sequence[Sample]], *,
            on_found: Literal["drop", "raise"] = "drop",
            open_picture: Callable[[Media], Any] | None = None) -> Cleaned:
    """`samples` without those that a set of `against` (name -> its samples) knows.

    Known are: the same question and pictures, a picture of the same bytes, a shared 13-gram of a
    question without pictures, and with `open_picture` (opens every picture once) a picture that
    looks alike; see decontaminate.py. Raises SelfloopError naming the count and examples with
    on_found="raise", and always when nothing would remain.
    """
    gone: set[int] = set()
    notes: list[str] = []
    for name, held in against.items():
        prints = prints_of(held, open_picture, name=name)
        found = leaks(samples, prints, open_picture)
        if not found:
            continue
        shown = "; ".join(f"row {i + 1} (sample {samples[i].id}): {how}" for i, how in
                          found[:SHOWN if on_found == "raise" else 1])
        told = (f"{len(found)} of {len(samples)} training rows are known from the {name} set: "
                f"{shown}")
        if on_found == "raise" or len(found) == len(samples):
            raise SelfloopError(f"{told}; take them out of the training data or out of the {name} "
                                "set (`selfloop init` makes splits that share nothing), or write "
                                "data.decontaminate: none in run.yaml")
        notes.append(f"{told}; they are left out")
        gone |= {i for i, _ in found}
    kept = samples if not gone else Samples.of(
        (s for i, s in enumerate(samples) if i not in gone), samples.name)
    if not len(kept):
        raise SelfloopError(f"no training row remains: {' '.join(notes)}")
    return Cleaned(kept, tuple(notes), tuple(sorted(gone)))


def unknown_to(train: Samples, dev: Samples | None, test: Path | None,
               how: Literal["exact", "looks", "none"]) -> Cleaned:
    """The stage before every run that run.yaml describes: train without what dev and test know.

    Of the test file only hashes are taken. A sealed one cannot be compared here; `Sealed.open`
    does it at the end.
    """
    if how == "none":
        return Cleaned(train)
    against = {} if dev is None else {"dev": dev}
    if test is not None and test.exists() and test.suffix != ".sealed":
        against["test"] = load(test, on_bad="report")
    return cleaned(train, against, open_picture=Library().open if how == "looks" else None)
