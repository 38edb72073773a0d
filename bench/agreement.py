"""Both sides do the same work: equal log-probs, losses and gradients, or the bench fails."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOGP = {"float32": 1e-4, "bfloat16": 0.2}
GRADIENT = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True)
class Agreement:
    """Largest differences between the two sides."""

    logp: float
    loss: float
    gradient: float
    """|difference| / |gradient|, both as norms over all weights."""


class Disagreement(RuntimeError):
    """The sides do not compute the same: their times must not be compared."""


def compare(logps: tuple[torch.Tensor, torch.Tensor], losses: tuple[float, float],
            gradients: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]],
            dtype: str = "float32") -> Agreement:
    """The differences; raises Disagreement where one is too large."""
    ours, theirs = gradients
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise Disagreement(f"weights with a gradient on one side only: {', '.join(odd[:4])}")
    gap = sum(float((ours[n].double() - theirs[n].double()).square().sum()) for n in ours) ** 0.5
    size = sum(float(g.double().square().sum()) for g in theirs.values()) ** 0.5
    found = Agreement(float((logps[0] - logps[1]).abs().max()), abs(losses[0] - losses[1]),
                      gap / max(size, 1e-30))
    if not (found.logp <= LOGP[dtype] and found.loss <= LOGP[dtype]
            and found.gradient <= GRADIENT[dtype]):
        raise Disagreement(
            f"ours and TRL differ: log-probs by {found.logp:.2g}, loss by {found.loss:.2g}, "
            f"gradients by {found.gradient:.2g} of their norm")
    return found
