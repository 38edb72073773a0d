"""Policy-gradient losses (primitives L15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.types import Advantage, AnySignal


@dataclass(frozen=True)
class GRPO:
    """The clipped surrogate of GRPO (arXiv 2402.03300, eq. 3), with optional k3 KL.

    `normalize`: "sequence" divides each answer's sum by its own length, then by the number of
    answers (the paper); "token" divides by all trained tokens (DAPO, arXiv 2503.14476).
    Advantages come with the signals: how groups are normalised is the organizer's business.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.0
    normalize: str = "token"
    entropy: float = 0.0

    @property
    def needs(self) -> frozenset[str]:
        """`old` always (ratio 1 on fresh draws); reference and entropy when they weigh."""
        return frozenset({"old"} | ({"reference"} if self.kl else set())
                         | ({"entropy"} if self.entropy else set()))

    def accepts(self, signal: AnySignal) -> bool:
        """Advantages."""
        return isinstance(signal, Advantage)

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted trained tokens, or answers."""
        sizes = tokens["answer"] if self.normalize == "token" else [1] * len(signals)
        total = sum(s.weight * n for s, n in zip(signals, sizes, strict=True))
        return dict.fromkeys(self._terms(), total)

    def _terms(self) -> list[str]:
        return ["policy", *(["kl"] if self.kl else []), *(["entropy"] if self.entropy else [])]

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"policy": ..., "kl": ..., "entropy": ...}, sums over this micro-batch."""
        import torch

        scored = batch.branches["answer"]
        mask_BT = scored.mask_BT
        if self.normalize == "sequence":
            mask_BT = mask_BT / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        mask_BT = mask_BT * batch.weight_B[:, None]
        ratio_BT = torch.exp(scored.logp_BT - scored.old_BT)
        clipped_BT = ratio_BT.clamp(1 - self.clip_low, 1 + self.clip_high)
        gain_BT = torch.minimum(ratio_BT * batch.advantage_BT, clipped_BT * batch.advantage_BT)
        terms = {"policy": (1.0, -(gain_BT * mask_BT).sum())}
        if self.kl:
            gap_BT = scored.ref_BT - scored.logp_BT
            terms["kl"] = (self.kl, ((torch.exp(gap_BT) - gap_BT - 1) * mask_BT).sum())
        if self.entropy:
            terms["entropy"] = (-self.entropy, (scored.entropy_BT * mask_BT).sum())
        return terms
