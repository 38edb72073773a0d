"""Does the order of the frames matter to the answer: Video-R1's contrast (primitives V22)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfloop.calling import as_verdict, call_by_name, name_of
from selfloop.roles import Verifier
from selfloop.types import Group, Rollout, Sample, Verdict


def reordered(rollout: Rollout, sample: Sample) -> bool:
    """Whether a rollout saw the sample's pictures in another order."""
    seen = [m.identity for m in rollout.context.media]
    own = [m.identity for m in sample.media]
    return seen != own and sorted(seen) == sorted(own)


@dataclass(frozen=True)
class FrameOrder:
    """What `right` says, plus `alpha` for right answers if the share right on ordered frames is at
    least `mu` times the share right on shuffled ones (alpha .3, mu .8).

    Video-R1's T-GRPO (arXiv 2503.21776, released code). Rollouts on shuffled frames
    are the comparison and get no score. No bonus unless both kinds have a judged answer.
    """

    right: Verifier
    alpha: float = 0.3
    mu: float = 0.8

    def __call__(self, group: Group, **offered: Any) -> list[Verdict]:
        """One verdict a rollout. Gold values reach `right` alone."""
        found = [as_verdict(call_by_name(self.right, rollout=r, **offered), name_of(self.right))
                 for r in group.rollouts]
        mixed = [reordered(r, group.sample) for r in group.rollouts]
        ordered, shuffled = (_share([v for v, m in zip(found, mixed, strict=True) if m is kind])
                             for kind in (False, True))
        earned = ordered is not None and shuffled is not None and ordered >= self.mu * shuffled
        return [self._verdict(v, m, earned) for v, m in zip(found, mixed, strict=True)]

    def _verdict(self, found: Verdict, mixed: bool, earned: bool) -> Verdict:
        if mixed or found.score is None:
            parts = {} if found.score is None else {"shuffled": found.score}
            return found.model_copy(update={"score": None, "parts": {**found.parts, **parts}})
        return found.model_copy(update={
            "score": found.score + self.alpha * (earned and found.right)})


def _share(found: list[Verdict]) -> float | None:
    told = [v.right for v in found if v.score is not None]
    return sum(told) / len(told) if told else None
