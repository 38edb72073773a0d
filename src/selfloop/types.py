"""The words of selfloop: frozen, JSON-able values that every part speaks in.

A reader who knows these types knows the program. They hold no tensors, no pixels and no engine
handles, so whatever a stage writes can be stored, replayed and audited on a laptop. The smallest
ones (Media, Message, Context) live in words.py and are named here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from selfloop.words import (
    Context,
    Decision,
    ImageOp,
    Iteration,
    Media,
    Message,
    Part,
    Word,
    digest,
    placed,
)

__all__ = [
    "SIGNALS", "Advantage", "AnySignal", "Branch", "Context", "Decision", "Demonstration",
    "Distill", "FinishReason", "Group", "ImageOp", "Iteration", "Media", "Message", "Pair",
    "Part", "Rollout", "Sample", "Signal", "Turn", "Verdict", "Word", "digest", "placed",
]


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
    """What it is made of, by name. A part that is NaN is unknown, and left out."""
    token_scores: tuple[float, ...] | None = None
    spans: tuple[tuple[int, int, float], ...] = ()
    """(start, end, score) in characters of the output: claim and step checks."""
    rationale: str = ""
    verifier: str = ""
    error: bool = False
    """True when the verifier failed rather than abstained; implies `score is None`."""
    cost: float = 0.0
    """In the verifier's own currency (tokens, or money where `meta` says so)."""

    @field_validator("parts")
    @classmethod
    def _unknown_is_no_number(cls, parts: dict[str, float]) -> dict[str, float]:
        # not refused: a run that stored one stays readable
        return {name: value for name, value in parts.items() if value == value}

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
    token_weights: tuple[float, ...] | None = None
    """What each trained token weighs, for losses that ask (docs/losses.md). None: 1 each."""

    @model_validator(mode="after")
    def _one_kind_of_answer(self) -> Self:
        if any(not 0 <= weight < float("inf") for weight in self.token_weights or ()):
            raise ValueError(f"token_weights must be 0 or more: {self.token_weights}")
        if bool(self.turns) == (self.text is not None):
            raise ValueError("a branch has either drawn turns or a text, and not both")
        if len(self.turns) > 1 and not all(turn.prompt_token_ids for turn in self.turns):
            raise ValueError(
                "a conversation of several turns cannot be put under another context: what was "
                "said in between would be lost; train it as it was drawn")
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
