"""Data in and out: whatever rows people have, as an indexed view of Samples, and back.

Every row either becomes a Sample or a `Problem` that names the file, the row and the field.
Duplicates (equal question, pictures and answer) are merged and counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

from pydantic_core import PydanticSerializationError

from selfloop.formats import BadRow
from selfloop.media_index import MediaIndex
from selfloop.pictures import LIMITS, Limits, Pages, write_whole
from selfloop.roles import SelfloopError
from selfloop.row_to_sample import sample_of, with_media
from selfloop.sources import Source, source_of
from selfloop.types import Sample, digest


@dataclass(frozen=True)
class Problem:
    """A row that did not become a Sample, and why."""

    row: int
    """From 1: the line of a JSONL file, the record of any other."""
    field: str
    file: str
    what: str
    mend: str

    def __str__(self) -> str:
        where = f", field {self.field!r}" if self.field else ""
        return f"{self.file}, row {self.row}{where}: {self.what}" + (
            f"; {self.mend}" if self.mend else "")


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """An indexed view of samples: kept as JSON text, parsed when asked for. Slices are views."""

    _lines: tuple[str, ...]
    _marks: tuple[str, ...]
    problems: list[Problem] = field(default_factory=list)
    """Rows left out, under on_bad="report"."""
    merged: int = 0
    """Rows that were duplicates of an earlier one."""
    notes: tuple[str, ...] = ()
    """What else a reader should know: columns left out, contradicting labels."""
    name: str = ""

    @classmethod
    def of(cls, samples: Iterable[Sample], name: str = "") -> Samples:
        """A view of these samples, in order; duplicates are merged and counted."""
        maker = _Maker()
        for sample in samples:
            maker.add(sample)
        return maker.done(name)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            return replace(self, _lines=self._lines[index], _marks=self._marks[index])
        return Sample.from_json(self._lines[index])

    def __iter__(self) -> Iterator[Sample]:
        return (Sample.from_json(line) for line in self._lines)

    def __repr__(self) -> str:
        return (f"Samples({self.name!r}: {len(self)} samples, {self.merged} merged, "
                f"{len(self.problems)} problems)")

    def take(self, n: int) -> Samples:
        """The first `n`."""
        return self[:n]

    def filter(self, keep: Callable[[Sample], bool]) -> Samples:
        """Those for which `keep(sample)` is true, in order."""
        kept = [i for i, sample in enumerate(self) if keep(sample)]
        return replace(self, _lines=tuple(self._lines[i] for i in kept),
                       _marks=tuple(self._marks[i] for i in kept))

    def fingerprint(self) -> str:
        """Hash of what the samples say, in order; where the pictures lie does not matter."""
        return digest(list(self._marks))


class _Maker:
    """Collects samples into a Samples, merging duplicates."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}
        self.marks: list[str] = []
        self.asked: dict[str, int] = {}
        self.merged = 0
        self.problems: list[Problem] = []
        self.notes: dict[str, int] = {}

    def add(self, sample: Sample) -> None:
        if sample.id in self.lines:
            self.merged += 1
            return
        self.lines[sample.id] = sample.to_json()
        self.marks.append(digest([sample.id, sample.rationale, sample.meta]))
        if sample.answer is not None:
            asked = digest([sample.context.identity, sample.meta.get("task"),
                            sample.meta.get("env_seed")])
            self.asked[asked] = self.asked.get(asked, 0) + 1

    def done(self, name: str) -> Samples:
        notes = [f"{text} ({n} rows)" for text, n in self.notes.items()]
        blind = sum('"media":[' not in line for line in self.lines.values())
        if 0 < blind < len(self.lines):  # a column that is empty in some rows is easily overlooked
            notes.append(f"{blind} of {len(self.lines)} samples have no picture or sound, the "
                         "others do")
        if unsure := sum(n > 1 for n in self.asked.values()):
            notes.append(f"{unsure} questions come with more than one answer; all are kept")
        return Samples(tuple(self.lines.values()), tuple(self.marks), self.problems, self.merged,
                       tuple(notes), name)


