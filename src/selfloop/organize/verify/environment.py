"""The environment's own outcome as a verdict (primitives V31), and rules for final answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfloop.roles import Verifier, as_verdict, call_by_name, name_of
from selfloop.types import Part, Rollout, Verdict


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


@dataclass(frozen=True)
class LastTurn:
    """`right` on what the model said in its last turn, and on nothing that it was shown.

    An observation may hold the very text that a rule looks for. Answers of one turn are judged
    as they are. `right` is a synchronous verifier of single rollouts.
    """

    right: Verifier

    def __call__(self, rollout: Rollout, **offered: Any) -> Verdict:
        """Gold values reach `right` alone, and only if it names them."""
        said = rollout.sampling.get("said_last")
        if isinstance(said, str):
            rollout = rollout.model_copy(update={"output": (Part(text=said),)})
        return as_verdict(call_by_name(self.right, rollout=rollout, **offered),
                          name_of(self.right))
