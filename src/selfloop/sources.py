"""From files, folders and Dataset objects to numbered rows of plain values."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfloop.pictures import find, is_remote
from selfloop.roles import SelfloopError

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | str]]
"""(row number from 1, the row), or a text in place of a row that cannot be read: what is wrong."""


@dataclass(frozen=True)
class Source:
    """Where rows come from: its name for messages, the folder it lies in, and the rows."""

    name: str
    home: Path | None
    """The data's folder: relative picture paths start here. None for rows in memory."""
    rows: Callable[[], Rows]


def source_of(given: Any, split: str | None) -> Source:
    """Recognise a source. Raises SelfloopError for what is not one, listing what would be.

    A folder is, in this order: a saved `datasets` folder; data files, if there is just one (or
    one set named after the split); pictures with a labels or metadata file; pictures alone.
    """
    if isinstance(given, str | Path):
        if is_remote(str(given)):
            raise SelfloopError(f"{given}: download it first; selfloop fetches nothing")
        path = Path(given).expanduser()
        if path.is_dir():
            return _folder(path, split)
        if not path.is_file():
            raise SelfloopError(f"{path}: no such file or folder; check the path")
        return _with_split(_file(path), split)
    if type(given).__module__.split(".")[0] == "datasets":
        return _dataset(given, split, f"a {type(given).__name__}", None)
    if isinstance(given, Sequence) and all(isinstance(row, Mapping) for row in given):
        rows = [dict(row) for row in given]
        return _with_split(Source("rows in memory", None, lambda: enumerate(rows, 1)), split)
    raise SelfloopError(
        f"cannot load data from {type(given).__name__}; give a .jsonl, .json, .parquet, .csv or "
        ".tsv file, a folder of pictures, a datasets folder or Dataset, or a list of rows"
    )


# -- folders ------------------------------------------------------------------------------------

_LABELS = ("labels", "metadata", "annotations")


def _folder(path: Path, split: str | None) -> Source:
    if any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        import datasets

        return _dataset(datasets.load_from_disk(str(path)), split, str(path), path)
    files = [p for p in sorted(path.iterdir()) if p.suffix in READERS and p.name[0] != "."]
    labels = [p for p in files if p.stem in _LABELS]
    pictures = find(path)
    if pictures and (labels or not files):
        if labels:
            return _with_split(_file(labels[0]), split)
        rows: list[tuple[int, Row | str]] = [
            (n, {"image": str(p.relative_to(path))}) for n, p in enumerate(pictures, 1)
        ]
        return _with_split(Source(str(path), path, lambda: iter(rows)), split)
    named = [p for p in files if split and (p.stem == split or p.stem.startswith(f"{split}-"))]
    chosen = named or (files if len(files) == 1 else [])
    if not chosen:
        listed = ", ".join(p.name for p in files[:8]) or "no data files and no pictures"
        raise SelfloopError(
            f"{path}: holds {listed}; name one of the files, or a split that files are called after"
        )
    parts = [_file(p) for p in chosen]
    if not named:
        return _with_split(parts[0], split)

    def joined() -> Rows:
        number = 0
        for part in parts:
            for _, row in part.rows():
                number += 1
                yield number, row

    name = parts[0].name if len(parts) == 1 else str(path / f"{split}-*")
    return Source(name, path, joined)


def _with_split(source: Source, split: str | None) -> Source:
    """Keep the rows whose own `split` field says so; refuse when rows have none."""
    if split is None:
        return source

    def chosen() -> Rows:
        for number, row in source.rows():
            if isinstance(row, dict) and "split" not in row:
                raise SelfloopError(
                    f"{source.name}, row {number}: split={split!r} was asked for, but the row has "
                    "no `split` field; leave split out, or name the file of that split"
                )
            if isinstance(row, str) or row["split"] == split:
                yield number, row

    return Source(f"{source.name} [{split}]", source.home, chosen)


# -- files --------------------------------------------------------------------------------------


def _file(path: Path) -> Source:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise SelfloopError(f"{path}: cannot read {path.suffix or 'a file without a suffix'}; "
                            f"expected one of {', '.join(READERS)}")
    return Source(str(path), path.absolute().parent, lambda: reader(path))


