"""Answers gone on with while the picture is hidden from the text (primitives S6 and S7)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from selfloop import keys
from selfloop.collect.conditioning import noted, wholly_own
from selfloop.collect.unsayable import if_sayable
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Rollout, Sample


@dataclass(frozen=True)
class MaskedAttention:
    """`n` good answers, and of each one a bad version drawn with the picture masked.

    BDHS (Amirloo et al., arXiv 2407.02477) makes the rejected answer by letting the model write
    on while attention to the picture's tokens is blocked. Here a good answer is cut at a share of
    its words between `least` and `most`, drawn by key, and gone on with under
    `Sampling(hidden=share)`; with `least` = `most` = 0 bad answers are wholly new. Where the text
    comes out as the good one, it is tried again up to `tries` times, with one word less kept each
    time, and then left out; an opening that cannot be forced counts as a try, too. How far the two
    must differ beyond that is the window's business: `organize.refine` has them.

    Bad answers have `sampling["negative"]` = "masked", `"severity"` = share and `"of"`, the good
    one's id. All their tokens count as the model's and have no log-probs. Samples without
    pictures get good answers only.
    """

    n: int = 2
    share: float = 1.0
    least: float = 0.0
    most: float = 0.5
    tries: int = 3
    temperature: float = 1.0
    max_new_tokens: int = 128
    asks: ClassVar[frozenset[str]] = frozenset({"forced_prefix", "masked_attention"})

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0 <= self.least <= self.most < 1:
            raise SelfloopError(
                f"MaskedAttention(share={self.share}, least={self.least}, most={self.most}): "
                "expected share in (0, 1] and 0 <= least <= most < 1")
        if self.n < 1 or self.tries < 1:
            raise SelfloopError(f"MaskedAttention(n={self.n}, tries={self.tries}): both must be "
                                "at least 1")

    @property
    def per_problem(self) -> float:
        """Draws a problem, for cost estimates."""
        return 2 * self.n

    async def __call__(self, generate: Generate, sample: Sample, key: str) -> list[Rollout]:
        """The good answers, then the bad ones."""
        good = await generate(sample, n=self.n, label="good", sampling=Sampling(
            temperature=self.temperature, max_new_tokens=self.max_new_tokens))
        if not sample.media:
            return good
        bad = await asyncio.gather(*(
            self._bad(generate, sample, one, f"{key}/{i}", f"masked{i}")
            for i, one in enumerate(good)))
        return [*good, *(one for one in bad if one is not None)]

    async def _bad(self, generate: Generate, sample: Sample, good: Rollout, key: str, label: str
                   ) -> Rollout | None:
        u = float(keys.uniforms(f"{key}/cut", 1)[0])
        words = good.text.split(" ")
        kept = int((self.least + u * (self.most - self.least)) * len(words))
        for attempt in range(self.tries):
            opening = " ".join(words[:max(0, kept - attempt)])
            found = await if_sayable(generate(
                sample, label=f"{label}.{attempt}", sampling=Sampling(
                    temperature=self.temperature, max_new_tokens=self.max_new_tokens,
                    prefix=opening, hidden=self.share)))
            for drawn in found:  # one, or none where the opening cannot be forced
                if drawn.text.strip() != good.text.strip():
                    return noted(wholly_own(drawn), negative="masked", severity=self.share,
                                 of=good.id)
        return None
