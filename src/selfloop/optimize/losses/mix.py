"""A weighted mixture of losses over one stream of signals (MPO and kin)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.roles import Loss, SelfloopError
from selfloop.types import AnySignal


@dataclass(frozen=True)
class Mix:
    """sum_i w_i L_i; every loss reads the signals that it accepts, each with its own units."""

    parts: tuple[tuple[float, Loss], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise SelfloopError("Mix needs at least one (weight, loss)")

    @property
    def needs(self) -> frozenset[str]:
        """What any part needs."""
        return frozenset().union(*(loss.needs for _, loss in self.parts))

    def accepts(self, signal: AnySignal) -> bool:
        """Signals that some part reads."""
        return any(loss.accepts(signal) for _, loss in self.parts)

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Each part's units over the signals that it accepts, under "0.nll", "1.dpo" ..."""
        found: dict[str, float] = {}
        for i, (_, loss) in enumerate(self.parts):
            mine = [j for j, s in enumerate(signals) if loss.accepts(s)]
            if mine:
                counts = {name: [n[j] for j in mine] for name, n in tokens.items()}
                units = loss.units([signals[j] for j in mine], counts)
                found |= {f"{i}.{term}": n for term, n in units.items()}
        return found

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """All parts' terms, weights multiplied."""
        return {
            f"{i}.{term}": (weight * w, total)
            for i, (weight, loss) in enumerate(self.parts) if loss.accepts(batch.signals[0])
            for term, (w, total) in loss(batch).items()
        }
