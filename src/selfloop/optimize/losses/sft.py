"""Imitation (primitives L1, L2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfloop.types import AnySignal


@dataclass(frozen=True)
class SFT:
    """-sum_t log pi(y_t), a mean over the trained tokens of the whole batch.

    `branch` names what is imitated: `target` of demonstrations, or `chosen` of pairs (the NLL
    anchor of RPO, arXiv 2404.19733).
    """

    branch: str = "target"
    needs: frozenset[str] = field(default=frozenset(), init=False)

    def accepts(self, signal: AnySignal) -> bool:
        """Any signal that has the branch."""
        return self.branch in signal.branches

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted trained tokens."""
        return {"nll": sum(s.weight * t for s, t in
                           zip(signals, tokens[self.branch], strict=True))}

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"nll": weighted sum of token losses}."""
        scored = batch.branches[self.branch]
        return {"nll": (1.0, -(scored.sum_B * batch.weight_B).sum())}
