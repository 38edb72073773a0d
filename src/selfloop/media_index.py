"""Each picture of a data set is hashed once: the hashes are kept in a cache beside the data."""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfloop.pictures import (
    LIMITS,
    Library,
    Limits,
    Pages,
    as_media,
    header,
    read,
    refuse_remote,
)
from selfloop.pictures import write_whole as put
from selfloop.roles import SelfloopError
from selfloop.types import Media


class MediaIndex:
    """Turns whatever a row calls a picture into Media, hashing each file once.

    `root` is where relative paths start; `home` is the data's folder, whose `.selfloop/` holds the
    cache (`media.json`: path, size, time of change -> hash, pages) and pictures that came as bytes
    (`images/`). A home that cannot be written to costs only the cache; bytes then go to the
    user's cache folder (XDG_CACHE_HOME/selfloop), because they must be somewhere.
    """

    def __init__(
        self, root: Path, home: Path | None, *, images: Path | None = None,
        pages: Pages = "all", limits: Limits = LIMITS,
    ) -> None:
        self.root, self.pages, self.limits = root, pages, limits
        writable = home is not None and os.access(home, os.W_OK)
        self._cache = home / ".selfloop" / "media.json" if home and writable else None
        at = images or (home / ".selfloop" / "images" if home and writable else _user_cache())
        self._library = Library(at, limits=limits, keep_pixels=0)
        self._known: dict[str, list[Any]] = _load(self._cache)
        self._new = False

    def media(self, picture: Any) -> list[Media]:
        """The Media (one a page) of a path, bytes, base64 text, {"bytes", "path"} or PIL picture.

        Raises SelfloopError saying what is wrong with the picture.
        """
        if isinstance(picture, Mapping):
            return self._of_mapping(picture)
        if isinstance(picture, bytes | bytearray):
            return self._of_bytes(bytes(picture))
        if isinstance(picture, Path):
            return self._of_path(picture)
        if isinstance(picture, str):
            data = _from_base64(picture)
            return self._of_path(Path(picture)) if data is None else self._of_bytes(data)
        if hasattr(picture, "save") and hasattr(picture, "mode"):
            sink = io.BytesIO()
            picture.save(sink, format="PNG")
            return self._of_bytes(sink.getvalue())
        raise SelfloopError(
            f"a picture given as {type(picture).__name__}; expected a path, bytes, base64 text, "
            '{"bytes": ..., "path": ...} or a PIL picture'
        )

    def save(self) -> None:
        """Write the cache, if anything is new. Losing it would only cost time."""
        if self._cache is None or not self._new:
            return
        try:
            put(self._cache, json.dumps(self._known, indent=0, sort_keys=True).encode())
        except OSError:
            self._cache = None

    def _of_mapping(self, picture: Mapping[str, Any]) -> list[Media]:
        if picture.get("bytes") is not None:
            return self.media(picture["bytes"])
        for name in ("path", "image", "url", "image_url", "file_name"):
            if picture.get(name) is not None:
                return self.media(picture[name])
        raise SelfloopError(
            f"a picture with the fields {sorted(picture)}, none of which holds one; "
            'expected "bytes" or "path"'
        )

    def _of_bytes(self, data: bytes) -> list[Media]:
        if len(data) > self.limits.bytes:
            raise SelfloopError(f"a picture of {len(data):,} bytes, over the limit of "
                                f"{self.limits.bytes:,}; pass limits=Limits(bytes={len(data)})")
        _, count = header(data, "a picture given as bytes", pages=self.pages, limits=self.limits)
        first = self._library.add_bytes(data)
        return as_media(first.sha256, Path(str(first.meta["uri"])), len(data), count)

    def _of_path(self, path: Path) -> list[Media]:
        refuse_remote(str(path))
        where = Path(self.root, str(path).removeprefix("file://")).absolute()
        try:
            stat = where.stat()
        except OSError:
            return read(where)  # raises, saying what is wrong
        # Relative to the cache, so that a data folder may be moved; the mode matters, too.
        base = self._cache.parent.parent if self._cache else self.root
        name = f"{os.path.relpath(where, base)}|{self.pages}"
        known = self._known.get(name)
        if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return as_media(known[2], where, stat.st_size, known[3])
        found = read(where, pages=self.pages, limits=self.limits)
        self._known[name] = [stat.st_size, stat.st_mtime_ns, found[0].sha256, len(found)]
        self._new = True
        return found


def _load(cache: Path | None) -> dict[str, list[Any]]:
    """The cache, or nothing when it is missing or damaged: then everything is hashed again."""
    try:
        known = json.loads(cache.read_bytes()) if cache else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, list) and len(v) == 4}


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfloop" / "images"


def _from_base64(text: str) -> bytes | None:
    """The bytes of a data: address or of a long base64 text; None when it looks like a path."""
    body = text
    if text.startswith("data:image/"):
        body = text.partition(",")[2]
    elif len(text) < 64 or "." in text[-6:] or "://" in text[:16]:
        return None
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return None
