"""One row as a Sample: its media found and put where the text wants them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image
from pydantic import ValidationError

from selfloop import pictures, sound, video
from selfloop.formats import BadRow, Draft, Messages, draft
from selfloop.media_index import MediaIndex
from selfloop.pictures import is_remote
from selfloop.roles import SelfloopError
from selfloop.row_media import COLUMNS, MARKER, MARKERS, Given, Kind, Mark, marked
from selfloop.types import Media, Message, Part, Sample, placed


def sample_of(
    row: dict[str, Any], index: MediaIndex, *, task: str | None = None, answer: str | None = None
) -> tuple[Sample, list[str]]:
    """One row as a Sample, and notes on what was left out. Raises BadRow."""
    try:
        if isinstance(row.get("json"), str) and {"id", "question"} <= row.keys():
            return _own(json.loads(row["json"]), index), []
        # Rows of Sample JSON without media or meta read the same as TRL's.
        if isinstance(row.get("prompt"), list) and ("media" in row or "meta" in row) and (
                row.keys() <= Sample.model_fields.keys()):
            return _own(row, index), []
        found = draft(row, task=task, answer=answer)
        if not found.media and not any(isinstance(p, Mark) for _, ps in found.messages for p in ps):
            _left_unread(row, found, index.root)
        prompt, media = _placed(found, index)
        return Sample(prompt=prompt, media=media, answer=found.answer,
                      rationale=found.rationale, meta=found.meta), found.notes
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise BadRow(where, " ".join(first["msg"].split()), "mend the row") from error
    except ValueError as error:
        raise BadRow("json", f"not JSON ({error})", "save the samples again") from error


def _left_unread(row: dict[str, Any], found: Draft, root: Path) -> None:
    """Refuse a row that shows nothing while a column nobody reads holds a picture, video or sound:
    as a text without one it would be answered blind. Addresses and names of no file are told."""
    for column, value in row.items():
        values = value if isinstance(value, list | tuple) else [value]
        kind = next((kind for one in values if (kind := _kind_of(one))), None)
        named = [one for one in values if isinstance(one, str)]
        if kind is None or (named and column not in found.meta):  # a question, an answer
            continue
        what = f"it {'names' if named else 'holds'} a {_ONE[kind]}, but a column of this name"
        if not named or any(not is_remote(one) and _is_file(root, one) for one in named):
            raise BadRow(column, f"{what} is not read, so the question would be asked without it",
                         f"call the column {kind!r}, or take it out")
        found.notes.append(f"column {column!r}: {what} is not read; is it meant to be shown? Then "
                           f"call it {kind!r}")


def _is_file(root: Path, name: str) -> bool:
    try:
        return Path(root, name).is_file()
    except OSError:  # a text too long for a name, say, or a folder that nobody may look into
        return False


_ONE = {"image": "picture", "video": "video", "audio": "sound"}


def _kind_of(value: Any) -> Kind | None:
    """What a value looks like: by a file's suffix, or as a picture that a table holds."""
    if isinstance(value, str):
        low = value.lower()
        return None if len(value) > 4096 or "\n" in value else \
            "image" if low.endswith(pictures.NAMES) else \
            "video" if low.endswith(video.NAMES) else \
            "audio" if low.endswith(tuple(sound.SUFFIXES.values())) else None
    table = isinstance(value, dict) and isinstance(value.get("bytes"), bytes | bytearray)
    return "image" if table or isinstance(value, Image) else None


def _own(row: dict[str, Any], index: MediaIndex) -> Sample:
    """selfloop's own JSON. Hashes are believed here, because Library checks them on opening."""
    sample = Sample.model_validate(row)
    media = []
    for medium in sample.media:
        uri = medium.meta.get("uri")
        if isinstance(uri, str) and not is_remote(uri):
            where = Path(index.root, uri)
            if not where.exists():
                raise BadRow("media", f"{where}: no such picture", "check the path and the root")
            medium = medium.model_copy(update={"meta": {**medium.meta, "uri": str(where)}})
        media.append(medium)
    return with_media(sample, tuple(media))


def _placed(found: Draft, index: MediaIndex) -> tuple[tuple[Message, ...], tuple[Media, ...]]:
    """Messages with every mark replaced by its medium, and the media in that order."""
    waiting = {kind: iter([g for g in found.media if g.kind == kind]) for kind in COLUMNS}
    prompt: list[Message] = []
    media: list[Media] = []
    for role, pieces in _marked(found.messages, found.media):
        parts: list[Part] = []
        for piece in pieces:
            if isinstance(piece, str):
                parts += [Part(text=piece)] if piece else []
                continue
            given = piece.given or next(waiting[piece.kind])
            try:
                shown = _shown(given, index, found.notes)
            except SelfloopError as error:
                raise BadRow(given.column, str(error), "") from error
            parts += placed(shown)
            media += shown
        prompt.append(Message.model_validate({"role": role, "content": tuple(parts)}))
    if not any(part.type != "text" or part.text.strip() for m in prompt for part in m.content):
        raise BadRow("prompt", "it is empty", "give the row a question")
    return tuple(prompt), tuple(media)


def _shown(given: Given, index: MediaIndex, notes: list[str]) -> list[Media]:
    """What stands at a mark: a picture's pages, a sound, or a video's frames. Frames stand after
    their times (`Media.mark`), which any model that takes several pictures can read."""
    if given.kind == "image":
        return [*index.media(given.value)]
    if given.kind == "audio":
        return [index.sound(given.value)]
    frames, count = index.frames(given.value, given.fps)
    if len(frames) < count:
        notes.append(f"videos are shown by {len(frames)} frames at even distances; frames= is how "
                     "many")
    return frames


def _marked(messages: Messages, media: Sequence[Given]) -> Messages:
    """Messages with one open mark a medium: as parts, as <image>, <video> or <audio> in the text,
    or put first."""
    if not any(isinstance(piece, Mark) for _, pieces in messages for piece in pieces):
        messages = [(role, [p for piece in pieces for p in marked(str(piece))])
                    for role, pieces in messages]
    marks = [p for _, pieces in messages for p in pieces if isinstance(p, Mark)]
    if not marks and media:
        asks = next((i for i, (role, _) in enumerate(messages) if role == "user"), None)
        if asks is None:
            raise BadRow("prompt", "pictures, but no message of the user to put them in",
                         f"add one, or mark their places with {MARKER}")
        first: list[str | Mark] = [Mark(given.kind) for given in media]
        messages = list(messages)
        messages[asks] = ("user", first + messages[asks][1])
        return messages
    for marker, kind in MARKERS.items():
        still_open = sum(mark.kind == kind and mark.given is None for mark in marks)
        have = [given for given in media if given.kind == kind]
        if still_open != len(have):
            what = _NAMES[kind]
            raise BadRow(
                have[0].column if have else COLUMNS[kind][0],
                f"{still_open} {marker} markers in the text but {len(have)} {what}",
                f"write one marker for each, in order, or none at all ({what} then go first)")
    return messages


_NAMES = {"image": "pictures", "video": "videos", "audio": "sounds"}


def with_media(sample: Sample, media: tuple[Media, ...]) -> Sample:
    """The sample over these media. Made anew: a copy would keep the old, cached context."""
    return Sample(prompt=sample.prompt, media=media, answer=sample.answer,
                  rationale=sample.rationale, meta=sample.meta, parent=sample.parent)
