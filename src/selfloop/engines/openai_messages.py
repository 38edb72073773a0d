"""A request as the body that an OpenAI-compatible server reads, and its answer as a Turn.

The body is made twice: with every picture named by its identity, which is what a record is kept
under, and with the picture itself as a data URL, which is what is sent.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from selfloop import keys
from selfloop.roles import Request, Sampling, SelfloopError
from selfloop.types import Context, FinishReason, Media, Message, Turn

OWN = ("model", "messages", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "n", "stream",
       "logprobs", "response_format", "max_tokens", "max_completion_tokens")
"""Fields of the body that the engine sets itself."""
_SAID = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens", "stop")
"""What of Sampling a server can be told."""
_SOUND = 20_480
"""KiB that a sound may have as WAV: three minutes at 48 kHz, ten at 16 kHz."""
_PIECE = 7
"""Bytes that one made-up token id holds at most, so that it fits 64 bits with its marker."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How large a picture may be that is sent; one that is larger is made smaller, or refused."""

    side: int = 2048
    """Pixels of the longer side; a larger picture is scaled down (Lanczos)."""
    kilobytes: int = 8192
    """Of one encoded picture: PNG, or JPEG of quality 90 where PNG is larger than this."""

    def __post_init__(self) -> None:
        if self.side < 8 or self.kilobytes < 1:
            raise SelfloopError(f"{self}: side must be at least 8 and kilobytes at least 1")

    def url(self, picture: Any, name: str) -> str:
        """A PIL picture as a data URL. Raises SelfloopError for one that cannot be so small."""
        if max(picture.size) > self.side:
            picture = picture.copy()
            picture.thumbnail((self.side, self.side), resample=1)  # 1 = Lanczos
        for form, how in (("png", {}), ("jpeg", {"quality": 90})):
            out = io.BytesIO()
            picture.save(out, form.upper(), **how)
            if len(out.getvalue()) <= 1024 * self.kilobytes:
                return f"data:image/{form};base64,{base64.b64encode(out.getvalue()).decode()}"
        raise SelfloopError(f"{name}: {len(out.getvalue()) // 1024} KiB as JPEG, and at most "
                            f"{self.kilobytes} KiB are sent: lower the engine's picture_side")


# -- what is asked --------------------------------------------------------------------------------

def body(model: str, request: Request, draw: int, *, seeds: bool, logprobs: bool, length: str,
         response_format: dict[str, Any] | None, extra: dict[str, Any], pictures: Pictures
         ) -> dict[str, Any]:
    """The body of one draw, pictures named by identity. Raises SelfloopError for what no server
    can be told: a forced prefix, contrast or masked decoding."""
    sampling = request.sampling
    _check(sampling)
    found: dict[str, Any] = {
        "model": model, "messages": messages(request.context, pictures),
        "temperature": sampling.temperature, length: sampling.max_new_tokens,
    }
    if sampling.temperature:
        plain = Sampling()
        found |= {n: getattr(sampling, n) for n in ("top_p", "top_k", "min_p")
                  if getattr(sampling, n) != getattr(plain, n)}
        if seeds:
            found["seed"] = keys.bits(f"{request.key}/{draw}") % 2**31
    if sampling.stop:
        found["stop"] = list(sampling.stop)
    if logprobs:
        found["logprobs"] = True
    if response_format is not None:
        found["response_format"] = response_format
    return found | extra


def _check(sampling: Sampling) -> None:
    plain = Sampling()
    odd = [f.name for f in fields(sampling)
           if f.name not in _SAID and getattr(sampling, f.name) != getattr(plain, f.name)]
    if odd:
        raise SelfloopError(f"Sampling.{odd[0]} means nothing to an OpenAI-compatible server: give "
                            "this role a local model, or a sampler that does not need it")


def messages(context: Context, pictures: Pictures) -> list[dict[str, Any]]:
    """The conversation; until it is sent a picture's address is "picture:IDENTITY@BOUNDS", and a
    sound's data "sound:IDENTITY"."""
    media = iter(context.media)
    return [{"role": m.role, "content": _content(m, media, pictures)} for m in context.prompt]


def _content(message: Message, media: Iterator[Media], pictures: Pictures) -> Any:
    parts: list[dict[str, Any]] = []
    for part in message.content:
        if part.type == "text":
            parts.append({"type": "text", "text": part.text})
        elif part.type == "audio":
            parts.append({"type": "input_audio", "input_audio": {
                "data": f"sound:{next(media).identity}", "format": "wav"}})
        elif part.type == "image":
            name = f"picture:{next(media).identity}@{pictures.side}/{pictures.kilobytes}"
            parts.append({"type": "image_url", "image_url": {"url": name}})
        else:
            raise SelfloopError(f"a {part.type} cannot be sent to an OpenAI-compatible server: "
                                "only text, pictures and sounds can")
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)  # which every server reads
    return parts


