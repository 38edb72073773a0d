"""Rows of an update, run again by themselves: which of them is it that breaks or outweighs all?

Every term of a loss is a sum over rows divided by a count of the whole update, so the part that
any rows have in it can be computed from these rows alone, exactly as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from selfloop.optimize.assemble import Update
from selfloop.optimize.batch import Batch, Scored

Terms = Mapping[str, tuple[float, Any]]


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass over an update: all that it takes to run a part of it again."""

    update: Update
    chunks: Sequence[Sequence[int]]
    """Indices of the signals of each micro-batch."""
    units: Mapping[str, float]
    state: Mapping[str, float]
    whole: Mapping[str, torch.Tensor]

    def batch(self, index: Sequence[int]) -> Batch:
        """Some signals of one micro-batch, through the policy as it is now."""
        return self.update.batch(list(index), self.update.names(list(index)), self.state,
                                 self.whole)

    def share(self, name: str, value: Any) -> Any:
        """A term's sum as its part of the update's mean."""
        return value / max(self.units[name], 1e-12)

    def total(self, terms: Terms) -> Any:
        """What these terms add to the update's loss."""
        return sum(w * self.share(name, x) for name, (w, x) in terms.items())

    @property
    def order(self) -> list[int]:
        """All signals, micro-batch after micro-batch."""
        return [i for chunk in self.chunks for i in chunk]

    def gradient_norm(self, index: Sequence[int]) -> float:
        """The norm of the gradient that these signals alone have; nothing is accumulated."""
        parameters = list(self.update.policy.trainable().values())
        sums: list[Any] = [None] * len(parameters)
        for mine in self._split(index):
            total = self.total(self.update.loss(self.batch(mine)))
            for i, g in enumerate(torch.autograd.grad(total, parameters, allow_unused=True)):
                if g is not None:
                    sums[i] = g if sums[i] is None else sums[i] + g
        return float(torch.nn.utils.get_total_norm([g for g in sums if g is not None]))

    @torch.no_grad()
    def losses(self) -> dict[int, float]:
        """What each signal alone adds to the update's loss."""
        found: dict[int, float] = {}
        for chunk in self.chunks:
            batch = self.batch(chunk)
            for at, i in enumerate(chunk):
                found[i] = float(self.total(self.update.loss(alone(batch, at))))
        return found

    def _split(self, index: Sequence[int]) -> list[list[int]]:
        wanted = set(index)
        cut = [[i for i in chunk if i in wanted] for chunk in self.chunks]
        return [mine for mine in cut if mine]


def alone(batch: Batch, at: int) -> Batch:
    """The signal at place `at` of a micro-batch, as a micro-batch of its own, without graph."""
    def row(x: Any) -> Any:
        return x[at:at + 1].detach() if isinstance(x, torch.Tensor) else x

    def branch(scored: Scored) -> Scored:
        return replace(scored, **{f.name: row(getattr(scored, f.name)) for f in fields(scored)})

    return replace(
        batch, signals=batch.signals[at:at + 1], index=batch.index[at:at + 1],
        branches={name: branch(scored) for name, scored in batch.branches.items()},
        weight_B=row(batch.weight_B), advantage_BT=row(batch.advantage_BT),
        margin_B=row(batch.margin_B))


def not_finite(norm: Callable[[Sequence[int]], float], index: Sequence[int], *, most: int = 4,
               tries: int = 48) -> tuple[list[int], bool]:
    """Rows whose gradient is not finite, found by halving: (rows, whether each is so by itself).

    At most `most` rows, in at most `tries` calls of `norm`. No rows: computed again, the gradient
    is finite. False: the rows are finite apart, and only their sum is not.
    """
    if math.isfinite(norm(index)):
        return [], True
    found: list[int] = []
    waiting = [list(index)]
    while waiting and len(found) < most:
        mine = waiting.pop()
        if len(mine) == 1:
            found += mine
            continue
        if (tries := tries - 2) < 0:
            break
        halves = [mine[len(mine) // 2:], mine[:len(mine) // 2]]
        bad = [half for half in halves if not math.isfinite(norm(half))]
        if not bad and not found and not waiting:
            return mine, False
        waiting += bad
    return found, True
