"""Step scores as one score (primitives V19)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.calling import SelfloopError, as_verdict, call_by_name, name_of
from selfloop.roles import Verifier
from selfloop.types import Rollout, Verdict

WAYS = ("min", "prod", "last", "mean")


def aggregate(steps: Sequence[float], how: str) -> float | None:
    """min, prod, last or mean of step scores; None for no steps.

    min: a chain is as good as its weakest step (Lightman et al. 2023, arXiv 2305.20050, appendix F,
    which also has the product); last: Snell et al. 2024 (arXiv 2408.03314).
    """
    if how not in WAYS:
        raise SelfloopError(f"aggregate how={how!r}: expected one of {', '.join(WAYS)}")
    if not steps:
        return None
    if how == "min":
        return min(steps)
    if how == "prod":
        return math.prod(steps)
    return steps[-1] if how == "last" else sum(steps) / len(steps)


@dataclass(frozen=True)
class Process:
    """The step scores that `verifier` gave (its spans in the order of the text, else its token
    scores), aggregated. None without any: the verifier's own score is not a step score."""

    verifier: Verifier
    how: str = "min"

    def __post_init__(self) -> None:
        aggregate((), self.how)

    async def __call__(self, rollout: Rollout, **offered: Any) -> Verdict:
        """Async, because a step verifier may ask a model."""
        value = call_by_name(self.verifier, rollout=rollout, **offered)
        found = as_verdict(await value if inspect.isawaitable(value) else value,
                           name_of(self.verifier))
        steps = [s for _, _, s in sorted(found.spans)] or list(found.token_scores or ())
        if found.error or not steps:
            return found.model_copy(update={"score": None})
        return found.model_copy(update={"score": aggregate(steps, self.how), "parts": {
            **found.parts, "steps": float(len(steps))}})
