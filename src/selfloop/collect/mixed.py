"""Answers decoded between the picture and the prior, good and bad ones alike (primitive S5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfloop import keys
from selfloop.collect.conditioning import noted
from selfloop.collect.negatives import EXCHANGED, WORSE_SEEN, can_worsen, worse_media
from selfloop.collect.swapped_pictures import Pool
from selfloop.roles import Contrast, Generate, Sampling, SelfloopError
from selfloop.types import Context, Rollout, Sample

NO_PICTURE = "no picture"


@dataclass(frozen=True)
class MixedDecoding:
    """`n` good answers and `n` bad ones, the bad drawn from logits mixed with another context's.

    Bad answers lean to the other context by h ~ N(`mean`, `spread`), drawn anew for each and cut to
    [0, 1]: what the picture says fades into what language alone makes likely, so that they read
    like the model's own and differ where it stops looking (judge-free, Deng et al., arXiv
    2411.17760: no judge makes the pair, though a verifier may still swap or drop it). The other
    context is without pictures (`against="no picture"`), or sees them through a cause of
    `collect.negatives` at `severity` ("diffusion": as in VCD).

    Good answers are drawn plainly, or pushed away from the other context: `away` > 0 is VCD's
    alpha (arXiv 2311.16922, eq. 3; 1 in its released scripts, with `floor` = 0.1 for its
    plausibility and noise of step 500), `rate` > 0 is M3ID's, which grows with the text (arXiv
    2403.14003; 0.02 is chosen by us).

    Marks as `Negatives` has them: `sampling["negative"]` = "mixed" and `"severity"` = h on the bad
    ones; `"guided"` on good ones that were pushed. What was mixed has no log-probs. Samples without
    pictures, or where the cause changes none (`shuffle` needs two), get plain good answers only.
    """

    n: int = 2
    mean: float = 0.7
    spread: float = 0.1
    against: str = NO_PICTURE
    severity: float = 0.5
    away: float = 0.0
    rate: float = 0.0
    floor: float = 0.0
    pool: Pool | None = None
    temperature: float = 1.0
    max_new_tokens: int = 128
    asks: ClassVar[frozenset[str]] = frozenset({"contrast"})

    def __post_init__(self) -> None:
        known = (NO_PICTURE, *WORSE_SEEN, *EXCHANGED)
        if self.against not in known:
            raise SelfloopError(f"MixedDecoding(against={self.against!r}): expected one of "
                                f"{', '.join(known)}")
        if not 0 < self.mean <= 1 or self.spread < 0 or self.away < 0 or self.n < 1:
            raise SelfloopError(
                f"MixedDecoding(n={self.n}, mean={self.mean}, spread={self.spread}, "
                f"away={self.away}): n must be >= 1, mean in (0, 1], spread and away >= 0")
        if self.against in ("swapped", "near") and self.pool is None:
            raise SelfloopError(f"MixedDecoding(against={self.against!r}) needs pool=: "
                                "pool_of(media, library)")

    @property
    def per_problem(self) -> float:
        """Draws a problem, for cost estimates."""
        return 2 * self.n

    async def __call__(self, generate: Generate, sample: Sample, key: str) -> list[Rollout]:
        """The good answers, then the bad ones."""
        other = self._other(sample, key)
        if other == sample.context:
            return await generate(sample, n=self.n, sampling=self._sampling(None), label="good")
        pushed = Contrast(context=other, weight=-self.away, rate=self.rate, floor=self.floor)
        found = await generate(sample, n=self.n, label="good", sampling=self._sampling(pushed))
        if not pushed.idle:
            found = [noted(r, guided="away") for r in found]
        for i, h in enumerate(self._weights(key)):
            lean = Contrast(context=other, weight=h)
            drawn = await generate(sample, sampling=self._sampling(lean), label=f"mixed{i}")
            found += [noted(r, negative="mixed", severity=h) for r in drawn]
        return found

    def _sampling(self, contrast: Contrast | None) -> Sampling:
        return Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens,
                        contrast=contrast)

    def _weights(self, key: str) -> list[float]:
        """h of each bad answer."""
        drawn = keys.generator(f"{key}/mixed").normal(self.mean, self.spread, self.n)
        return [min(1.0, max(0.0, float(h))) for h in drawn]

    def _other(self, sample: Sample, key: str) -> Context:
        if self.against == NO_PICTURE:
            return sample.context.without_media()
        if not can_worsen(sample.media, self.against):
            return sample.context
        return sample.context.seen_as(worse_media(
            sample.media, self.against, self.severity, f"{key}/{self.against}", self.pool))
