"""Preference losses (primitives L3, L6, L7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfloop.types import AnySignal


@dataclass(frozen=True)
class DPO:
    """-log sigma(beta (h(y+) - h(y-)) - margin), h = log pi - log pi_ref (arXiv 2305.18290, eq. 7).

    `margin` is the pair's own (0 unless an organizer set it).
    """

    beta: float = 0.1
    needs: frozenset[str] = field(default=frozenset({"reference"}), init=False)

    def accepts(self, signal: AnySignal) -> bool:
        """Pairs, with whatever further branches."""
        return {"chosen", "rejected"} <= signal.branches.keys()

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """The pairs' weights."""
        return {"dpo": sum(s.weight for s in signals)}

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"dpo": weighted sum over pairs}."""
        from torch.nn.functional import logsigmoid

        h = batch.branches["chosen"].ratio_B - batch.branches["rejected"].ratio_B
        return {"dpo": (1.0, -(logsigmoid(self.beta * h - batch.margin_B) * batch.weight_B).sum())}


@dataclass(frozen=True)
class MDPO:
    """mDPO (arXiv 2406.11839): DPO + image-conditional DPO + an anchor on the chosen answer.

    The branch `corrupted` is the chosen answer under a corrupted (cropped) picture:
    L = L_DPO - log sigma(beta (h(y+, x) - h(y+, x'))) - log sigma(beta h(y+) - delta).
    With the policy at the reference each term is ln 2.
    """

    beta: float = 0.1
    delta: float = 0.0
    needs: frozenset[str] = field(default=frozenset({"reference"}), init=False)

    def accepts(self, signal: AnySignal) -> bool:
        """Pairs with a `corrupted` branch."""
        return {"chosen", "rejected", "corrupted"} <= signal.branches.keys()

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """The pairs' weights, for each of the three terms."""
        return dict.fromkeys(("dpo", "image", "anchor"), sum(s.weight for s in signals))

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """The three terms, each a weighted sum over pairs."""
        from torch.nn.functional import logsigmoid

        chosen, rejected, corrupted = (
            batch.branches[name].ratio_B for name in ("chosen", "rejected", "corrupted")
        )

        def term(z_B: Any) -> tuple[float, Any]:
            return 1.0, -(logsigmoid(z_B) * batch.weight_B).sum()

        return {
            "dpo": term(self.beta * (chosen - rejected)),
            "image": term(self.beta * (chosen - corrupted)),
            "anchor": term(self.beta * chosen - self.delta),
        }
