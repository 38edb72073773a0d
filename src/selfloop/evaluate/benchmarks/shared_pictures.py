"""VLMEvalKit's tables save space: a picture's cell may hold the `index` of a row that has it."""

from __future__ import annotations

from selfloop.sources import Row, Rows, Source

_SHORT = 64
"""Characters; a longer cell is a picture itself (VLMEvalKit, image_base.py)."""


def with_shared_pictures(source: Source) -> Source:
    """The rows, each with its own picture in `image`.

    Only tables with `index` and `image` are touched. The file is read again when the first such
    cell is met, and pictures that others refer to are kept in memory.
    """
    def rows() -> Rows:
        pictures: dict[str, str] | None = None
        for number, row in source.rows():
            if isinstance(row, dict) and _refers(row):
                pictures = _pictures(source) if pictures is None else pictures
                row = {**row, "image": pictures.get(row["image"], row["image"])}
            yield number, row

    return Source(source.name, source.home, rows)


def _refers(row: Row) -> bool:
    picture = row.get("image")
    return "index" in row and isinstance(picture, str) and len(picture) <= _SHORT


def _pictures(source: Source) -> dict[str, str]:
    """{index: picture} of the rows that others refer to."""
    asked = {row["image"] for _, row in source.rows() if isinstance(row, dict) and _refers(row)}
    return {str(row["index"]): row["image"] for _, row in source.rows()
            if isinstance(row, dict) and str(row.get("index")) in asked and not _refers(row)
            and "image" in row}
