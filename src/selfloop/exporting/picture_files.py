"""A row's pictures as files or bytes: as they were found, or as their operations leave them."""

from __future__ import annotations

import io
from pathlib import Path

from selfloop.decoding import SUFFIXES, header
from selfloop.pictures import Library, write_whole
from selfloop.roles import SelfloopError
from selfloop.types import Media


class PictureFiles:
    """Names and bytes of pictures. A picture seen through operations (a crop, noise, a later
    page) is drawn and kept as PNG, because no other format can say what was done to it.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._written: dict[tuple[Path, str], str] = {}

    def bytes_of(self, media: Media) -> tuple[str, bytes]:
        """(file name, bytes): equal pictures have equal names. Raises SelfloopError for video."""
        if media.kind != "image":
            raise SelfloopError(f"{media.kind} {media.sha256[:12]}: only pictures can be exported "
                                "so far; leave these samples out")
        name = media.identity[:32]
        if media.ops:
            sink = io.BytesIO()
            self._library.open(media).save(sink, "PNG")
            return f"{name}.png", sink.getvalue()
        data = self._library.bytes_of(media)
        form, _ = header(data, name, pages="first")
        return f"{name}{SUFFIXES[form]}", data

    def path_in(self, folder: Path, media: Media) -> str:
        """Write the picture below folder/images once; its path relative to the folder."""
        at = (folder, media.identity)
        if at not in self._written:
            name, data = self.bytes_of(media)
            write_whole(folder / "images" / name, data)
            self._written[at] = f"images/{name}"
        return self._written[at]
