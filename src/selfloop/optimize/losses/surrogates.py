"""What a policy gradient ascends, token by token, and the estimators of the divergence it pays.

A surrogate maps (log r [B,T] or [B,1], log pi [B,T], A [B,T]) to a gain [B,T]; r = pi / pi_old.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Surrogate = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Clipped:
    """min(r A, clip(r, 1 - low, 1 + high) A) (PPO, arXiv 1707.06347, eq. 7).

    low < high is DAPO's clip-higher (arXiv 2503.14476, eq. 8). `dual` > 1 bounds the gain below by
    dual A for negative A (arXiv 1912.09729).
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __call__(self, log_ratio: Any, logp: Any, advantage: Any) -> Any:
        """Gains."""
        import torch

        ratio = torch.exp(log_ratio)
        gain = torch.minimum(ratio * advantage,
                             ratio.clamp(1 - self.low, 1 + self.high) * advantage)
        if self.dual is None:
            return gain
        return torch.where(advantage < 0, torch.maximum(gain, self.dual * advantage), gain)


@dataclass(frozen=True)
class Capped:
    """stop[min(r, most)] A log pi: no token loses its gradient (CISPO, arXiv 2506.13585, eq. 4)."""

    most: float = 5.0

    def __call__(self, log_ratio: Any, logp: Any, advantage: Any) -> Any:
        """Gains."""
        return log_ratio.exp().clamp(max=self.most).detach() * advantage * logp


@dataclass(frozen=True)
class Soft:
    """4 / tau sigma(tau (r - 1)) A: a smooth gate (SAPO, arXiv 2511.20347).

    tau is `positive` where A > 0, else `negative`; the larger, the sooner a token fades out.
    """

    positive: float = 1.0
    negative: float = 1.05

    def __call__(self, log_ratio: Any, logp: Any, advantage: Any) -> Any:
        """Gains."""
        import torch

        tau = torch.where(advantage > 0, self.positive, self.negative).to(log_ratio.dtype)
        return torch.sigmoid(tau * (log_ratio.exp() - 1)) * 4 / tau * advantage


@dataclass(frozen=True)
class Plain:
    """A log pi: REINFORCE (Williams 1992); right only for answers of the current policy."""

    def __call__(self, log_ratio: Any, logp: Any, advantage: Any) -> Any:
        """Gains."""
        return advantage * logp


# -- estimators of KL(pi || q) from tokens of pi, d = log q - log pi (Schulman 2020) --------------

def k1(d: Any) -> Any:
    """-d: unbiased; as a loss its gradient is zero on average, so it belongs into the reward."""
    return -d


def k2(d: Any) -> Any:
    """d^2 / 2: biased in value; as a loss its gradient is that of the KL."""
    return d ** 2 / 2


def k3(d: Any) -> Any:
    """e^d - d - 1: unbiased, never negative (GRPO, arXiv 2402.03300, eq. 4)."""
    return d.exp() - d - 1


ESTIMATORS: dict[str, Callable[[Any], Any]] = {"k1": k1, "k2": k2, "k3": k3}


@dataclass(frozen=True)
class Adaptive:
    """A coefficient that holds the KL near a target: c <- c exp(rate (KL - target) / target).

    EvoLMM (arXiv 2511.16672, released code), in the manner of arXiv 1909.08593.
    `rate` bounds nothing by itself; `low` and `high` do.
    """

    start: float = 1e-3
    target: float = 0.02
    rate: float = 0.1
    low: float = 1e-8
    high: float = 100.0

    def after(self, now: float, kl: float) -> float:
        """The next coefficient."""
        import math

        change = math.exp(min(50.0, self.rate * (kl - self.target) / self.target))
        return min(self.high, max(self.low, now * change))


def coefficient(kl: float | Adaptive, state: Mapping[str, float]) -> float:
    """The coefficient now."""
    return state.get("kl", kl.start) if isinstance(kl, Adaptive) else kl
