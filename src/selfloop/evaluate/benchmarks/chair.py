"""CHAIR: how many of the objects that a caption names are not in the picture.

Rohrbach et al. 2018, arXiv 1809.02156. It counts errors only, so a model that says less looks
better: object recall and the mean length of captions stand beside it, always.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfloop.evaluate.benchmark import (
    OWN,
    Benchmark,
    Marked,
    Tally,
    Way,
    as_it_is,
    needed,
    scored,
)
from selfloop.evaluate.objects import coco, coco_names
from selfloop.formats import BadRow
from selfloop.roles import SelfloopError
from selfloop.sources import Row, Source, source_of
from selfloop.types import Sample, Verdict

PROMPT = "Please describe this image in detail."
_LISTS = ("objects", "gt_object", "gt_objects")


# -- files --------------------------------------------------------------------------------------

def read(path: Path, split: str | None) -> Source:
    """COCO's own files (a folder with `instances_SPLIT.json` and `captions_SPLIT.json`, or the
    instances file), or a table with the objects of each picture.

    Raises SelfloopError for a folder with several splits when none is named.
    """
    if path.is_dir() and (found := sorted(path.glob("instances_*.json"))):
        path = _one(path, found, split)
    if not path.name.startswith("instances_"):
        return source_of(path, split)
    if not path.is_file():
        raise SelfloopError(f"{path}: no such file; check the path")
    return Source(str(path), path.absolute().parent,
                  lambda: enumerate(_pictures(path), 1))


def _one(folder: Path, found: list[Path], split: str | None) -> Path:
    kept = [p for p in found if split is None or p.stem == f"instances_{split}"]
    if len(kept) != 1:
        raise SelfloopError(
            f"{folder}: holds {', '.join(p.name for p in found)}; name one of the files, or its "
            "split (split=val2014 reads instances_val2014.json)")
    return kept[0]


def _pictures(path: Path) -> Iterator[Row]:
    """A row a picture: the objects segmented in it, and those that people's captions name.

    The paper needs both: people name what the segmentation leaves out, and the other way round.
    """
    names, segmented, captioned, pictures = _annotated(path)
    for identity, name in pictures.items():
        labels = {names.get(c, str(c)) for c in segmented.get(identity, ())}
        said = [o for text in captioned.get(identity, ()) for o in coco().mentions(text)]
        yield {"image": name, "image_id": identity, "objects": sorted(labels | set(said))}


def _annotated(path: Path) -> tuple[dict[int, str], dict[int, set[int]], dict[int, list[str]],
                                    dict[int, str]]:
    captions = path.with_name(path.name.replace("instances_", "captions_", 1))
    if not captions.is_file():
        raise SelfloopError(f"{captions}: missing; CHAIR takes the objects of a picture from its "
                            "segmentation and its captions, so put both files of a split together")
    instances, texts = _json(path), _json(captions)
    try:
        names = {c["id"]: c["name"] for c in instances["categories"]}
        pictures = {p["id"]: p["file_name"] for p in instances["images"]}
        segmented: dict[int, set[int]] = {}
        for one in instances["annotations"]:
            segmented.setdefault(one["image_id"], set()).add(one["category_id"])
        captioned: dict[int, list[str]] = {}
        for one in texts["annotations"]:
            captioned.setdefault(one["image_id"], []).append(one["caption"])
    except (KeyError, TypeError) as error:
        raise SelfloopError(f"{path}: not a COCO annotation file (no field {error}); expected "
                            "images, annotations and categories") from error
    return names, segmented, captioned, pictures


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise SelfloopError(f"{path}: not JSON ({error}); was it cut off?") from error


# -- rows ---------------------------------------------------------------------------------------

def row(found: Row) -> Row:
    """`image` and its objects, in `objects` or `gt_object`, as a list or as JSON text."""
    column = next((name for name in _LISTS if found.get(name) is not None), None)
    if column is None:
        needed(found, "image", "objects")
    needed(found, "image")
    assert column is not None  # needed() has raised otherwise
    picture = found["image"]
    made: Row = {"prompt": PROMPT, "images": [picture], "answer": _objects(column, found[column])}
    return made | ({"cluster": picture} if isinstance(picture, str) and len(picture) < 256 else {})


def _objects(column: str, value: Any) -> list[str]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow(column, "not a list",
                         'expected JSON text such as ["dog", "tv"]') from error
    if not isinstance(value, list | tuple):
        raise BadRow(column, f"a {type(value).__name__}", "expected a list of COCO's categories")
    found = {str(name): coco().mentions(str(name)) for name in value}
    unknown = next((n for n, seen in found.items() if n not in coco_names() and len(seen) != 1),
                   None)
    if unknown is not None:
        raise BadRow(column, f"{unknown!r} is none of COCO's 80 categories",
                     'write the category, as in ["dog", "tv"]')
    return sorted({name if name in coco_names() else seen[0] for name, seen in found.items()})


# -- marking and counting -----------------------------------------------------------------------

def mark(text: str, sample: Sample) -> Verdict:
    """Right (1) is a caption that invents nothing; extracted is every object that it names."""
    named = coco().mentions(text)
    return scored(not set(named) - set(_gold(sample)), ", ".join(named))


def _gold(sample: Sample) -> list[str]:
    return [str(name) for name in sample.answer] if isinstance(sample.answer, list) else []


def count(marked: Sequence[Marked]) -> Tally:
    """`chair_i`: invented mentions over mentions; `chair_s`: captions that invent over captions;
    `recall`: objects that are named over objects that are there; `mean_length` in words."""
    total = dict.fromkeys(("invented", "named", "inventing", "found", "there", "words", "n"), 0)
    for sample, answer in marked:
        if answer.score is None:
            continue
        named = answer.parsed.split(", ") if answer.parsed else []
        gold = set(_gold(sample))
        invented = sum(name not in gold for name in named)
        for name, more in (("invented", invented), ("named", len(named)),
                           ("inventing", invented > 0), ("found", len(gold & set(named))),
                           ("there", len(gold)), ("words", len(answer.text.split())), ("n", 1)):
            total[name] += more
    return {"chair_i": (total["invented"], total["named"]),
            "chair_s": (total["inventing"], total["n"]),
            "recall": (total["found"], total["there"]),
            "mean_length": (total["words"], total["n"])}


def _way(tokens: int, extractor: str) -> Way:
    return Way(ask=as_it_is, mark=mark, extractor=extractor, max_new_tokens=tokens,
               fallback="a caption that names no object invents none; its recall is 0")


BENCHMARK = Benchmark(
    name="chair", title="CHAIR", source="arXiv 1809.02156; github.com/LisaAnne/Hallucination",
    layout="COCO's instances_SPLIT.json with captions_SPLIT.json beside it, pictures in the "
           "split's folder; or a table with `image` and `objects` (or `gt_object`)",
    read=read, row=row, count=count, main="chair_i", lower_is_better=True,
    ways={
        OWN: _way(512, "COCO's 80 categories by our list of synonyms, plurals and compounds"),
        "lmms-eval": _way(2048, "our list of synonyms in place of the tool's, which is the "
                                "paper's, read by a tagger"),
    },
    notes=("read chair_i and chair_s beside recall and mean_length: saying less lowers both",),
)
