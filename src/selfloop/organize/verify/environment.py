"""The environment's own outcome as a verdict (primitives V31)."""

from __future__ import annotations

from dataclasses import dataclass

from selfloop.types import Rollout, Verdict


@dataclass(frozen=True)
class EnvironmentReturn:
    """The summed reward of an episode, divided by `scale`; abstains on plain answers."""

    scale: float = 1.0

    def __call__(self, rollout: Rollout) -> Verdict:
        """Read `sampling["return"]`, which EnvSampler left there."""
        value = rollout.sampling.get("return")
        if not isinstance(value, int | float):
            return Verdict(rationale="not an episode of an environment")
        return Verdict(score=float(value) / self.scale)
