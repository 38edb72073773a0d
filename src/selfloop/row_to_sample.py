"""One row as a Sample: its pictures found and put where the text wants them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfloop.formats import MARKER, BadRow, Draft, Mark, Messages, draft
from selfloop.media_index import MediaIndex
from selfloop.pictures import is_remote
from selfloop.roles import SelfloopError
from selfloop.types import Media, Message, Part, Sample


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
        prompt, media = _placed(found, index)
        return Sample(prompt=prompt, media=media, answer=found.answer,
                      rationale=found.rationale, meta=found.meta), found.notes
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise BadRow(where, " ".join(first["msg"].split()), "mend the row") from error
    except ValueError as error:
        raise BadRow("json", f"not JSON ({error})", "save the samples again") from error


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
    """Messages with every mark replaced by its picture, and the pictures in that order."""
    messages = _marked(found.messages, len(found.pictures))
    waiting = iter(found.pictures)
    prompt: list[Message] = []
    media: list[Media] = []
    for role, pieces in messages:
        parts: list[Part] = []
        for piece in pieces:
            if isinstance(piece, str):
                parts += [Part(text=piece)] if piece else []
                continue
            picture = next(waiting) if piece.picture is None else piece.picture
            try:
                pages = index.media(picture)
            except SelfloopError as error:
                raise BadRow("images", str(error), "") from error
            media += pages
            parts += [Part(type="image")] * len(pages)
        prompt.append(Message.model_validate({"role": role, "content": tuple(parts)}))
    if not any(part.type == "image" or part.text.strip() for m in prompt for part in m.content):
        raise BadRow("prompt", "it is empty", "give the row a question")
    return tuple(prompt), tuple(media)


def _marked(messages: Messages, pictures: int) -> Messages:
    """Messages with one open mark a picture: as parts, as <image> in the text, or put first.

    Line breaks next to a text marker belong to the marker, and go with it.
    """
    if not any(isinstance(piece, Mark) for _, pieces in messages for piece in pieces):
        messages = [(role, [p for piece in pieces for p in _split(str(piece))])
                    for role, pieces in messages]
    marks = [p for _, pieces in messages for p in pieces if isinstance(p, Mark)]
    still_open = sum(mark.picture is None for mark in marks)
    if not marks and pictures:
        asks = next((i for i, (role, _) in enumerate(messages) if role == "user"), None)
        if asks is None:
            raise BadRow("prompt", "pictures, but no message of the user to put them in",
                         f"add one, or mark their places with {MARKER}")
        first: list[str | Mark] = [Mark() for _ in range(pictures)]
        messages = list(messages)
        messages[asks] = ("user", first + messages[asks][1])
    elif still_open != pictures:
        raise BadRow(
            "images", f"{still_open} {MARKER} markers in the text but {pictures} pictures",
            "write one marker a picture, in order, or none at all (pictures then go first)")
    return messages


def _split(text: str) -> list[str | Mark]:
    pieces = text.split(MARKER)
    found: list[str | Mark] = []
    for i, piece in enumerate(pieces):
        if i:
            found.append(Mark())
            piece = piece.removeprefix("\n")
        if i < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        found.append(piece)
    return found


def with_media(sample: Sample, media: tuple[Media, ...]) -> Sample:
    """The sample over these media. Made anew: a copy would keep the old, cached context."""
    return Sample(prompt=sample.prompt, media=media, answer=sample.answer,
                  rationale=sample.rationale, meta=sample.meta, parent=sample.parent)
