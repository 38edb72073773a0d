"""Policy-gradient losses (primitives L15 to L18): one class, and the papers as fillings of it.

How a group's rewards become advantages is the organizer's business (organize/signals.py,
organize/advantages.py); a loss reads what comes with the signals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.optimize.losses import counts
from selfloop.optimize.losses.kl_reward import RewardKL
from selfloop.optimize.losses.surrogates import (
    ESTIMATORS,
    Adaptive,
    Capped,
    Clipped,
    Plain,
    Soft,
    Surrogate,
    coefficient,
)
from selfloop.roles import SelfloopError
from selfloop.types import Advantage, AnySignal


@dataclass(frozen=True)
class GRPO:
    """The clipped surrogate of GRPO (arXiv 2402.03300, eq. 3), with optional KL to the reference.

    `normalize`: "sequence" divides each answer's sum by its own length, then by the number of
    answers (the paper); "token" divides by all trained tokens (DAPO, arXiv 2503.14476, eq. 8);
    "length" divides by the constant `length` (Dr. GRPO); "sum" by the number of answers alone.
    `level`: what r is the ratio of: "token", "mean" (the answer's geometric mean, GSPO) or "sum"
    (the whole answer, RLOO). `entropy` > 0 rewards entropy.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float | Adaptive = 0.0
    normalize: str = "token"
    entropy: float = 0.0
    estimator: str = "k3"
    level: str = "token"
    length: int = 0
    surrogate: Surrogate | None = None
    """Takes the place of Clipped(clip_low, clip_high)."""
    reward_kl: RewardKL | None = None
    """The KL as a part of the reward, beside or instead of `kl` in the loss."""
    truncate: float | None = None
    """Truncated importance sampling (Yao et al. 2025): gains times min(pi_old / sampler, this),
    where the sampler's numbers differ from the learner's. `old` is then the learner's own."""

    def __post_init__(self) -> None:
        counts.one_of("GRPO.normalize", self.normalize, "token", "sequence", "length", "sum")
        counts.one_of("GRPO.level", self.level, "token", "mean", "sum")
        counts.one_of("GRPO.estimator", self.estimator, *ESTIMATORS)
        if (self.normalize == "length") != (self.length > 0):
            raise SelfloopError(f"GRPO(normalize={self.normalize!r}, length={self.length}): "
                                "`length` (a number of tokens) goes with normalize='length' only")

    @property
    def needs(self) -> frozenset[str]:
        """`old` always (ratio 1 on fresh draws); the rest when it weighs."""
        return frozenset({"old"} | ({"reference"} if self.kl else set())
                         | ({"entropy"} if self.entropy else set())
                         | ({"drawn"} if self.truncate else set())
                         | (self.reward_kl.needs if self.reward_kl else set()))

    reads = frozenset({"answer"})
    measures_policy = False

    def accepts(self, signal: AnySignal) -> bool:
        """Advantages."""
        return isinstance(signal, Advantage)

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Weighted trained tokens, or answers."""
        terms = ["policy", *(["kl"] if self.kl else []), *(["entropy"] if self.entropy else [])]
        return counts.sizes(signals, tokens, "answer", self.normalize, terms)

    def measure(self, batch: Any) -> dict[str, Any]:
        """What the KL in the reward wants to know of the whole update."""
        return self.reward_kl.measure(batch) if self.reward_kl else {}

    def adapt(self, state: Mapping[str, float], means: Mapping[str, float],
              whole: Mapping[str, Any]) -> dict[str, float]:
        """The coefficients for the next update, where they adapt."""
        found = self.reward_kl.adapt(state, whole) if self.reward_kl else {}
        if isinstance(self.kl, Adaptive):
            now = coefficient(self.kl, state)
            found["kl"] = self.kl.after(now, means["kl"]) if "kl" in means else now
        return found

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{"policy": ..., "kl": ..., "entropy": ...}, sums over this micro-batch."""
        scored = batch.branches["answer"]
        mask_BT = counts.normalised(scored.mask_BT, self.normalize, self.length)
        mask_BT = mask_BT * batch.weight_B[:, None]
        terms = {"policy": (1.0, -(self._gain(batch) * mask_BT).sum())}
        if self.kl:
            kl_BT = ESTIMATORS[self.estimator](scored.reference_BT - scored.logp_BT)
            terms["kl"] = (coefficient(self.kl, batch.state), (kl_BT * mask_BT).sum())
        if self.entropy:
            terms["entropy"] = (-self.entropy, (scored.entropy_BT * mask_BT).sum())
        return terms

    def watch(self, batch: Any) -> dict[str, tuple[float, float]]:
        """`clipped`: the share of tokens whose gradient the clip has taken away."""
        scored = batch.branches["answer"]
        ratio, advantage_BT = self._log_ratio(scored).exp(), batch.advantage_BT
        out_BT = ((ratio > 1 + self.clip_high) & (advantage_BT > 0)) \
            | ((ratio < 1 - self.clip_low) & (advantage_BT < 0))
        sums = float((out_BT * scored.mask_BT).sum()), float(scored.mask_BT.sum())
        return {} if self.surrogate else {"clipped": sums}

    def _gain(self, batch: Any) -> Any:
        scored = batch.branches["answer"]
        advantage_BT = self.reward_kl(batch) if self.reward_kl else batch.advantage_BT
        surrogate = self.surrogate or Clipped(self.clip_low, self.clip_high)
        gain_BT = surrogate(self._log_ratio(scored), scored.logp_BT, advantage_BT)
        return gain_BT if self.truncate is None else gain_BT * self._correction(scored)

    def _log_ratio(self, scored: Any) -> Any:
        gap_BT = (scored.logp_BT - scored.old_BT) * scored.mask_BT
        if self.level == "token":
            return gap_BT
        sum_B1 = gap_BT.sum(-1, keepdim=True)
        return sum_B1 / scored.count_B[:, None] if self.level == "mean" else sum_B1

    def _correction(self, scored: Any) -> Any:
        if scored.drawn_BT is None:
            raise SelfloopError(
                f"GRPO(truncate={self.truncate}): the sampler's log-probs of some answers are not "
                "known (drawn greedily, or under another context); leave truncate out")
        return (scored.old_BT - scored.drawn_BT).exp().clamp(max=self.truncate)


# -- the papers' losses ---------------------------------------------------------------------------

def dapo(kl: float = 0.0) -> GRPO:
    """DAPO (arXiv 2503.14476, eq. 8): clip-higher and the token mean. Dynamic sampling is
    Chain(wave=...), overlong shaping organize.advantages.Overlong."""
    return GRPO(clip_high=0.28, kl=kl)


def dr_grpo(length: int, kl: float = 0.0) -> GRPO:
    """Dr. GRPO (arXiv 2503.20783, section 3.2): sums over a constant; with
    GroupAdvantage(scale=False)."""
    return GRPO(normalize="length", length=length, kl=kl)


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4, kl: float = 0.0) -> GRPO:
    """GSPO (arXiv 2507.18071, eq. 5 and 7): one ratio an answer, its geometric mean."""
    return GRPO(clip_low, clip_high, kl, "sequence", level="mean")


