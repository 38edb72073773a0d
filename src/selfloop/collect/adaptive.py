"""What a step learns for the next one: the step number, and the best temperature (S12).

`count_steps` and `ChooseTemperature` are organizer steps (for `Chain(steps=...)`); what they
leave as guidance is read by the samplers `MixedViews` and `AdaptiveTemperature`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from selfloop import keys
from selfloop.collect.conditioning import at_least_one, noted
from selfloop.collect.told import longest
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Group, Rollout, Sample, Verdict


def _guiding(state: Mapping[str, Any], **found: Any) -> dict[str, Any]:
    return {"guidance": {**state.get("guidance", {}), **found}}


def count_steps(groups: Sequence[Group], state: Mapping[str, Any]
                ) -> tuple[list[Group], dict[str, Any]]:
    """Organizer step: leave the number of the next step as `guidance["step"]`.

    The count is part of the state, so a step that was rolled back is not counted.
    """
    step = int(state.get("step", 0)) + 1
    return list(groups), {"step": step, **_guiding(state, step=step)}


@dataclass(frozen=True)
class AdaptiveTemperature:
    """`n` answers at the temperature that did best in the last step (M-STaR, arXiv 2412.17451).

    A fixed `share` of the problems is the slice on which the temperatures are compared: each of
    them is drawn `n` times at every temperature of `grid`. `ChooseTemperature` in the organizer
    reads those draws and leaves `guidance["temperature"]`; before that it is `start`.

    A sampler sees one problem at a time and cannot see to it that a step has one of the slice. So
    the share doubles with each step that had none (`guidance["empty_slices"]` in a row, which the
    manifests show), up to all problems, and is itself again after a step that had one: steps are
    without a slice at most log2(1 / share), rounded up, times in a row. `share=0` asks for none.
    A stage's length cap (`collect.told.longest`) takes the place of `max_new_tokens`.
    """

    grid: tuple[float, ...] = (0.5, 0.7, 0.9, 1.1, 1.3)
    start: float = 1.0
    share: float = 0.1
    n: int = 8
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        at_least_one(self, "n")
        if not self.grid or min(*self.grid, self.start) <= 0 or not 0 <= self.share <= 1:
            raise SelfloopError(f"{self}: temperatures must be > 0 and share in [0, 1]")

    @property
    def per_problem(self) -> float:
        """Draws a problem on average, for cost estimates."""
        return self.n * (1 + self.share * (len(self.grid) - 1))

    async def __call__(self, generate: Generate, sample: Sample, guidance: Mapping[str, Any]
                       ) -> list[Rollout]:
        """The draws at the chosen temperature, or at all of them on the slice."""
        empty = min(int(guidance.get("empty_slices", 0)), 64)  # 2**64 doublings suit any share
        if keys.uniforms(f"slice/{sample.id}", 1)[0] >= self.share * 2**empty:
            chosen = self._at(float(guidance.get("temperature", self.start)), guidance)
            return await generate(sample, n=self.n, sampling=chosen, label="chosen")
        found: list[Rollout] = []
        for i, temperature in enumerate(self.grid):
            drawn = await generate(sample, n=self.n, sampling=self._at(temperature, guidance),
                                   label=f"grid{i}")
            found += [noted(r, grid=temperature) for r in drawn]
        return found

    def _at(self, temperature: float, guidance: Mapping[str, Any]) -> Sampling:
        return Sampling(temperature=temperature,
                        max_new_tokens=longest(guidance, self.max_new_tokens))


@dataclass(frozen=True)
class ChooseTemperature:
    """Organizer step: leave the temperature with the highest Reward-Pass@K as guidance.

    The figures are left too, as `guidance["reward_pass"]`. Ties go to the temperature in use,
    then to the lowest. Without a judged draw on the slice nothing changes: the temperature in use
    is left again, because guidance lasts one step. How many steps in a row had nobody on the slice
    is `guidance["empty_slices"]`, by which `AdaptiveTemperature` widens it.
    """

    k: int = 2
    rank_by: str = ""
    """The part of the verdicts that ranks answers (a reward model's score). "" ranks by the
    score itself, which makes the figure the share of problems with any right answer."""

    def __call__(self, groups: Sequence[Group], state: Mapping[str, Any]
                 ) -> tuple[list[Group], dict[str, Any]]:
        """(the same groups, the guidance)."""
        grid = sorted({float(t) for g in groups for r in g.rollouts
                       if isinstance(t := r.sampling.get("grid"), int | float)})
        found = {t: reward_pass(groups, t, self.k, self.rank_by) for t in grid}
        known = {t: value for t, value in found.items() if value is not None}
        in_use = state.get("guidance", {}).get("temperature", state.get("temperature"))
        kept: dict[str, Any] = {}
        told: dict[str, Any] = {}
        if known:
            in_use = min(known, key=lambda t: (-known[t], t != in_use, t))
            told["reward_pass"] = {f"{t:g}": value for t, value in known.items()}
        if in_use is not None:
            kept["temperature"] = told["temperature"] = in_use
        empty = 0 if grid else int(state.get("empty_slices", 0)) + 1
        if empty or "empty_slices" in state:
            kept["empty_slices"] = empty
        if empty:
            told["empty_slices"] = empty
        return list(groups), kept | (_guiding(state, **told) if told else {})


def reward_pass(groups: Sequence[Group], temperature: float, k: int, rank_by: str = ""
                ) -> float | None:
    """Reward-Pass@K: the share of problems with a right answer among the K that rank highest.

    Over the draws marked `grid == temperature` (M-STaR, arXiv 2412.17451). Answers
    without a score or a rank are left out, and problems without any answer left; None if none is.
    """
    hits: list[bool] = []
    for group in groups:
        judged = [
            (rank, v.right) for r, v in zip(group.rollouts, group.verdicts, strict=False)
            if r.sampling.get("grid") == temperature and (rank := _rank(v, rank_by)) is not None
        ]
        if judged:
            best = sorted(judged, key=lambda one: -one[0])[:k]
            hits.append(any(right for _, right in best))
    return fmean(hits) if hits else None


def _rank(verdict: Verdict, by: str) -> float | None:
    if verdict.score is None:
        return None
    return verdict.parts.get(by) if by else verdict.score
