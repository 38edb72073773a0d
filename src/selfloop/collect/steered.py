"""Draws where they are needed: as many and as hot as the last steps say (primitive S12).

What is known comes through the guidance, from the organizer step `organize.refine.learnt.Learnt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Rollout, Sample


@dataclass(frozen=True)
class Steered:
    """`n` answers to problems of unknown or middling difficulty, `most` to the hard, `least` to
    the easy ones; hotter while whole groups are right.

    Difficulty d = 1 - mean score of the problem's last answers: hard is d >= 1 - `low`, easy
    d <= 1 - `high`. Fewer draws where all were right and more where none was is the resampling
    of hard problems that rejection sampling needs, or it learns what it knew (DART-Math, arXiv
    2407.13690). With z the share of groups that were all right, the temperature is
    min(`hottest`, `temperature` * (1 + `gain` * z)): saturated groups carry no advantage.
    Samples never judged get `n` draws at `temperature`, and so does all of the first step.
    """

    n: int = 8
    most: int = 16
    least: int = 2
    low: float = 0.1
    high: float = 0.9
    temperature: float = 1.0
    gain: float = 0.5
    hottest: float = 1.5
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.n <= self.most:
            raise SelfloopError(f"{self}: expected 1 <= least <= n <= most")
        if not 0 <= self.low < self.high <= 1:
            raise SelfloopError(f"{self}: expected 0 <= low < high <= 1")
        if self.temperature <= 0 or self.hottest < self.temperature or self.gain < 0:
            raise SelfloopError(f"{self}: expected 0 < temperature <= hottest and gain >= 0")

    async def __call__(self, generate: Generate, sample: Sample, guidance: Mapping[str, Any]
                       ) -> list[Rollout]:
        """The draws, in one call."""
        known = guidance.get("difficulty", {}).get(sample.id)
        heat = self.heat(guidance.get("learnt", {}).get("saturated"))
        return await generate(sample, n=self.draws(known), label="steered", sampling=Sampling(
            temperature=heat, max_new_tokens=self.max_new_tokens))

    def draws(self, difficulty: float | None) -> int:
        """How many answers a problem of this difficulty gets; None = unknown."""
        if difficulty is None:
            return self.n
        if difficulty >= 1 - self.low:
            return self.most
        return self.least if difficulty <= 1 - self.high else self.n

    def heat(self, saturated: float | None) -> float:
        """The temperature while this share of the groups is all right; None = unknown."""
        return min(self.hottest, self.temperature * (1 + self.gain * (saturated or 0.0)))
