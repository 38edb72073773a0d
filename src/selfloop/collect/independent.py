"""Random sampling: n independent answers to each problem (primitives S1, S2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfloop.collect.conditioning import at_least_one
from selfloop.collect.told import longest
from selfloop.corruptions import refuse_operation
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Rollout, Sample


@dataclass(frozen=True)
class Independent:
    """`n` answers at a temperature; with `view`, each half the draws on an augmented picture.

    NoisyRollout (arXiv 2504.13055) mixes clean and distorted pictures in one group; `views`
    is the share of draws that see the picture through the gentle operation `op`. A stage's length
    cap in the guidance (`collect.told.longest`) takes the place of `max_new_tokens`.
    """

    n: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 64
    top_p: float = 1.0
    views: float = 0.0
    op: str = "view"
    severity: float = 0.5

    def __post_init__(self) -> None:
        at_least_one(self, "n")
        refuse_operation(self, self.op, self.severity)
        if not 0 <= self.views <= 1:
            raise SelfloopError(f"Independent(views={self.views}): expected a share from 0 to 1")
        if self.views and not round(self.n * self.views):
            raise SelfloopError(f"Independent(n={self.n}, views={self.views}): none of {self.n} "
                                "draws would see a changed picture; raise n or views")

    async def __call__(self, generate: Generate, sample: Sample, key: str,
                       guidance: Mapping[str, Any] | None = None) -> list[Rollout]:
        """Draw the clean answers in one call and each view's answer in a call of its own."""
        sampling = Sampling(temperature=self.temperature, top_p=self.top_p,
                            max_new_tokens=longest(guidance, self.max_new_tokens))
        seen_changed = round(self.n * self.views) if sample.media else 0
        rollouts: list[Rollout] = []
        if self.n > seen_changed:
            rollouts += await generate(sample, n=self.n - seen_changed, sampling=sampling,
                                       label="clean")
        for view in range(seen_changed):
            media = tuple(m.with_op(self.op, self.severity, f"{key}/view{view}")
                          for m in sample.media)
            rollouts += await generate(sample.context.seen_as(media), sampling=sampling,
                                       label=f"view{view}")
        return rollouts