def cispo(most: float = 5.0) -> GRPO:
    """CISPO (arXiv 2506.13585, eq. 4): the ratio is capped and not differentiated."""
    return GRPO(surrogate=Capped(most))


def sapo(positive: float = 1.0, negative: float = 1.05) -> GRPO:
    """SAPO (arXiv 2511.20347): a soft gate in place of the clip, the mean over answers."""
    return GRPO(normalize="sequence", surrogate=Soft(positive, negative))


def reinforce(kl: float | Adaptive = 0.0, estimator: str = "k2", entropy: float = 0.0) -> GRPO:
    """REINFORCE with whatever baseline the advantages have, e.g. a running one
    (organize.advantages.RunningBaseline), and the KL in the loss."""
    return GRPO(kl=kl, estimator=estimator, entropy=entropy, normalize="sum", surrogate=Plain())


def rloo(kl: float = 0.0, clip_low: float = 0.2, clip_high: float = 0.2) -> GRPO:
    """RLOO (arXiv 2402.14740): one ratio for the whole answer, the KL in the reward with
    its own leave-one-out baseline; with organize.advantages.LeaveOneOut."""
    return GRPO(clip_low, clip_high, normalize="sequence", level="sum",
                reward_kl=RewardKL(kl, baseline="group") if kl else None)


def reinforce_pp(kl: float = 0.01, clip_high: float = 0.2) -> GRPO:
    """REINFORCE++ (arXiv 2501.03262): token rewards -kl k1, the outcome's reward at
    the end, returns to go, whitened over the update; with organize.advantages.AsScored."""
    return GRPO(clip_high=clip_high, reward_kl=RewardKL(kl, whiten=True))
