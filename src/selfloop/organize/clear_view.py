"""Self-distillation from a clearer picture: the teacher sees it as it is, the student changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from selfloop.organize.refine.filters import converses
from selfloop.organize.signals import HERE, clean, trained_on
from selfloop.types import AnySignal, Branch, Distill, Group, Verdict


@dataclass(frozen=True)
class ClearView:
    """The privilege of the teacher is its picture, for models that cannot read a hint.

    Each distinct answer with a score of `at_least` (None: every answer) becomes a Distill signal:
    `teacher` is the answer under the clean pictures, `student` the same tokens under pictures seen
    through `op`. The tokens were drawn under the clean pictures, so a divergence over next-token
    distributions (losses.distill.TopK) fits, and a policy gradient on drawn tokens does not.
    In the line of SDFT (arXiv 2601.19897), whose privilege is a demonstration in the prompt.
    Samples without pictures are left out: both would see the same; so are conversations.
    """

    at_least: float | None = 0.5
    op: str = "view"
    severity: float = 1.0
    makes: ClassVar[tuple[AnySignal, ...]] = (
        Distill(branches={"student": HERE, "teacher": HERE}),)

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Distill a distinct answer that is kept."""
        made: list[AnySignal] = []
        for group in groups:
            told: set[str] = set()
            verdicts = group.verdicts or (Verdict(),) * len(group.rollouts)
            for i, (rollout, verdict) in enumerate(
                    zip(group.rollouts, verdicts, strict=True)):
                kept = self.at_least is None or (
                    verdict.score is not None and verdict.score >= self.at_least)
                if not kept or rollout.text in told or not rollout.context.media \
                        or converses(rollout):
                    continue
                told.add(rollout.text)
                teacher = trained_on(rollout, as_drawn=False)
                made.append(Distill(
                    branches={"teacher": teacher, "student": self._seen(teacher, f"{key}/{i}")},
                    sample=group.sample.id, rollouts=(rollout.id,), role=rollout.role,
                    why=f"the same answer, the picture through {self.op}"))
        return made

    def _seen(self, teacher: Branch, key: str) -> Branch:
        context = clean(teacher.context)
        changed = tuple(m.with_op(self.op, self.severity, f"{key}/{j}")
                        for j, m in enumerate(context.media))
        return Branch(context=context.seen_as(changed), text=teacher.text,
                      turns=tuple(t.detached() for t in teacher.turns))
