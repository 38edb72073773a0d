"""Stages of a curriculum: which problems count when, and what the collection is told (F14)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.roles import SelfloopError
from selfloop.types import Group


@dataclass(frozen=True)
class Stage:
    """`steps` steps on the samples whose `meta[field]` is one of `values`.

    `field=""` admits all. `guidance` (name, value) pairs reach samplers that name `guidance`.
    """

    name: str
    steps: int
    field: str = ""
    values: tuple[Any, ...] = ()
    guidance: tuple[tuple[str, Any], ...] = ()

    def admits(self, group: Group) -> bool:
        """Whether a group belongs to this stage."""
        return not self.field or group.sample.meta.get(self.field) in self.values


@dataclass(frozen=True)
class Stages:
    """One stage after the other; the last one stays.

    Text first, then pictures (LMM-R1, arXiv 2503.07536); medium, then hard (OpenVLThinker, arXiv
    2503.17352); growing length caps (Vision-R1, arXiv 2503.06749: guidance (("max_new_tokens",
    4096),) and so on, which `Independent`, `Steered` and `AdaptiveTemperature` obey). The step is
    counted in the state under "stage_step"; the guidance left behind is that of the next step's
    stage. Nobody has told the first step anything, so give the sampler the first stage's cap.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages or any(s.steps < 1 for s in self.stages):
            raise SelfloopError("Stages: give at least one Stage, each of one or more steps")

    def at(self, step: int) -> Stage:
        """The stage of step 0, 1, 2 ..."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def __call__(self, groups: Sequence[Group], state: Mapping[str, Any]
                 ) -> tuple[list[Group], dict[str, Any]]:
        """(groups of this step's stage, the state update)."""
        step = int(state.get("stage_step", 0))
        now, coming = self.at(step), self.at(step + 1)
        guidance = {**state.get("guidance", {}), **dict(coming.guidance), "stage": coming.name}
        return [g for g in groups if now.admits(g)], {"stage_step": step + 1,
                                                      "guidance": guidance}
