"""The words of selfloop: frozen, JSON-able values that every part speaks in.

A reader who knows these types knows the program. They hold no tensors, no pixels and no engine
handles, so whatever a stage writes can be stored, replayed and audited on a laptop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator


class Word(BaseModel):
    """A frozen value that refuses unknown fields and round-trips through JSON exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    """`uri`, `size`, `page`: where the bytes were found. Not part of the identity."""

    @cached_property
    def identity(self) -> str:
        """Equal identity means equal pixels."""
        if not self.ops:
            return self.sha256
        return digest([self.sha256, [op.model_dump() for op in self.ops]], size=32)

    def with_op(self, name: str, severity: float = 1.0, key: str = "") -> Media:
        """The same picture seen through one more operation."""
        return self.model_copy(
            update={"ops": (*self.ops, ImageOp(name=name, severity=severity, key=key))}
        )


class Part(Word):
    """One piece of a message. A non-text part is a placeholder for the next medium in order."""

    type: Literal["text", "image", "video", "audio"] = "text"
    text: str = ""


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
        """The same messages with every picture taken out: the no-image probe."""
        prompt = tuple(
            m.model_copy(update={"content": tuple(p for p in m.content if p.type == "text")})
            for m in self.prompt
        )
        return Context(prompt=prompt)


class Sample(Word):
    """One problem. Its `id` is a hash of what it asks, so duplicates have one id."""

    prompt: tuple[Message, ...]
    media: tuple[Media, ...] = ()
    answer: JsonValue = None
    """Gold answer, or None. Only components that name `answer` ever see it."""
    rationale: str | None = None
    """Gold worked solution, ending in the answer: a full label. Guarded like `answer`."""
    meta: dict[str, JsonValue] = Field(default_factory=dict)
    """`task`, `cluster` (the unit of resampling), `related` (further prompts), `env_seed` ..."""
    parent: str | None = None
    """The rollout that proposed this problem, if a model did."""

    @model_validator(mode="after")
    def _is_a_valid_context(self) -> Self:
        _ = self.context
        return self

    @cached_property
    def context(self) -> Context:
        """What the model is shown."""
        return Context(prompt=self.prompt, media=self.media)

    @cached_property
    def id(self) -> str:
        """Hash of prompt, media, answer, and the task or environment seed."""
        return digest([
            self.context.identity, self.answer, self.meta.get("task"), self.meta.get("env_seed")
        ])

    @property
    def cluster(self) -> str:
        """The true unit for resampling: `meta.cluster`, else the pictures, else the sample."""
        named = self.meta.get("cluster")
        return str(named) if named is not None else (
            self.media[0].sha256[:16] if self.media else self.id
        )

    def unlabelled(self) -> Sample:
        """This sample as components that do not read labels see it; its id stays the same."""
        bare = self.model_copy(update={"answer": None, "rationale": None})
        bare.__dict__["id"] = self.id  # the cached property, filled with the labelled one's
        return bare


FinishReason = Literal["stop", "length", "error"]


class Turn(Word):
    """One stretch drawn from the model, with exactly the tokens it was conditioned on."""

    prompt_token_ids: tuple[int, ...] = ()
    """Everything before the drawn tokens; () means: render the branch's context instead."""
    media: tuple[Media, ...] = ()
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    """Of the policy's distribution after temperature and suppressed tokens, before top-p/top-k.

    None when drawn under another context or with guidance; then never used as if they were.
    """
    temperature: float = Field(default=1.0, gt=0.0)
    """What the logits were divided by; the learner divides by the same."""
    loss_mask: tuple[int, ...] | None = None
    """1 = drawn by the policy; 0 = forced (a prefix, a tool). None means all drawn."""
    finish_reason: FinishReason = "stop"

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        for name in ("logprobs", "loss_mask"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.token_ids):
                raise ValueError(
                    f"{name} has {len(given)} entries for {len(self.token_ids)} token_ids"
                )
        return self

    @property
    def mask(self) -> tuple[int, ...]:
        """`loss_mask`, written out."""
        return self.loss_mask if self.loss_mask is not None else (1,) * len(self.token_ids)

    def detached(self) -> Turn:
        """The drawn tokens alone, to be put under another context."""
        return self.model_copy(update={
            "prompt_token_ids": (), "media": (), "logprobs": None, "temperature": 1.0
        })


class Rollout(Word):
    """One answer exactly as drawn: one turn for plain answers, several for tools and games."""

    id: str
    sample: str
    context: Context
    """What the first turn was conditioned on, picture operations included."""
    turns: tuple[Turn, ...]
    output: tuple[Part, ...]
    role: str = "solver"
    policy_version: int = 0
    sampling: dict[str, JsonValue] = Field(default_factory=dict)
    """Sampler, decoding options, key: enough to draw it again."""

    @property
    def text(self) -> str:
        """The text of the output."""
        return "".join(part.text for part in self.output)

    @property
    def finish_reason(self) -> FinishReason:
        """How the last turn ended."""
        return self.turns[-1].finish_reason if self.turns else "error"

    @property
    def tokens(self) -> int:
        """Drawn tokens over all turns."""
        return sum(len(turn.token_ids) for turn in self.turns)


