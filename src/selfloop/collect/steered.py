"""Draws where they are needed: as many and as hot as the last steps say (primitive S12).

What is known comes through the guidance, from the organizer step `organize.refine.learnt.Learnt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfloop import keys
from selfloop.collect.independent import Independent
from selfloop.collect.told import longest
from selfloop.roles import Generate, Sampler, Sampling, SelfloopError
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

    With `ahead`, samples never judged get n + h (most - n) draws, h = share of groups that were
    all wrong. With `again` < 1, a problem whose last k groups in a row had no variance sits out
    its turn (no draw) with probability (1 - b)(1 - again^k), b = share of groups in the accuracy
    band. GRESO (arXiv 2506.02177) passes over with probability 1 - p^k and moves p until enough
    groups teach; here b takes that part. Where all groups teach, or none was judged, b = 1 and
    nobody sits out. A stage's length cap (`collect.told.longest`) replaces `max_new_tokens`.
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
    top_p: float = 1.0
    ahead: bool = False
    again: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.n <= self.most:
            raise SelfloopError(f"{self}: expected 1 <= least <= n <= most")
        if not 0 <= self.low < self.high <= 1:
            raise SelfloopError(f"{self}: expected 0 <= low < high <= 1")
        if self.temperature <= 0 or self.hottest < self.temperature or self.gain < 0:
            raise SelfloopError(f"{self}: expected 0 < temperature <= hottest and gain >= 0")
        if not 0 <= self.again <= 1:
            raise SelfloopError(f"{self}: expected 0 <= again <= 1")

    async def __call__(self, generate: Generate, sample: Sample, guidance: Mapping[str, Any],
                       key: str) -> list[Rollout]:
        """The draws, in one call; none for a problem that sits out."""
        learnt = guidance.get("learnt", {})
        out = self.sits_out(guidance.get("flat", {}).get(sample.id, 0), learnt.get("in_band"))
        if out and keys.uniforms(f"{key}/sits out", 1)[0] < out:
            return []
        known = guidance.get("difficulty", {}).get(sample.id)
        return await generate(
            sample, n=self.draws(known, learnt.get("hopeless")), label="steered",
            sampling=Sampling(temperature=self.heat(learnt.get("saturated")), top_p=self.top_p,
                              max_new_tokens=longest(guidance, self.max_new_tokens)))

    def draws(self, difficulty: float | None, hopeless: float | None = None) -> int:
        """How many answers a problem of this difficulty gets; None = unknown."""
        if difficulty is None:
            return self.n + round((self.most - self.n) * (hopeless or 0.0) * self.ahead)
        if difficulty >= 1 - self.low:
            return self.most
        return self.least if difficulty <= 1 - self.high else self.n

    def heat(self, saturated: float | None) -> float:
        """The temperature while this share of the groups is all right; None = unknown."""
        return min(self.hottest, self.temperature * (1 + self.gain * (saturated or 0.0)))

    def sits_out(self, flat: int, in_band: float | None) -> float:
        """The probability of no draw after so many groups in a row without variance."""
        return (1 - (1.0 if in_band is None else in_band)) * (1 - float(self.again**flat))


def plain_or_steered(steer: bool, n: int, temperature: float, max_new_tokens: int,
                     top_p: float = 1.0, *, views: float = 0.0, severity: float = 0.5) -> Sampler:
    """The sampler of a recipe with the option `steer`: `Independent`, or with everything that
    `Steered` does: 2 n to n / 4 draws (2 at least, since one answer alone has no advantage),
    `ahead`, half the turns after each flat group, up to half as hot again. All of these are ours.
    Steered draws see pictures as they are: raises SelfloopError for `views`.
    """
    if not steer:
        return Independent(n=n, temperature=temperature, top_p=top_p, views=views,
                           max_new_tokens=max_new_tokens, severity=severity)
    if views:
        raise SelfloopError(f"steer with {views:g} of the draws on changed pictures: steered draws "
                            "see them as they are; leave out steer or the views")
    return Steered(n=n, most=2 * n, least=max(min(2, n), n // 4), temperature=temperature,
                   hottest=1.5 * temperature, top_p=top_p, max_new_tokens=max_new_tokens,
                   ahead=True, again=0.5)