def jsonl_rows(path: Path) -> Rows:
    """One object a line, whatever the file is called."""
    with open(path, "rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise SelfloopError(f"{path}: it is in UTF-16: save it as UTF-8")
        file.seek(0)
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                yield number, f"not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
                continue
            except ValueError as error:
                yield number, f"not JSON ({error}); expected one object a line"
                continue
            yield number, row if isinstance(row, dict) else (
                f"a JSON {type(row).__name__}; expected one object a line")


def _json(path: Path) -> Rows:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise SelfloopError(f"{path}: not JSON ({error}); is it JSON lines? call it .jsonl"
                            ) from error
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        found = found["data"] if "data" in found else lists[0] if len(lists) == 1 else [found]
    if not isinstance(found, list):
        raise SelfloopError(f"{path}: a JSON {type(found).__name__}; expected a list of objects")
    for number, row in enumerate(found, 1):
        yield number, row if isinstance(row, dict) else (
            f"a JSON {type(row).__name__}; expected an object")


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = _class_names(file.schema_arrow.metadata)
        number = 0
        for batch in file.iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield number, _named(row, names)
    except (pa.ArrowException, OSError) as error:
        raise SelfloopError(f"{path}: not readable as parquet "
                            f"({' '.join(str(error).split())}); was it cut off?") from error


def _separator(path: Path, head: str) -> str:
    """What stands between cells: spreadsheets write ; where a comma is the decimal sign."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return next((mark for mark in (",", ";", "\t") if mark in head), ",")


def _table(path: Path) -> Rows:
    # VLMEvalKit's tables hold whole pictures as base64; the default limit is 131,072 characters.
    before = csv.field_size_limit(1 << 30)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            rows = csv.DictReader(file, delimiter=_separator(path, head))
            for number, row in enumerate(rows, 1):
                if None in row or None in row.values():
                    yield number, (f"{'more' if None in row else 'fewer'} cells than the header "
                                   "has columns; quote cells that hold the separator")
                else:
                    yield number, {k: v for k, v in row.items() if v != ""}
    except UnicodeDecodeError as error:
        raise SelfloopError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}): save it as "
                            "UTF-8") from error
    except csv.Error as error:
        raise SelfloopError(f"{path}: not readable as a table ({error})") from error
    finally:
        csv.field_size_limit(before)


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": jsonl_rows, ".ndjson": jsonl_rows, ".json": _json, ".parquet": _parquet,
    ".csv": _table, ".tsv": _table,
}


# -- the datasets library -----------------------------------------------------------------------


def _dataset(data: Any, split: str | None, name: str, home: Path | None) -> Source:
    if hasattr(data, "keys"):
        splits = list(data.keys())
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            raise SelfloopError(f"{name}: has the splits {', '.join(splits)}; "
                                f"name one with split= (got {split!r})")
        data, name = data[split], f"{name} [{split}]"
    elif split is not None and str(getattr(data, "split", None)) != split:
        raise SelfloopError(f"{name}: is a single set, not {split!r}; leave split out")
    if not hasattr(data, "with_format"):
        raise SelfloopError(f"{name}: a {type(data).__name__} is no Dataset; save it to a file")
    names = {
        column: feature.names for column, feature in (data.features or {}).items()
        if type(feature).__name__ == "ClassLabel"
    }

    def rows() -> Rows:
        # As Arrow, a picture is {"bytes", "path"}: nothing is decoded, nothing re-encoded.
        raw = data.with_format("arrow")
        number = 0
        for batch in raw.iter(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield number, _named(row, names)

    return Source(name, home, rows)


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Names of integer class labels, which the Hub's parquet files keep in their metadata."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {column: feature["names"] for column, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError):
        return {}


def _named(row: Row, names: Mapping[str, list[str]]) -> Row:
    for column, known in names.items():
        value = row.get(column)
        if isinstance(value, int) and 0 <= value < len(known):
            row[column] = known[value]
    return row
