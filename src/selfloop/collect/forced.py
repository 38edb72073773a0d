"""Answers whose beginning is forced: a given text, a part of an own or a gold one (primitive S7).

Forced tokens carry loss mask 0, so only what the model adds is ever trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from selfloop import keys
from selfloop.collect.conditioning import at_least_one, noted, wholly_own
from selfloop.collect.text_negatives import truncated
from selfloop.collect.unsayable import if_sayable
from selfloop.corruptions import refuse_operation
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Rollout, Sample

FORCING: frozenset[str] = frozenset({"forced_prefix"})
"""What an engine has to support."""


def _refuse_share(owner: object, name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise SelfloopError(f"{type(owner).__name__}({name}={share}): expected a share from 0 to 1")


@dataclass(frozen=True)
class ForcedPrefix:
    """`n` answers that all begin with `text`."""

    text: str = "Let me look at the picture first."
    n: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 64
    asks: ClassVar[frozenset[str]] = FORCING

    def __post_init__(self) -> None:
        at_least_one(self, "n")

    async def __call__(self, generate: Generate, sample: Sample) -> list[Rollout]:
        """One call of n draws."""
        return await generate(sample, n=self.n, sampling=Sampling(
            temperature=self.temperature, max_new_tokens=self.max_new_tokens, prefix=self.text))


@dataclass(frozen=True)
class Resumed:
    """`n` answers, each cut off and gone on with, on the clean picture or on a distorted one.

    With an `op`, the second half is written with less of the picture in sight, which gives
    rejected answers that differ from the first only after the cut (BDHS, arXiv 2407.02477;
    Sherlock, arXiv 2505.22651, cuts at a step). One whose first part cannot be forced is left.
    """

    n: int = 4
    kept: float = 0.5
    """Share of the first answer's words that is forced."""
    op: str = ""
    severity: float = 1.0
    temperature: float = 1.0
    max_new_tokens: int = 64
    asks: ClassVar[frozenset[str]] = FORCING

    def __post_init__(self) -> None:
        at_least_one(self, "n")
        if self.op:
            refuse_operation(self, self.op, self.severity)
        _refuse_share(self, "kept", self.kept)

    @property
    def per_problem(self) -> float:
        """Draws a problem, for cost estimates."""
        return 2 * self.n

    async def __call__(self, generate: Generate, sample: Sample, key: str) -> list[Rollout]:
        """The n first answers, then what became of each: `sampling["resumed"]` = the first's id."""
        plain = Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)
        firsts = await generate(sample, n=self.n, sampling=plain, label="first")
        found = list(firsts)
        for i, first in enumerate(firsts):
            media = sample.media if not self.op else tuple(
                m.with_op(self.op, self.severity, f"{key}/{i}.{j}")
                for j, m in enumerate(sample.media))
            prefix = truncated(first.text, 1 - self.kept)
            again = await if_sayable(generate(sample.context.seen_as(media), label=f"again{i}",
                                              sampling=replace(plain, prefix=prefix)))
            found += [noted(r, resumed=first.id) for r in again]
        return found


@dataclass(frozen=True)
class FromGold:
    """`n` answers that go on from the first part of the gold rationale, which is a full label.

    A problem without a rationale gets plain answers.
    """

    n: int = 8
    kept: float = 0.5
    temperature: float = 1.0
    max_new_tokens: int = 64
    asks: ClassVar[frozenset[str]] = FORCING

    def __post_init__(self) -> None:
        at_least_one(self, "n")
        _refuse_share(self, "kept", self.kept)

    async def __call__(self, generate: Generate, sample: Sample, rationale: str | None
                       ) -> list[Rollout]:
        """One call of n draws."""
        return await generate(sample, n=self.n, sampling=Sampling(
            temperature=self.temperature, max_new_tokens=self.max_new_tokens,
            prefix=truncated(rationale or "", 1 - self.kept)))


TRIGGERS: dict[str, tuple[str, ...]] = {
    "verify": ("Let me check this against the picture once more.",
               "Before I settle on it, I compare each claim with what can be seen."),
    "correct": ("Something here may be wrong. I look for the mistake and mend it.",
                "I may have misread the picture, so I go through it again and correct myself."),
    "question": ("Is this really what the picture shows?",
                 "What would have to be different for another answer to be right?"),
}
"""Three kinds of second thought (the kinds are VL-Rethinker's, arXiv 2504.08837; own words)."""


@dataclass(frozen=True)
class Rethink:
    """`n` answers; a `share` of those that ended is gone on with, after a trigger.

    VL-Rethinker (arXiv 2504.08837) trains continuations that end right: they have
    `sampling["rethought"]`, the first answer's id. The first answer and the trigger are forced
    tokens, so they are not trained, unless `whole`: then they count as the model's own, without
    log-probs, so that imitation also learns to begin a second thought. A first answer whose text
    cannot be forced is not gone on with; a trigger that the model cannot say (a toy knows few
    words) is an error: give others.
    """

    n: int = 8
    share: float = 0.25
    triggers: tuple[str, ...] = tuple(t for kind in TRIGGERS.values() for t in kind)
    temperature: float = 1.0
    max_new_tokens: int = 64
    whole: bool = False
    asks: ClassVar[frozenset[str]] = FORCING

    def __post_init__(self) -> None:
        at_least_one(self, "n")
        _refuse_share(self, "share", self.share)
        if self.share and not round(self.share * self.n):
            raise SelfloopError(f"Rethink(n={self.n}, share={self.share}): none of {self.n} "
                                "answers would be gone on with; raise n or share")
        if not self.triggers:
            raise SelfloopError("Rethink(triggers=()): give one trigger at least")

    @property
    def per_problem(self) -> float:
        """Draws a problem at most, for cost estimates."""
        return self.n + round(self.share * self.n)

    async def __call__(self, generate: Generate, sample: Sample, key: str) -> list[Rollout]:
        """The first answers, then the continued ones."""
        plain = Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)
        firsts = await generate(sample, n=self.n, sampling=plain, label="first")
        found = list(firsts)
        for i in keys.shuffled(self.n, f"{key}/rethink")[:round(self.share * self.n)]:
            first = firsts[i]
            if first.finish_reason != "stop":
                continue
            pick = int(keys.generator(f"{key}/trigger{i}").integers(len(self.triggers)))
            prefix = f"{first.text.rstrip()} {self.triggers[pick]}"
            again = await if_sayable(generate(
                sample, sampling=replace(plain, prefix=prefix), label=f"rethink{i}"))
            if not again:  # is it the trigger? then this one raises
                await generate(sample, label=f"trigger{i}", sampling=replace(
                    plain, prefix=self.triggers[pick], max_new_tokens=1))
            found += [noted(wholly_own(r) if self.whole else r, rethought=first.id,
                            trigger=self.triggers[pick]) for r in again]
        return found
