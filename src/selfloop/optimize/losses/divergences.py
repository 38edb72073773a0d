"""Divergences between two next-token distributions, given as log-probs [..., K]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Divergence = Callable[[Any, Any], Any]
"""(student, teacher) log-probs [..., K] -> [...]; what both give the K classes sums to 1."""


@dataclass(frozen=True)
class ForwardKL:
    """KL(teacher || student): the student covers all that the teacher does."""

    def __call__(self, student: Any, teacher: Any) -> Any:
        """Nats."""
        return (teacher.exp() * (teacher - student)).sum(-1)


@dataclass(frozen=True)
class BackwardKL:
    """KL(student || teacher): the student keeps to what the teacher likes."""

    def __call__(self, student: Any, teacher: Any) -> Any:
        """Nats."""
        return (student.exp() * (student - teacher)).sum(-1)


@dataclass(frozen=True)
class JSD:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student.

    The generalized Jensen-Shannon divergence (GKD, arXiv 2306.13649, eq. 1), 0 < beta < 1.
    """

    beta: float = 0.5

    def __call__(self, student: Any, teacher: Any) -> Any:
        """Nats, at most log 2."""
        import math

        import torch

        mixed = torch.logaddexp(student + math.log1p(-self.beta), teacher + math.log(self.beta))
        return self.beta * (teacher.exp() * (teacher - mixed)).sum(-1) \
            + (1 - self.beta) * (student.exp() * (student - mixed)).sum(-1)


def with_rest(logp: Any) -> Any:
    """Log-probs of some classes, and of all others together: [..., K] -> [..., K + 1].

    Bounded away from certainty, where the rest has no log-prob.
    """
    import torch

    total = torch.logsumexp(logp, -1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([logp, torch.log(-torch.expm1(total))], -1)


def among(logp: Any) -> Any:
    """Log-probs of some classes given that it is one of them."""
    return logp.log_softmax(-1)
