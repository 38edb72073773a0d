"""The divergence from the reference as a part of the reward rather than of the loss.

What it costs is known before the first update (the reference and `old` are), so the statistics of
the update that it wants need no forward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfloop.optimize.losses import counts
from selfloop.optimize.losses.surrogates import ESTIMATORS, Adaptive, coefficient
from selfloop.roles import SelfloopError


@dataclass(frozen=True)
class RewardKL:
    """Advantages less what the answer's divergence costs, c k(log pi_ref - log pi_old) a token.

    `baseline` "none": a token pays for itself and for what follows (REINFORCE++, arXiv
    2501.03262). "group": an answer pays for all of its tokens, less the mean that the others of its
    group pay: exact where advantages are leave-one-out differences of rewards (RLOO), since these
    are linear in the reward. `whiten` then takes the mean off all tokens' advantages of the
    update, and divides by their standard deviation.
    """

    coefficient: float | Adaptive = 0.01
    estimator: str = "k1"
    baseline: str = "none"
    whiten: bool = False

    needs = frozenset({"old", "reference", "statistics"})

    def __post_init__(self) -> None:
        counts.one_of("RewardKL.baseline", self.baseline, "none", "group")
        counts.one_of("RewardKL.estimator", self.estimator, *ESTIMATORS)
        if self.whiten and self.baseline == "group":
            raise SelfloopError("RewardKL: whiten goes with baseline='none' only")

    def measure(self, batch: Any) -> dict[str, Any]:
        """Each answer's divergence and tokens; for `whiten`, sums of its advantages too."""
        scored = batch.branches["answer"]
        found = {"spent": self._spent(scored).sum(-1), "tokens": scored.mask_BT.sum(-1)}
        if self.whiten:
            paid_BT = self._to_go(batch)
            found |= {"sum": paid_BT.sum(-1), "square": (paid_BT ** 2).sum(-1)}
        return found

    def adapt(self, state: Mapping[str, float], whole: Mapping[str, Any]) -> dict[str, float]:
        """The next coefficient, from the mean divergence a token."""
        if not isinstance(self.coefficient, Adaptive):
            return {}
        mean = float(whole["spent"].nansum() / whole["tokens"].nansum().clamp(min=1))
        return {"reward_kl": self.coefficient.after(self._now(state), mean)}

    def _now(self, state: Mapping[str, float]) -> float:
        return coefficient(self.coefficient, {"kl": state["reward_kl"]} if "reward_kl" in state
                           else {})

    def _spent(self, scored: Any) -> Any:
        return ESTIMATORS[self.estimator](scored.reference_BT - scored.old_BT) * scored.mask_BT

    def _to_go(self, batch: Any) -> Any:
        scored = batch.branches["answer"]
        rest_BT = self._spent(scored).flip(-1).cumsum(-1).flip(-1)
        return (batch.advantage_BT - self._now(batch.state) * rest_BT) * scored.mask_BT

    def __call__(self, batch: Any) -> Any:
        """Advantages [B, T]."""
        whole, mask_BT = batch.whole, batch.branches["answer"].mask_BT
        if self.baseline == "group":
            above_B = whole["spent"][list(batch.index)] - self._others(batch)
            return (batch.advantage_BT - self._now(batch.state) * above_B[:, None]) * mask_BT
        if not self.whiten:
            return self._to_go(batch)
        n = whole["tokens"].nansum()
        mean = whole["sum"].nansum() / n
        spread = (whole["square"].nansum() / n - mean ** 2).clamp(min=0).sqrt()
        return (self._to_go(batch) - mean) / (spread + 1e-8) * mask_BT

    def _others(self, batch: Any) -> Any:
        """The mean divergence of the other answers of each answer's group [B]; its own if alone."""
        groups: dict[str, list[int]] = defaultdict(list)
        for i, signal in enumerate(batch.update):
            if getattr(signal, "kind", "") == "advantage":
                groups[signal.group or signal.sample or str(i)].append(i)
        spent_N = batch.whole["spent"]
        found_B = spent_N[list(batch.index)].clone()
        for place, i in enumerate(batch.index):
            signal = batch.update[i]
            rest = [j for j in groups[signal.group or signal.sample or str(i)] if j != i]
            if rest:
                found_B[place] = spent_N[rest].mean()
        return found_B
