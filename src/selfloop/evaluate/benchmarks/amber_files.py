"""AMBER's files: queries joined with their annotations, and the words that stand for objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfloop.evaluate.benchmarks.shared_pictures import with_shared_pictures
from selfloop.roles import SelfloopError
from selfloop.sources import Row, Source, source_of


def read(path: Path, split: str | None) -> Source:
    """The authors' folder (`data`) or one of its `query_*.json`, annotations beside it or one
    folder up; or a table (VLMEvalKit's AMBER.tsv, or the captions' half as published on the Hub).

    `split` in a folder: the query file's name after "query_", such as "generative"; all by default.
    """
    if path.is_dir() and _near(path, "annotations.json") is not None:
        path = _queries(path, split or "all")
    if path.name.startswith("query_") and path.suffix == ".json":
        return Source(str(path), path.absolute().parent, lambda: enumerate(_joined(path), 1))
    table = with_shared_pictures(source_of(path, split))
    relations = _near(path if path.is_dir() else path.parent, "relation.json")
    known = _vocabulary(relations) if relations else {}

    def rows() -> Iterator[tuple[int, Row | str]]:
        for number, found in table.rows():
            captioned = isinstance(found, dict) and "hallu" in found
            yield number, {**known, **found} if captioned and isinstance(found, dict) else found

    return Source(table.name, table.home, rows)


def _near(folder: Path, name: str) -> Path | None:
    places = (folder / name, folder / "metadata" / name, folder.parent / name)
    return next((p for p in places if p.is_file()), None)


def _queries(folder: Path, split: str) -> Path:
    found = [p for p in (folder / "query" / f"query_{split}.json", folder / f"query_{split}.json")
             if p.is_file()]
    if not found:
        raise SelfloopError(f"{folder}: no query_{split}.json, here or in query/; give the "
                            "authors' data folder as it is, or one of its query files")
    return found[0]


def _joined(path: Path) -> Iterator[Row]:
    """Queries with what is annotated of them, by id."""
    places = {name: _near(path.absolute().parent, name)
              for name in ("annotations.json", "relation.json")}
    lacking = next((name for name, place in places.items() if place is None), None)
    if lacking is not None:
        raise SelfloopError(f"{path}: {lacking} is missing, here and one folder up; keep the "
                            "authors' data folder as it is")
    annotations, relations = places.values()
    assert annotations is not None and relations is not None
    known = _vocabulary(relations)
    annotated = {one.get("id"): one for one in _list(annotations)}
    for query in _list(path):
        yield {**query, **annotated.get(query.get("id"), {}), **known}


def _list(path: Path) -> list[Any]:
    found = _json(path)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise SelfloopError(f"{path}: expected a list of objects, as the authors publish it")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise SelfloopError(f"{path}: not JSON ({error}); was it cut off?") from error


def _vocabulary(relations: Path) -> Row:
    """`aliases`: {object: words that stand for it}; `safe`: words that never count as invented."""
    safe = relations.with_name("safe_words.txt")
    return {"aliases": _json(relations),
            "safe": safe.read_text(encoding="utf-8").split() if safe.is_file() else []}
