"""Losses over more than two answers, and over a whole update at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from selfloop.optimize.batch import Others
from selfloop.optimize.losses import counts
from selfloop.optimize.losses.links import Link, Sigmoid
from selfloop.optimize.losses.measures import LogRatio, Measure
from selfloop.roles import SelfloopError
from selfloop.types import AnySignal


@dataclass(frozen=True)
class Levels:
    """Several answers in order, best first: `levels` names their branches.

    `pairs` "list": the Plackett-Luce likelihood of the order (DPO, arXiv 2305.18290, appendix
    A.3, eq. 20); "all": the mean of link(beta (m_i - m_j)) over all i better than j; "next": over
    neighbouring levels only (multi-level preference, AMP, arXiv 2405.11165).
    """

    levels: tuple[str, ...] = ("chosen", "middle", "rejected")
    beta: float = 0.1
    pairs: str = "all"
    link: Link = Sigmoid()
    measure: Measure = LogRatio()

    def __post_init__(self) -> None:
        counts.one_of("Levels.pairs", self.pairs, "list", "all", "next")
        if len(set(self.levels)) < 2 or len(set(self.levels)) != len(self.levels):
            raise SelfloopError(f"Levels(levels={self.levels}): two or more different branches")

    @property
    def needs(self) -> frozenset[str]:
        """What the measure needs."""
        found: frozenset[str] = getattr(self.measure, "needs", frozenset())
        return found

    @property
    def reads(self) -> frozenset[str]:
        """The levels."""
        return frozenset(self.levels)

    def accepts(self, signal: AnySignal) -> bool:
        """Signals that have all levels."""
        return self.reads <= signal.branches.keys()

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """The signals' weights."""
        return counts.weights(signals, "rank")

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"rank": weighted sum over signals}."""
        import torch

        m_LB = torch.stack([self.beta * self.measure(batch, name) for name in self.levels])
        if self.pairs == "list":
            each_B = sum(torch.logsumexp(m_LB[i:], 0) - m_LB[i] for i in range(len(m_LB) - 1))
        else:
            chosen = [(i, j) for i, j in combinations(range(len(m_LB)), 2)
                      if self.pairs == "all" or j == i + 1]
            each_B = sum(self.link(m_LB[i] - m_LB[j]) for i, j in chosen) / len(chosen)
        return {"rank": (1.0, (each_B * batch.weight_B).sum())}


@dataclass(frozen=True)
class SelfCorrection:
    """(1 - beta D(y+, y- | after y+) - beta D(y+, y- | after y-))^2 (Sherlock, arXiv 2505.22651).

    D is the difference of log-ratios when correcting a first answer: the branches are
    `<better or worse>_after_<first>` with better/worse in (chosen, rejected), first likewise. A
    model that answers rightly whatever it said first has both D large and positive.
    """

    beta: float = 0.025
    needs: frozenset[str] = field(default=frozenset({"reference"}), init=False)
    reads: frozenset[str] = field(default=frozenset(
        f"{y}_after_{first}" for y in ("chosen", "rejected") for first in ("chosen", "rejected")),
        init=False)

    def accepts(self, signal: AnySignal) -> bool:
        """Signals that have the four branches."""
        return self.reads <= signal.branches.keys()

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """The signals' weights."""
        return counts.weights(signals, "correction")

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"correction": weighted sum over signals}."""
        def gap_B(first: str) -> Any:
            return batch.branches[f"chosen_after_{first}"].ratio_B \
                - batch.branches[f"rejected_after_{first}"].ratio_B

        left_B = 1 - self.beta * (gap_B("chosen") + gap_B("rejected"))
        return {"correction": (1.0, (left_B ** 2 * batch.weight_B).sum())}


@dataclass(frozen=True)
class OwnNegative:
    """DPO against the policy's own tokens under a noised picture (POVID, arXiv 2402.11411).

    v_t is the likeliest token at place t of the chosen answer under the branch `corrupted`; the
    rejected log-prob is sum_t log pi(v_t | clean picture, y+_<t). The released code takes v_t anew
    at each update; here it is taken before the first update of the step.
    """

    beta: float = 0.1
    branch: str = "chosen"
    source: str = "corrupted"
    needs: frozenset[str] = field(default=frozenset({"reference", "others"}), init=False)

    @property
    def reads(self) -> frozenset[str]:
        """The chosen answer on the clean picture."""
        return frozenset({self.branch})

    @property
    def others(self) -> tuple[Others, ...]:
        """The one likeliest token under the corrupted picture."""
        return (Others(self.branch, self.source, 1),)

    def accepts(self, signal: AnySignal) -> bool:
        """Signals with both branches."""
        return {self.branch, self.source} <= signal.branches.keys()

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """The signals' weights."""
        return counts.weights(signals, "own")

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"own": weighted sum over signals}."""
        scored = batch.branches[self.branch]
        own_BT = (scored.others_BTK - scored.others_ref_BTK)[..., 0] * scored.mask_BT
        z_B = self.beta * (scored.ratio_B - own_BT.sum(-1))
        return {"own": (1.0, (Sigmoid()(z_B) * batch.weight_B).sum())}


@dataclass(frozen=True)
class AOT:
    """Alignment via optimal transport, paired (arXiv 2406.05882).

    The k-th smallest of the update's policy gaps log pi(y+) - log pi(y-) is held against the k-th
    smallest of its reference gaps: the whole distribution of margins shall move, not each pair.
    """

    beta: float = 0.1
    link: Link = Sigmoid()
    needs: frozenset[str] = field(default=frozenset({"reference", "statistics"}), init=False)
    reads: frozenset[str] = field(default=frozenset({"chosen", "rejected"}), init=False)

    def accepts(self, signal: AnySignal) -> bool:
        """Pairs."""
        return self.reads <= signal.branches.keys()

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """The signals' weights."""
        return counts.weights(signals, "aot")

    def measure(self, batch: Any) -> dict[str, Any]:
        """Both gaps."""
        better, worse = batch.branches["chosen"], batch.branches["rejected"]
        return {"policy": better.sum_B - worse.sum_B,
                "reference": better.ref_sum_B - worse.ref_sum_B}

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"aot": weighted sum over pairs}."""
        rank_N = batch.whole["policy"].argsort(stable=True).argsort(stable=True)  # NaN comes last
        held_B = batch.whole["reference"].sort().values[rank_N[list(batch.index)]]
        gap_B = self.measure(batch)["policy"] - held_B
        return {"aot": (1.0, (self.link(self.beta * gap_B) * batch.weight_B).sum())}
