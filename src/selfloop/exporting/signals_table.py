"""Every signal of a step as one Parquet table with the datasets Image feature.

Nothing is lost: `json` holds the signal itself, and the other columns what a reader wants to see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from selfloop.exporting.picture_files import PictureFiles
from selfloop.exporting.shapes import parts_of
from selfloop.types import SIGNALS, AnySignal, Media


def signal_rows(signals: Iterable[AnySignal], files: PictureFiles) -> Iterator[dict[str, Any]]:
    """One row a signal; `pictures` of a branch index the row's `images`. Of sounds the row has
    what `json` says: their hash and their file."""
    for signal in signals:
        media: list[Media] = []
        branches = []
        for name, branch in signal.branches.items():
            branches.append({
                "name": name, "text": branch.text,
                "tokens": [list(turn.token_ids) for turn in branch.turns],
                "messages": [{"role": m.role, "content": parts_of(m)}
                             for m in branch.context.prompt],
                "pictures": [_place(m, media) for m in branch.context.media if m.kind == "image"]})
        advantage = getattr(signal, "advantage", None)
        yield {"kind": signal.kind, "sample": signal.sample, "role": signal.role,
               "weight": signal.weight, "why": signal.why, "rollouts": list(signal.rollouts),
               "margin": getattr(signal, "margin", None),
               "advantage": None if advantage is None else
               list(advantage) if isinstance(advantage, tuple) else [advantage],
               "branches": branches, "images": [as_bytes(m, files) for m in media],
               "json": signal.to_json()}


def _place(medium: Media, media: list[Media]) -> int:
    for index, known in enumerate(media):
        if known.identity == medium.identity:
            return index
    media.append(medium)
    return len(media) - 1


def as_bytes(medium: Media, files: PictureFiles) -> dict[str, Any]:
    """A picture as the Image feature stores it."""
    name, data = files.bytes_of(medium)
    return {"bytes": data, "path": name}


def signal_features() -> Any:
    """The table's columns."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    message = {"role": text, "content": List({"type": text, "text": text})}
    return Features({
        "kind": text, "sample": text, "role": text, "weight": Value("float64"), "why": text,
        "rollouts": List(text), "margin": Value("float64"),
        "advantage": List(Value("float64")),
        "branches": List({"name": text, "text": text, "tokens": List(List(Value("int64"))),
                          "messages": List(message), "pictures": List(Value("int64"))}),
        "images": List(Image()), "json": text})


def read_signals(path: str | Path) -> list[AnySignal]:
    """The signals of an exported table, equal to those that were written."""
    import pyarrow.parquet as pq

    columns = pq.read_table(path, columns=["kind", "json"]).to_pydict()
    return [SIGNALS[kind].from_json(text)  # type: ignore[misc]
            for kind, text in zip(columns["kind"], columns["json"], strict=True)]