def load(
    source: Any, *, split: str | None = None, root: str | Path | None = None,
    task: str | None = None, answer: str | None = None, limit: int | None = None,
    on_bad: Literal["raise", "report"] = "raise", pages: Pages = "all",
    frames: int = 8, limits: Limits = LIMITS, images: str | Path | None = None,
) -> Samples:
    """Rows of any known shape (formats.py) from any known source (sources.py), as Samples.

    `root` is where relative picture paths start (else the data's own folder); `task` the question
    for rows that have none; `answer` names the label column if it has an unusual name; `limit`
    stops after that many rows. A video becomes its frames, each after its time: at most `frames`
    of a file, at even distances (told in `.notes`), and all that a row lists. Media that come as
    bytes are stored in `images`, by default `.selfloop/images` beside the data. Columns that are
    not understood go to `Sample.meta`.
    With on_bad="raise" a bad row raises SelfloopError, after all were looked at, naming the first
    and how many there are; with "report" they are left out and listed in `.problems`.
    """
    if on_bad not in ("raise", "report"):
        raise SelfloopError(f'on_bad={on_bad!r}: expected "raise" or "report"')
    if frames < 1:
        raise SelfloopError(f"frames={frames}: expected at least 1")
    if isinstance(source, Samples):
        return source if limit is None else source.take(limit)
    found = source if isinstance(source, Source) else source_of(source, split)
    base = Path(root) if root is not None else found.home or Path(".")
    index = MediaIndex(base.absolute(), found.home, images=Path(images) if images else None,
                       pages=pages, frames=frames, limits=limits)
    maker = _Maker()
    try:
        _read_rows(found, maker, index, task, answer, limit)
    finally:
        index.save()
    if maker.problems and on_bad == "raise":
        more = len(maker.problems) - 1
        raise SelfloopError(str(maker.problems[0]) + (
            f" (and {more} more bad rows)" if more else "")
            + ' -- on_bad="report" would leave bad rows out and list them')
    if not maker.lines and not maker.problems:
        raise SelfloopError(f"{found.name}: no rows; expected at least one")
    return maker.done(found.name)


def _read_rows(
    source: Source, maker: _Maker, index: MediaIndex, task: str | None, answer: str | None,
    limit: int | None,
) -> None:
    seen = 0
    for number, row in source.rows():
        if limit is not None and seen >= limit:
            break
        seen += 1
        try:
            if isinstance(row, str):
                raise BadRow("", row, "mend or delete the row")
            sample, notes = sample_of(row, index, task=task, answer=answer)
        except BadRow as bad:
            maker.problems.append(Problem(number, bad.field, source.name, bad.what, bad.mend))
            continue
        try:
            maker.add(sample)
        except (UnicodeEncodeError, PydanticSerializationError):
            maker.problems.append(Problem(
                number, next((str(k) for k, v in dict(row).items() if _is_broken(v)), ""),
                source.name, "half of a surrogate pair (\\ud83d, say), which is no text",
                "write the whole character, or take it out"))
            continue
        for note in notes:
            maker.notes[note] = maker.notes.get(note, 0) + 1


def _is_broken(value: Any) -> bool:
    """Whether it holds text that no file can: JSON can say half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return True
    return False


# -- and back -----------------------------------------------------------------------------------


def save(samples: Iterable[Sample], path: str | Path) -> Path:
    """Write a .jsonl file (Sample JSON, one a line) or a .parquet file, whole or not at all.

    A parquet table has readable columns (id, question, answer) beside `json`, from which `load`
    restores the Sample. Pictures are referred to, not copied: relative to the file where they lie
    below its folder, so that the folder may be moved. Raises SelfloopError for other suffixes.
    """
    path = Path(path).absolute()
    moved = [_relative(sample, path.parent) for sample in samples]
    if path.suffix in (".jsonl", ".ndjson"):
        write_whole(path, "".join(f"{s.to_json()}\n" for s in moved).encode())
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({
            "id": [s.id for s in moved],
            "question": [s.context.text for s in moved],
            "answer": [None if s.answer is None else s.answer if isinstance(s.answer, str)
                       else json.dumps(s.answer) for s in moved],
            "json": [s.to_json() for s in moved],
        })
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_whole(path, sink.getvalue().to_pybytes())
    else:
        raise SelfloopError(f"{path}: cannot write {path.suffix!r}; expected .jsonl or .parquet")
    return path


def _relative(sample: Sample, folder: Path) -> Sample:
    media = []
    for medium in sample.media:
        uri = medium.meta.get("uri")
        if isinstance(uri, str) and os.path.isabs(uri) and Path(uri).is_relative_to(folder):
            uri = Path(uri).relative_to(folder).as_posix()
            medium = medium.model_copy(update={"meta": {**medium.meta, "uri": uri}})
        media.append(medium)
    return with_media(sample, tuple(media))


def to_messages(sample: Sample) -> dict[str, Any]:
    """A row in TRL's format: `prompt` (messages of parts), `images` (paths), `answer` if any.

    Raises SelfloopError for pictures with no file, and for those with operations, which a path
    cannot carry.
    """
    images = []
    for medium in sample.media:
        uri = medium.meta.get("uri")
        if not isinstance(uri, str) or medium.ops:
            raise SelfloopError(f"sample {sample.id}: picture {medium.sha256[:12]} "
                                "has no file that shows it as it is; write it to one first")
        images.append(uri)
    row: dict[str, Any] = {
        "prompt": [
            {"role": m.role, "content": [
                {"type": "text", "text": p.text} if p.type == "text" else {"type": p.type}
                for p in m.content]}
            for m in sample.prompt
        ],
        "images": images,
    }
    return row if sample.answer is None else {**row, "answer": sample.answer}
