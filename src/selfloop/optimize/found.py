"""What a pass over an update has seen: sums over micro-batches, and over processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from selfloop.optimize.monitors import Sums, added, means


@dataclass
class Found:
    """Terms and monitors of some of an update's micro-batches."""

    means: dict[str, float] = field(default_factory=dict)
    """Each term, divided by the units of the whole update."""
    weighed: dict[str, float] = field(default_factory=dict)
    """The same times its weight in the loss."""
    gaps: list[float] = field(default_factory=list)
    """Largest log-prob gaps between sampler and learner (assemble.gaps)."""
    sums: Sums = field(default_factory=dict)

    def term(self, name: str, weight: float, share: float) -> None:
        """Add a micro-batch's share of a term."""
        self.means[name] = self.means.get(name, 0.0) + share
        self.weighed[name] = self.weighed.get(name, 0.0) + weight * share

    @classmethod
    def of(cls, parts: Iterable[Found]) -> Found:
        """Several processes' shares as one, in order of the processes."""
        whole = cls()
        for part in parts:
            for name, share in part.means.items():
                whole.means[name] = whole.means.get(name, 0.0) + share
                whole.weighed[name] = whole.weighed.get(name, 0.0) + part.weighed[name]
            whole.gaps += part.gaps
            added(whole.sums, part.sums)
        return whole

    def figures(self) -> dict[str, float]:
        """Monitors' means, weighed terms and the largest gap, by name."""
        return means(self.sums) | self.weighed | (
            {"sampler_gap": max(self.gaps)} if self.gaps else {})
