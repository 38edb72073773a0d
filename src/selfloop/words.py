"""The smallest words: pictures, messages and contexts; and what lies between two gates."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator


class Word(BaseModel):
    """A frozen value that refuses unknown fields and round-trips through JSON exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Pydantic's copy, without the cached identities of what it was copied from."""
        copied = super().model_copy(update=update, deep=deep)
        for name in set(copied.__dict__) - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    def to_json(self) -> str:
        """One line of JSON; floats keep every bit (shortest round-trip form)."""
        return self.model_dump_json(exclude_defaults=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`. Raises pydantic.ValidationError on anything else."""
        return cls.model_validate_json(text)


def digest(value: Any, *, size: int = 10) -> str:
    """A short stable hash of JSON-able data: the same on every machine and Python."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


class ImageOp(Word):
    """One deterministic picture operation, applied after decoding (see pictures.py)."""

    name: str
    severity: float = Field(default=1.0, ge=0.0, le=1.0)
    key: str = ""
    """What its randomness is drawn from; the same key gives the same pixels."""


class Media(Word):
    """One picture, video or sound, by the hash of its bytes; never the pixels themselves."""

    kind: Literal["image", "video", "audio"] = "image"
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    ops: tuple[ImageOp, ...] = ()
    """Operations re-applied on every read, so corrupted pictures need no storage."""
    meta: dict[str, JsonValue] = Field(default_factory=dict)
    """Where the bytes were found (`uri`, `size`) and which part of them it is (`page`; `frame` and
    `seconds` of a video). Of a video that was given as pictures, each has its `video` (a name
    that they share) and its `place`, from 0. Not part of the identity."""

    @cached_property
    def identity(self) -> str:
        """Equal identity means equal pixels."""
        if not self.ops:
            return self.sha256
        return digest([self.sha256, [op.model_dump() for op in self.ops]], size=32)

    @property
    def changed(self) -> bool:
        """Whether an operation changes how it looks; which page or frame it is does not."""
        return any(op.name != "page" for op in self.ops)

    @property
    def plain(self) -> Media:
        """The same page or frame with no operation that changes how it looks."""
        return self.model_copy(update={
            "ops": tuple(op for op in self.ops if op.name == "page")}) if self.changed else self

    @property
    def mark(self) -> str:
        """What stands before it in a prompt: "<1.5 seconds>" for a frame of a video whose time is
        known, which is how Qwen3-VL's template writes it; "" for any other medium."""
        seconds = self.meta.get("seconds")
        timed = self.kind == "image" and isinstance(seconds, int | float)
        return f"<{seconds:.1f} seconds>" if timed else ""

    def with_op(self, name: str, severity: float = 1.0, key: str = "") -> Media:
        """The same picture seen through one more operation; a sound, which has none, as it is."""
        if self.kind != "image":
            return self
        return self.model_copy(
            update={"ops": (*self.ops, ImageOp(name=name, severity=severity, key=key))}
        )


class Part(Word):
    """One piece of a message. A non-text part is a placeholder for the next medium in order."""

    type: Literal["text", "image", "video", "audio"] = "text"
    text: str = ""


_TIME = re.compile(r"<\d+\.\d seconds>")
"""A frame's mark."""


def placed(media: Sequence[Media]) -> tuple[Part, ...]:
    """The media's places in a message, each after its mark. Wherever a prompt is made anew for a
    sample's media it is made by this, so that timed frames keep their times."""
    return tuple(part for medium in media for part in (
        *([Part(text=medium.mark)] if medium.mark else ()), Part(type=medium.kind)))


class Message(Word):
    """One chat message: a role and its content parts."""

    role: Literal["system", "user", "assistant", "tool"] = "user"
    content: tuple[Part, ...]

    @model_validator(mode="before")
    @classmethod
    def _text_is_one_part(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("content"), str):
            return {**data, "content": ({"type": "text", "text": data["content"]},)}
        return data


class Context(Word):
    """What an answer is conditioned on: messages, and media in placeholder order."""

    prompt: tuple[Message, ...]
    media: tuple[Media, ...] = ()

    @model_validator(mode="after")
    def _every_placeholder_has_its_medium(self) -> Self:
        kinds = [part.type for m in self.prompt for part in m.content if part.type != "text"]
        have = [medium.kind for medium in self.media]
        if kinds != have:
            raise ValueError(
                f"the prompt has placeholders {kinds or 'none'} but the media are "
                f"{have or 'none'}: give one medium per placeholder, in the same order"
            )
        return self

    @property
    def text(self) -> str:
        """All text parts, one line a message."""
        return "\n".join("".join(p.text for p in m.content) for m in self.prompt)

    @cached_property
    def identity(self) -> str:
        """Equal identity means an equal prompt on equal pixels."""
        return digest([[m.model_dump() for m in self.prompt], [m.identity for m in self.media]])

    def said(self, role: Literal["assistant", "user", "tool"], *content: Part | Media | str
             ) -> Context:
        """This context with one more message; `Media` among the content become its pictures."""
        parts = tuple(
            c if isinstance(c, Part) else Part(text=c) if isinstance(c, str) else Part(type=c.kind)
            for c in content
        )
        media = tuple(c for c in content if isinstance(c, Media))
        return Context(
            prompt=(*self.prompt, Message(role=role, content=parts)), media=(*self.media, *media)
        )

    def seen_as(self, media: tuple[Media, ...]) -> Context:
        """The same messages over other pictures (a crop, a noisy view, another image)."""
        return self.model_copy(update={"media": media})

    def without_media(self) -> Context:
        """The same messages with every picture taken out, and the times of a video's frames with
        them: the no-image probe."""
        prompt = []
        for message in self.prompt:
            kept: list[Part] = []
            for part in message.content:
                if part.type == "text":
                    kept.append(part)
                elif kept and _TIME.fullmatch(kept[-1].text):
                    kept.pop()
            prompt.append(message.model_copy(update={"content": tuple(kept)}))
        return Context(prompt=tuple(prompt))


class Adjustment(Word):
    """How what comes next differs from what the loop says: made by the gate's actions.

    Stored with the iteration that decided it and added up over the run, so that a resumed run
    finds all of it in the last iteration.
    """

    lr: float = Field(default=1.0, gt=0.0)
    """Factor on every role's learning rate."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Factor on the temperature of every draw of stage 1; greedy draws stay greedy."""
    refresh: bool = False
    """Whether reference log-probs are those at the start of a step, also where the loop says
    the seed's."""
    stop: str = ""
    """Why the run ends here; empty = it goes on."""


class Decision(Word):
    """What the gate did, in figures and in words."""

    action: Literal["promote", "hold", "roll back"]
    why: str
    gain: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    alpha_spent: float = 0.0
    guards: tuple[str, ...] = ()
    """Guards that fired, by name."""
    actions: tuple[str, ...] = ()
    """What was done because they fired, in words, beside holding or rolling back."""


class Iteration(Word):
    """What lies between two gates: one or more steps of collect, organize, optimize."""

    index: int
    first_step: int
    steps: int
    version: int
    """Policy version after the last step; equals the number of steps learned."""
    continue_from: int
    """Version whose weights the next iteration starts from (differs after a roll-back)."""
    best: int
    """Version last promoted."""
    counts: dict[str, int] = Field(default_factory=dict)
    reward: float | None = None
    dev: dict[str, float] = Field(default_factory=dict)
    labels_full: int = 0
    labels_answer_only: int = 0
    tokens: dict[str, int] = Field(default_factory=dict)
    flops: float = 0.0
    decision: Decision
    adjustment: Adjustment = Adjustment()
    """How the next iteration differs from what the loop says."""