def with_pictures(asked: dict[str, Any], media: Sequence[Media], pictures: Pictures,
                  open_media: Callable[[Media], Any]) -> dict[str, Any]:
    """The body as it is sent: every picture in it as a data URL, every sound as WAV."""
    if not media:
        return asked
    left = iter(media)

    def filled(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        one = next(left)
        name = str(one.meta.get("uri") or f"{one.kind} {one.sha256[:12]}")
        if one.kind == "audio":
            data = open_media(one).wav()
            if len(data) > 1024 * _SOUND:
                raise SelfloopError(f"{name}: {len(data) // 1024:,} KiB as WAV, and at most "
                                    f"{_SOUND:,} KiB are sent: cut it into pieces")
            return {"type": "input_audio", "input_audio": {
                "data": base64.b64encode(data).decode(), "format": "wav"}}
        return {"type": "image_url", "image_url": {"url": pictures.url(open_media(one), name)}}

    said = [m if isinstance(m["content"], str) else
            {**m, "content": [filled(part) for part in m["content"]]} for m in asked["messages"]]
    return {**asked, "messages": said}


# -- what is answered -----------------------------------------------------------------------------

@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer as the server gave it, and what it says that this cost."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """Hidden reasoning included. None: the server did not say."""
    pieces: tuple[tuple[str, float], ...] | None = None
    """Tokens with log-probs, where the server gave them and they make up the text."""


class Refused(ValueError):
    """An answer that the server ended for a reason of its own: a content filter, a tool call."""


def reply_of(answer: Any) -> Reply:
    """Read a chat completion. Raises ValueError, in a few words, for one that is none."""
    if not isinstance(answer, dict):
        raise ValueError(f"the answer is {type(answer).__name__}, not a JSON object")
    if answer.get("error"):
        raise ValueError(f"the answer is an error: {str(answer['error'])[:200]}")
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        text = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the answer has no choices[0].message") from None
    reason = choice.get("finish_reason") or "stop"
    if text is None:
        text = message.get("refusal") or ""
    if not isinstance(text, str):
        raise ValueError(f"the answer's content is {type(text).__name__}, not text")
    if reason not in ("stop", "length"):
        raise Refused(f"the answer ended with finish_reason {str(reason)[:40]!r}")
    usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
    text = _whole(text)
    return Reply(text=text, finish_reason="length" if reason == "length" else "stop",
                 prompt_tokens=_count(usage, "prompt_tokens"),
                 completion_tokens=_count(usage, "completion_tokens"),
                 pieces=_pieces(choice.get("logprobs"), text))


def _whole(text: str) -> str:
    """The text with half a surrogate pair, which is valid JSON and which a server that cuts may
    leave, as U+FFFD: it cannot be written to a file."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _pieces(logprobs: Any, text: str) -> tuple[tuple[str, float], ...] | None:
    """Tokens that join to the text, ends of turn left out; None where they do not."""
    try:
        found = tuple((_whole(str(t["token"])), float(t["logprob"])) for t in logprobs["content"])
    except (KeyError, TypeError, ValueError):
        return None
    if not all(math.isfinite(x) for _, x in found):
        return None
    while found and "".join(piece for piece, _ in found) != text:
        found = found[:-1]
    return found or None


def turn(reply: Reply, media: tuple[Media, ...], temperature: float) -> Turn:
    """The reply as a drawn turn. Its token ids are made up (the server's own are not told): each
    is a stretch of the text's bytes, and there are as many as the server counted."""
    if reply.pieces is not None:
        ids = tuple(_packed(piece.encode()) for piece, _ in reply.pieces)
        logprobs: tuple[float, ...] | None = tuple(x for _, x in reply.pieces)
    else:
        data, logprobs = reply.text.encode("utf-8", "replace"), None
        n = max(reply.completion_tokens or -(-len(data) // 4), -(-len(data) // _PIECE))
        ids = tuple(_packed(data[len(data) * i // n:len(data) * (i + 1) // n]) for i in range(n))
    return Turn(token_ids=ids, media=media, logprobs=logprobs, temperature=temperature or 1.0,
                finish_reason=reply.finish_reason)


def _packed(data: bytes) -> int:
    return int.from_bytes(b"\x01" + data, "big")  # the 1 keeps leading zeros


def decoded(token_ids: Sequence[int]) -> str:
    """The text that `turn` packed."""
    return b"".join(t.to_bytes((t.bit_length() + 7) // 8, "big")[1:]
                    for t in token_ids).decode("utf-8", "replace")
