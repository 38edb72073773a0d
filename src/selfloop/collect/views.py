"""Mixed views: clean and distorted pictures of one problem in one group (primitive S8).

A model that answers alike on both is paid for looking past the distortion; the distortion fades
as training goes on (NoisyRollout, arXiv 2504.13055). Ordered and shuffled frames are such a group,
too (Video-R1, arXiv 2503.21776).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfloop.collect.conditioning import at_least_one, noted, put_under
from selfloop.collect.negatives import EXCHANGED, WORSE_SEEN, can_worsen, worse_media
from selfloop.collect.swapped_pictures import Pool
from selfloop.corruptions import OPERATIONS, refuse_operation
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Media, Rollout, Sample

SHAPES = ("constant", "linear", "power", "exponential", "sigmoid")


@dataclass(frozen=True)
class Anneal:
    """A factor on the severity, from about 1 at step 0 down to about 0 at step `steps`.

    With u = step / steps, r = `rate`: linear 1 - u; power 1 - u^r; exponential
    1 - r^(steps - step), 0 < r < 1; sigmoid 1 - 1 / (1 + exp(-r (u - middle))), where
    NoisyRollout has r = 30 and its middle at step 40 (arXiv 2504.13055, released code).
    """

    shape: str = "sigmoid"
    steps: int = 100
    rate: float = 30.0
    middle: float = 0.4
    """u at which the sigmoid is one half."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise SelfloopError(f"Anneal: no shape {self.shape!r}; there are: {', '.join(SHAPES)}")
        if self.steps < 1 or self.rate <= 0:
            raise SelfloopError(f"{self}: steps must be >= 1 and rate > 0")
        if self.shape == "exponential" and self.rate >= 1:
            raise SelfloopError(f"{self}: an exponential fades with a rate between 0 and 1")

    def __call__(self, step: int) -> float:
        """The factor in [0, 1] at this step; after the last step, that of the last step."""
        left = self.steps - min(max(step, 0), self.steps)
        u = 1 - left / self.steps
        if self.shape == "linear":
            return 1 - u
        if self.shape == "power":
            return float(1 - u ** self.rate)
        if self.shape == "exponential":
            return float(1 - self.rate ** left)
        if self.shape == "sigmoid":
            return _logistic(-self.rate * (u - self.middle))
        return 1.0


def _logistic(x: float) -> float:
    """1 / (1 + exp(-x)), for any x without overflow."""
    return 0.5 * (1 + math.tanh(x / 2))


@dataclass(frozen=True)
class MixedViews:
    """`n` answers on the clean picture and `n` on a distorted one, in one group of 2n.

    The step is read from `guidance["step"]`, which the organizer step `adaptive.count_steps`
    leaves; without it the severity stays at its start. All n distorted draws see one picture.
    Distorted answers are trained under the clean picture when `train_clean` (NoisyRollout), and
    then without their log-probs; else under what they saw, where `FrameOrder` finds shuffled frames
    (`op="shuffle"`, with `Anneal("constant")`: Video-R1's mixed group). Samples that the operation
    cannot change (no picture, one alone to be shuffled) get 2n plain draws.
    """

    n: int = 6
    op: str = "diffusion"
    """A picture operation, or an image-side cause of `collect.negatives`."""
    severity: float = 0.5
    """At the start; .5 of `diffusion` is its step 500."""
    anneal: Anneal = Anneal()
    train_clean: bool = False
    temperature: float = 1.0
    max_new_tokens: int = 64
    pool: Pool | None = None
    """For `swapped` and `near`: `pool_of(media, library)`."""

    def __post_init__(self) -> None:
        at_least_one(self, "n")
        refuse_operation(self, self.op, self.severity, (*WORSE_SEEN, *EXCHANGED))
        if self.op in ("swapped", "near") and self.pool is None:
            raise SelfloopError(f"MixedViews(op={self.op!r}) needs pool=: pool_of(media, library)")

    @property
    def per_problem(self) -> float:
        """Draws a problem, for cost estimates."""
        return 2 * self.n

    async def __call__(self, generate: Generate, sample: Sample, guidance: Mapping[str, Any],
                       key: str) -> list[Rollout]:
        """The clean answers, then the others, marked by `sampling["severity"]`."""
        sampling = Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)
        severity = self.severity_at(guidance)
        media = self._worse(sample.media, severity, key)
        if media == sample.media:
            return await generate(sample, n=2 * self.n, sampling=sampling, label="clean")
        clean = await generate(sample, n=self.n, sampling=sampling, label="clean")
        seen = await generate(sample.context.seen_as(media), n=self.n, sampling=sampling,
                              label="noisy")
        if self.train_clean:
            return [*clean, *(put_under(sample.context, r, severity=severity) for r in seen)]
        return [*clean, *(noted(r, severity=severity) for r in seen)]

    def _worse(self, media: tuple[Media, ...], severity: float, key: str) -> tuple[Media, ...]:
        if severity == 0 or not can_worsen(media, self.op):
            return media
        if self.op in OPERATIONS:
            return tuple(m.with_op(self.op, severity, f"{key}/noisy{i}")
                         for i, m in enumerate(media))
        return worse_media(media, self.op, severity, f"{key}/noisy", self.pool)

    def severity_at(self, guidance: Mapping[str, Any]) -> float:
        """The severity in [0, 1] at the step that the guidance names."""
        step = guidance.get("step", 0)
        if not isinstance(step, int) or isinstance(step, bool):
            raise SelfloopError(
                f'MixedViews: guidance["step"] is {step!r}; expected a whole number, as '
                "count_steps leaves it")
        return self.severity * self.anneal(step)
