"""Imitation (primitives L1, L2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfloop.optimize.losses import counts
from selfloop.types import AnySignal


@dataclass(frozen=True)
class SFT:
    """-sum_t log pi(y_t), by default a mean over the trained tokens of the whole batch.

    `branch` names what is imitated: `target` of demonstrations, or `chosen` of pairs (the NLL
    anchor of RPO, arXiv 2404.19733). Several branches, each with a weight of its own, are a `Mix`
    of several SFT (SQ-LLaVA trains the question beside the answer). `normalize`: "token",
    "sequence" or "sum", see counts.normalised. A branch's `token_weights` multiply its tokens'
    terms and are what a mean divides by; 0 masks a token out.
    """

    branch: str = "target"
    normalize: str = "token"
    needs: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        counts.one_of("SFT.normalize", self.normalize, "token", "sequence", "sum")

    @property
    def reads(self) -> frozenset[str]:
        """Its branch."""
        return frozenset({self.branch})

    def accepts(self, signal: AnySignal) -> bool:
        """Any signal that has the branch."""
        return self.branch in signal.branches

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted trained tokens, or weights."""
        mine = {self.branch: counts.weighed(signals, tokens[self.branch], self.branch)}
        return counts.sizes(signals, mine, self.branch, self.normalize, ("nll",))

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"nll": weighted sum of token losses}."""
        scored = batch.branches[self.branch]
        share_BT = counts.normalised(scored.share_BT, self.normalize)
        return {"nll": (1.0, -((scored.logp_BT * share_BT).sum(-1) * batch.weight_B).sum())}


@dataclass(frozen=True)
class WeightedTokens:
    """-sum_t w_t log pi(y_t) / sum_t |w_t|: imitation with a weight a token.

    Reads Advantage signals, whose `advantage` is one weight for the answer or one a token; a
    weight of 0 masks a token out, a negative one is refused (that would be no imitation).
    """

    needs: frozenset[str] = field(default=frozenset(), init=False)
    reads: frozenset[str] = field(default=frozenset({"answer"}), init=False)

    def accepts(self, signal: AnySignal) -> bool:
        """Advantage signals without a negative number."""
        return signal.kind == "advantage" and min(_numbers(signal.advantage), default=0.0) >= 0

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted sum of the token weights."""
        found = 0.0
        for signal, n in zip(signals, tokens["answer"], strict=True):
            numbers = _numbers(getattr(signal, "advantage", 0.0))
            found += signal.weight * (sum(numbers) if len(numbers) != 1 else numbers[0] * n)
        return {"nll": found}

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"nll": weighted sum of token losses}."""
        scored = batch.branches["answer"]
        share_BT = scored.mask_BT * batch.advantage_BT * batch.weight_B[:, None]
        return {"nll": (1.0, -(scored.logp_BT * share_BT).sum())}


def _numbers(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