class Verdict(Word):
    """What a verifier thinks. `score=None` means it could not tell, which is never zero."""

    score: float | None = Field(default=None, allow_inf_nan=False)
    parts: dict[str, float] = Field(default_factory=dict)
    token_scores: tuple[float, ...] | None = None
    spans: tuple[tuple[int, int, float], ...] = ()
    """(start, end, score) in characters of the output: claim and step checks."""
    rationale: str = ""
    verifier: str = ""
    error: bool = False
    """True when the verifier failed rather than abstained; implies `score is None`."""
    cost: float = 0.0
    """In the verifier's own currency (tokens, or money where `meta` says so)."""

    @model_validator(mode="after")
    def _an_error_has_no_score(self) -> Self:
        if self.error and self.score is not None:
            raise ValueError("a verdict with error=True cannot carry a score")
        return self

    @property
    def right(self) -> bool:
        """Whether it counts as correct (score of at least one half)."""
        return self.score is not None and self.score >= 0.5


class Group(Word):
    """One sample, its rollouts and their verdicts: the unit of votes, pairs and advantages."""

    sample: Sample
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Verdict, ...] = ()
    annotations: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_verdict_per_rollout(self) -> Self:
        if self.verdicts and len(self.verdicts) != len(self.rollouts):
            raise ValueError(
                f"sample {self.sample.id}: {len(self.verdicts)} verdicts for "
                f"{len(self.rollouts)} rollouts"
            )
        return self

    def scored(self) -> Iterator[tuple[Rollout, float]]:
        """Judged answers only, with their scores."""
        for rollout, verdict in zip(self.rollouts, self.verdicts, strict=False):
            if verdict.score is not None:
                yield rollout, verdict.score


class Branch(Word):
    """One (context, answer) that the learner scores: drawn turns, or a text never drawn."""

    context: Context
    turns: tuple[Turn, ...] = ()
    text: str | None = None

    @model_validator(mode="after")
    def _one_kind_of_answer(self) -> Self:
        if bool(self.turns) == (self.text is not None):
            raise ValueError("a branch has either drawn turns or a text, and not both")
        return self

    @classmethod
    def drawn(cls, rollout: Rollout) -> Branch:
        """The rollout under the very tokens it was drawn with."""
        return cls(context=rollout.context, turns=rollout.turns)

    @classmethod
    def under(cls, context: Context, rollout: Rollout) -> Branch:
        """The rollout's own tokens under another context (a clean picture, a plain prompt)."""
        return cls(context=context, turns=tuple(turn.detached() for turn in rollout.turns))


class Signal(Word):
    """What the optimizer executes; organizers write it, losses read it."""

    branches: dict[str, Branch]
    weight: float = 1.0
    role: str = "solver"
    sample: str = ""
    rollouts: tuple[str, ...] = ()
    """Lineage: the rollouts it was made from."""
    why: str = ""

    needs: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _has_its_branches(self) -> Self:
        missing = [name for name in self.needs if name not in self.branches]
        if missing:
            raise ValueError(f"{type(self).__name__} lacks the branch {missing[0]!r}")
        return self


class Demonstration(Signal):
    """Imitate `target`."""

    kind: Literal["demonstration"] = "demonstration"
    needs: ClassVar[tuple[str, ...]] = ("target",)


class Pair(Signal):
    """Prefer `chosen` to `rejected`; further branches (a cropped picture) for mDPO and kin."""

    kind: Literal["pair"] = "pair"
    margin: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ("chosen", "rejected")


class Advantage(Signal):
    """Reinforce `answer` by `advantage`: one number, or one per trained token."""

    kind: Literal["advantage"] = "advantage"
    advantage: float | tuple[float, ...]
    group: str = ""
    needs: ClassVar[tuple[str, ...]] = ("answer",)


class Distill(Signal):
    """Match a teacher on `student`: the branch `teacher` is the same answer as it sees it."""

    kind: Literal["distill"] = "distill"
    needs: ClassVar[tuple[str, ...]] = ("student", "teacher")


AnySignal = Demonstration | Pair | Advantage | Distill
SIGNALS: dict[str, type[Signal]] = {
    "demonstration": Demonstration, "pair": Pair, "advantage": Advantage, "distill": Distill,
}


class Decision(Word):
    """What the gate did, in figures and in words."""

    action: Literal["promote", "hold", "roll back"]
    why: str
    gain: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    alpha_spent: float = 0.0
    guards: tuple[str, ...] = ()


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
