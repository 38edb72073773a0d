"""Collecting pictures and labels: what is there, what can be opened, and what looks alike."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfloop.data import Problem, Samples, load
from selfloop.pictures import Library, Limits, find, near_duplicates, perceptual_hash
from selfloop.roles import SelfloopError
from selfloop.row_media import PICTURES
from selfloop.splitting import joined
from selfloop.types import Sample

LARGEST_SHARE = 0.3
"""Look-alike clusters may chain together; none may hold more than this share of the samples."""


def gather(
    images: Any, labels: str | Path | None, task: str | None, limits: Limits,
    frames: int = 8,
) -> tuple[Samples, list[Problem]]:
    """Labelled samples, then the folder's other pictures; and the rows that were no use."""
    if labels is None:
        found = load(images, task=task, on_bad="report", frames=frames, limits=limits)
        return found, found.problems
    folder = Path(images).absolute()
    if not folder.is_dir():
        raise SelfloopError(f"{images}: labels were given, so images must be the folder they name "
                            "pictures in")
    named = load(labels, root=folder, task=task, on_bad="report", frames=frames, limits=limits)
    if not len(named):
        raise SelfloopError(f"{labels}: no row can be used; the first: {named.problems[0]}")
    if blind := sum(not sample.media for sample in named):
        raise SelfloopError(f"{labels}: {blind} of {len(named)} samples name no picture; give each "
                            f"row its file in a column {', '.join(PICTURES)}")
    media = [m for sample in named for m in sample.media]
    files, hashes = {str(m.meta.get("uri")) for m in media}, {m.sha256 for m in media}
    rest = [path for path in find(folder) if str(path) not in files]
    if not rest:
        return named, named.problems
    if task is None:
        note = (f"{len(rest)} pictures have no label and were left out; give task= (a question "
                "for all pictures) to use them unlabelled")
        return replace(named, notes=(*named.notes, note)), named.problems
    more = load([{"image": str(p)} for p in rest], task=task, on_bad="report", limits=limits)
    told = {problem.what for problem in named.problems}
    problems = named.problems + [
        replace(p, file=str(folder)) for p in more.problems if p.what not in told]
    # A copy of a labelled picture under another name is not one more unlabelled picture.
    new = [s for s in more if not hashes & {m.sha256 for m in s.media}]
    copies = len(more) - len(new) + more.merged
    both = replace(Samples.of([*named, *new], named.name), notes=named.notes,
                   merged=named.merged + copies)
    return both, problems


def open_all(
    samples: Samples, limits: Limits
) -> tuple[list[Sample], list[list[int]], list[Problem]]:
    """Samples whose media all decode, the perceptual hashes of pictures, and what is broken."""
    library = Library(limits=limits, keep_pixels=0)

    def hashes(sample: Sample) -> list[int] | SelfloopError:
        try:
            opened = [library.open(m) for m in sample.media]
            return [perceptual_hash(one) for one, m in zip(opened, sample.media, strict=True)
                    if m.kind == "image"]
        except SelfloopError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = list(pool.map(hashes, samples))
    kept, found, broken = [], [], []
    for number, (sample, result) in enumerate(zip(samples, results, strict=True), 1):
        if isinstance(result, SelfloopError):
            broken.append(Problem(number, "", samples.name, str(result), ""))
        else:
            kept.append(sample)
            found.append(result)
    return kept, found, broken


def clusters(samples: list[Sample], hashes: list[list[int]], notes: list[str]) -> list[int]:
    """The group of each sample. The distance shrinks while one group would swallow too much."""
    flat = [one for many in hashes for one in many]
    for distance in (6, 4, 2, 0):
        cluster = iter(near_duplicates(flat, distance))
        units: list[list[Any]] = []
        for sample, many in zip(samples, hashes, strict=True):
            own: list[Any] = [("looks", next(cluster)) for _ in many]
            own += [("bytes", m.sha256) for m in sample.media]
            if "cluster" in sample.meta:
                own.append(("named", str(sample.meta["cluster"])))
            units.append(own)
        groups = joined(units)
        largest = Counter(groups).most_common(1)[0][1]
        if largest <= max(3, LARGEST_SHARE * len(samples)):
            break
    if distance < 6:
        notes.append(f"the pictures look so much alike that only those within {distance} bits of "
                     "each other count as near duplicates (usually 6)")
    return groups
