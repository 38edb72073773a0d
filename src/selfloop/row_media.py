"""The pictures, videos and sounds of a row: in which columns they are, and how texts mark them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from selfloop import video

Kind = Literal["image", "video", "audio"]
Row = Mapping[str, Any]

PICTURES = ("images", "image", "image_path", "file_name", "file", "filename", "path")
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "image": PICTURES, "video": ("videos", "video", "video_path"),
    "audio": ("audios", "audio", "audio_path"),
}
MARKER = "<image>"
MARKERS: dict[str, Kind] = {MARKER: "image", "<video>": "video", "<audio>": "audio"}
"""What marks a medium's place in a text."""
PARTS: dict[str, Kind] = {
    "image": "image", "image_url": "image", "video": "video", "video_url": "video",
    "audio": "audio", "audio_url": "audio", "input_audio": "audio",
}
"""Types of content parts that hold or mark a medium."""


@dataclass(frozen=True)
class Given:
    """One medium as a row gives it, not yet found."""

    kind: Kind
    value: Any
    column: str
    """Where it stands in the row, for messages."""
    fps: float | None = None
    """Frames a second of a video that is given as its frames; None = not told."""


@dataclass(frozen=True)
class Mark:
    """A medium's place in a message; `given` where the message itself holds it."""

    kind: Kind = "image"
    given: Given | None = None


def media_of(row: Row) -> tuple[list[Given], set[str]]:
    """What the row's columns hold, pictures first, and which columns are used up by it."""
    found: list[Given] = []
    used: set[str] = set()
    for kind, names in COLUMNS.items():
        column = next((n for n in names if n in row and len(_as_list(row[n]))), None)
        # `image` beside `images` says the same once more; other names may be ordinary columns.
        used |= {*names[:2], *([column] if column else [])}
        if column is None:
            continue
        values = _as_list(row[column])
        listed = values[0] is not row[column]
        if kind == "video" and column != "videos" and listed and not any(map(_is_video, values)):
            values = [values]  # one video, given as its frames
        found += [Given(kind, value, column, _fps(row, i) if kind == "video" else None)
                  for i, value in enumerate(values)]
    return found, used | ({"fps"} if any(g.fps for g in found) else set())


def unread_beside(row: Row) -> tuple[str, str] | None:
    """The column that is read and the other, where a row has both `images` and `image` (`videos`
    and `video`, ...) and the other holds something that the first does not."""
    for many, one, *_ in COLUMNS.values():
        first = [v for v in _as_list(row.get(many)) if v is not None]
        second = [v for v in _as_list(row.get(one)) if v is not None]
        same = any(_equal(row.get(one), v) for v in first)  # a value that is itself a list
        if first and not same and any(not any(_equal(v, w) for w in first) for v in second):
            return many, one
    return None


def _equal(one: Any, other: Any) -> bool:
    """Whether both are the same value; arrays compare by element, which is no answer."""
    try:
        return one is other or bool(one == other)
    except ValueError:
        return False


def mark_of(column: str, part: Row) -> Mark:
    """The mark that a content part is."""
    kind = PARTS[str(part["type"])]
    names = (str(part["type"]), kind, f"{kind}_url", "url", "path")
    value = next((part[name] for name in names if part.get(name) is not None), None)
    if isinstance(value, Mapping) and isinstance(value.get("data"), str):  # input_audio
        value = value["data"]
    return Mark(kind, None if value is None else Given(kind, value, column, _fps(part, 0)))


def marked(text: str) -> list[str | Mark]:
    """A text cut at its markers. Line breaks next to a marker belong to it, and go with it."""
    found: list[str | Mark] = [text]
    for marker, kind in MARKERS.items():
        found = [piece for old in found
                 for piece in (_split(old, marker, kind) if isinstance(old, str) else [old])]
    return found


def _split(text: str, marker: str, kind: Kind) -> list[str | Mark]:
    pieces = text.split(marker)
    found: list[str | Mark] = []
    for i, piece in enumerate(pieces):
        if i:
            found.append(Mark(kind))
            piece = piece.removeprefix("\n")
        if i < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        found.append(piece)
    return found


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError):  # a file name may start with a bracket
            value = json.loads(value)
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_video(value: Any) -> bool:
    """Whether it is one of several videos, or the only one, and not a frame."""
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("video") or value.get("bytes")
    if isinstance(value, bytes | bytearray):
        return video.container(bytes(value)) is not None
    return isinstance(value, list | tuple) or str(value).lower().endswith(video.NAMES)


def _fps(row: Row, index: int) -> float | None:
    told = row.get("fps") if row.get("fps") is not None else row.get("sample_fps")
    told = told[index] if isinstance(told, list | tuple) and index < len(told) else told
    return float(told) if isinstance(told, int | float) and told > 0 else None
