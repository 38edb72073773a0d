"""Link functions: from a margin z (how much better is preferred) to a loss. Tensors in and out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from selfloop.roles import SelfloopError

Link = Callable[[Any], Any]
"""Margins z of any shape -> losses of the same shape."""


@dataclass(frozen=True)
class Sigmoid:
    """-(1 - e) log sigma(z) - e log sigma(-z) (DPO, arXiv 2305.18290, eq. 7; e: conservative DPO).

    `smoothing` e is the share of pairs believed to be the wrong way round.
    """

    smoothing: float = 0.0

    def __call__(self, z: Any) -> Any:
        """Losses, log 2 at z = 0."""
        from torch.nn.functional import logsigmoid

        right, e = logsigmoid(z), self.smoothing
        return -(1 - e) * right - e * logsigmoid(-z) if e else -right


@dataclass(frozen=True)
class Robust:
    """Unbiased under pairs flipped with probability e (robust DPO, arXiv 2403.00409).

    [-(1 - e) log sigma(z) + e log sigma(-z)] / (1 - 2 e).
    """

    flipped: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.flipped < 0.5:
            raise SelfloopError(f"Robust(flipped={self.flipped}): must be in [0, 0.5)")

    def __call__(self, z: Any) -> Any:
        """Losses."""
        from torch.nn.functional import logsigmoid

        e = self.flipped
        return (-(1 - e) * logsigmoid(z) + e * logsigmoid(-z)) / (1 - 2 * e)


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 - z) (SLiC-HF, arXiv 2305.10425; RSO, arXiv 2309.06657)."""

    def __call__(self, z: Any) -> Any:
        """Losses; no gradient beyond z = 1."""
        return (1 - z).relu()


@dataclass(frozen=True)
class Square:
    """(z - 1 / (2 tau))^2 (IPO, arXiv 2310.12036, eq. 17)."""

    tau: float = 0.1

    def __call__(self, z: Any) -> Any:
        """Losses, least at z = 1 / (2 tau)."""
        return (z - 1 / (2 * self.tau)) ** 2


@dataclass(frozen=True)
class Flat:
    """1 - sigma(z): the prospect-theoretic value of KTO and APO; bounded, unlike -log sigma."""

    def __call__(self, z: Any) -> Any:
        """Losses in (0, 1)."""
        return 1 - z.sigmoid()


@dataclass(frozen=True)
class Linear:
    """-z: a penalty that grows without bound (AMP, arXiv 2405.11165, released code)."""

    def __call__(self, z: Any) -> Any:
        """Losses."""
        return -z
