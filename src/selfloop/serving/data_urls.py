"""Pictures inside a request: data URLs, and nothing that would have to be fetched."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from urllib.parse import unquote_to_bytes

from PIL import Image

from selfloop import decoding
from selfloop.roles import SelfloopError
from selfloop.serving.limits import Limits
from selfloop.serving.refusals import Refusal
from selfloop.types import Media

_HEAD = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.IGNORECASE)


def picture(url: str, where: str, limits: Limits) -> tuple[Media, bytes]:
    """The picture and its file's bytes; format and size are read from the header only.

    `where` is the field that errors name. Raises Refusal (400) for any other address, for text
    that is no base64, and for bytes that are no picture or one of too many pixels.
    """
    data = _decoded(url, where)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        decoding.header(data, where, pages="first", limits=_of_one(limits))
    except SelfloopError as error:
        # A Python caller is also told what to pass; to a client that is of no use.
        raise Refusal(400, str(error).partition(", or pass limits=")[0], param=where) from None
    return Media(sha256=sha256, meta={"size": len(data)}), data


def opened(data: bytes, name: str, limits: Limits) -> Image.Image:
    """The picture as RGB. Raises SelfloopError for one that is broken or cut off."""
    return decoding.decode(data, name, limits=_of_one(limits))


def _of_one(limits: Limits) -> decoding.Limits:
    return decoding.Limits(bytes=limits.body_bytes, pixels=limits.pixels, frames=1)


def _decoded(url: str, where: str) -> bytes:
    head = _HEAD.match(url)
    if head is None:
        scheme = url.partition(":")[0].lower() if ":" in url[:12] else "no"
        raise Refusal(400, f"{where}: a {scheme} address; this server fetches nothing, send the "
                           "picture itself as data:image/png;base64,...", param=where)
    kind, settings = head[1].lower(), head[2].lower().split(";")
    if kind and not kind.startswith(("image/", "application/octet-stream")):
        raise Refusal(400, f"{where}: the data URL is of type {kind[:40]}; expected image/...",
                      param=where)
    body = url[head.end():]
    if "base64" not in settings:
        return unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"{where}: the data URL's base64 cannot be read ({error})",
                      param=where) from None
