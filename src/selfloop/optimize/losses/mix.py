"""A weighted mixture of losses over one stream of signals (MPO and kin)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfloop.learning import measured_by
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
            for term, (w, total) in loss(_share(batch, i)).items()
        }

    # -- what parts may have beside terms: each under its number ------------------------------

    @property
    def reads(self) -> frozenset[str] | None:
        """Branches that some part reads; None = all."""
        each = [getattr(loss, "reads", None) for _, loss in self.parts]
        return None if None in each else frozenset().union(*(r for r in each if r is not None))

    @property
    def measured(self) -> frozenset[str] | None:
        """Branches that some part's first pass reads; None = all."""
        each = [measured_by(loss) for _, loss in self._measuring()]
        return None if None in each else frozenset().union(*(r for r in each if r is not None))

    @property
    def others(self) -> tuple[Any, ...]:
        """Further tokens that parts want scored, a branch's once."""
        each = [o for _, loss in self.parts for o in getattr(loss, "others", ())]
        twice = next((o for i, o in enumerate(each) for p in each[:i]
                      if o.branch == p.branch and o != p), None)
        if twice is not None:
            raise SelfloopError(f"Mix: two losses want different further tokens in the branch "
                                f"{twice.branch!r}: only one can have them")
        return tuple(dict.fromkeys(each))

    @property
    def teacher(self) -> str:
        """The version that teaches. Raises SelfloopError where parts differ."""
        each = sorted({getattr(loss, "teacher", "current") for _, loss in self.parts
                       if "teacher" in loss.needs})
        if len(each) > 1:
            raise SelfloopError(f"Mix: losses with teachers {each}: give them one")
        return each[0] if each else "current"

    @property
    def words(self) -> tuple[str, str]:
        """The words of the first reward model."""
        model: Any = next(loss for _, loss in self.parts if "words" in loss.needs)
        found: tuple[str, str] = model.words
        return found

    @property
    def ema(self) -> float | None:
        """Decay of the averaged weights, of the first part that wants them."""
        return next((d for _, loss in self.parts if (d := getattr(loss, "ema", None))), None)

    @property
    def measures_policy(self) -> bool:
        """Whether some part's statistics need a forward pass."""
        return any(getattr(loss, "measures_policy", True) for _, loss in self._measuring())

    def _measuring(self) -> list[tuple[int, Any]]:
        return [(i, loss) for i, (_, loss) in enumerate(self.parts) if "statistics" in loss.needs]

    def measure(self, batch: Any) -> dict[str, Any]:
        """Parts' statistics."""
        return {f"{i}.{name}": found for i, loss in self._measuring()
                if loss.accepts(batch.signals[0])
                for name, found in loss.measure(_share(batch, i)).items()}

    def watch(self, batch: Any) -> dict[str, tuple[float, float]]:
        """Parts' own monitors, under their number."""
        each: list[tuple[int, Any]] = [(i, loss) for i, (_, loss) in enumerate(self.parts)
                                       if hasattr(loss, "watch")]
        return {f"{i}.{name}": found for i, loss in each if loss.accepts(batch.signals[0])
                for name, found in loss.watch(_share(batch, i)).items()}

    def adapt(self, state: Mapping[str, float], means: Mapping[str, float],
              whole: Mapping[str, Any]) -> dict[str, float]:
        """Parts' states."""
        return {f"{i}.{name}": value for i, (_, loss) in enumerate(self.parts)
                if hasattr(loss, "adapt") for name, value in loss.adapt(
                    _under(state, i), _under(means, i), _under(whole, i)).items()}


def _under(found: Mapping[str, Any], i: int) -> dict[str, Any]:
    start = f"{i}."
    return {name[len(start):]: x for name, x in found.items() if name.startswith(start)}


def _share(batch: Any, i: int) -> Any:
    """The batch as part i sees it."""
    return replace(batch, whole=_under(batch.whole, i), state=_under(batch.state, i)) \
        if batch.whole or batch.state else batch
