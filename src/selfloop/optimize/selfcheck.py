"""Is the shared path exact on this model? Log-probs and gradients beside the plain path's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from selfloop.optimize.layout import prompt_key
from selfloop.optimize.rows import Row
from selfloop.optimize.score import Answers
from selfloop.optimize.sharding import is_cut

TOLERANCE = {torch.float64: (1e-8, 1e-5), torch.float32: (1e-3, 1e-2)}
"""Largest |shared - plain| log-prob, and relative gradient difference, that pass the check.
In float32, linear attention alone differs by 2e-4 from itself in float64 (both paths do).
Narrower types: their own noise is of this size in a single token, so the mean is judged, below
`NARROW`, and gradients are not compared."""
NARROW = 0.05
"""Largest mean |shared - plain| log-prob in bfloat16 and float16. A token at a wrong place, or
under a wrong mask, is off by several tenths; rounding by a few hundredths."""


def difference(model: Any, shared: Answers, plain: Answers, rows: Sequence[Row]
               ) -> tuple[float, float, str]:
    """(log-prob gap in nats, relative gradient gap, what is wrong or ""), on a few rows.

    The log-prob gap is the largest; in narrow types the mean. The gradient gap is 0.0 where
    gradients are not compared.
    """
    dtype = runs_in(model)
    limit, limit_gradient = TOLERANCE.get(dtype, (NARROW, float("inf")))
    # Gradients of cut layers do not come back from a call of `grad`: log-probs must do.
    compare = limit_gradient < float("inf") and not any(map(is_cut, model.parameters()))
    learns = [p for p in model.parameters() if p.requires_grad] if compare else []
    chosen = few(rows)
    found, ours = measured(shared, chosen, learns)
    expected, theirs = measured(plain, chosen, learns)
    gaps_M = (found - expected).abs()
    worst = float(gaps_M.max() if dtype in TOLERANCE else gaps_M.mean()) if len(gaps_M) else 0.0
    gap = apart(ours, theirs)
    wrong = ""
    if not worst <= limit:  # also true for NaN
        wrong = f"log-probs differ from the plain path by {worst:.3g} > {limit:g}"
    elif not gap <= limit_gradient:
        wrong = (f"gradients differ from the plain path by {gap:.3g} > {limit_gradient:g} of "
                 "their norm")
    return worst, gap, wrong


def runs_in(model: Any) -> torch.dtype:
    """What the model multiplies in here and now: its weights' dtype, or autocast's."""
    first = next(p for p in model.parameters() if p.is_floating_point())
    mixed = torch.is_autocast_enabled(first.device.type)
    return torch.get_autocast_dtype(first.device.type) if mixed else first.dtype


def few(rows: Sequence[Row]) -> list[Row]:
    """Two answers to each of the shortest and the longest prompt: those that show most."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(prompt_key(row), []).append(row)
    ordered = sorted(groups.values(), key=lambda group: group[0].prompt)
    chosen = ordered if len(ordered) < 2 else [ordered[0], ordered[-1]]
    return [row for group in chosen
            for row in sorted(group, key=lambda r: (-r.reach, -r.count))[:2]]


def measured(path: Answers, rows: Sequence[Row], learns: list[torch.Tensor]
              ) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probs, and gradients of a fixed mixture of them."""
    with torch.set_grad_enabled(bool(learns)):
        logp_M = torch.cat(list(path(rows, entropy=False)[0]))
        if not learns:
            return logp_M.detach(), []
        mixture = torch.arange(1, 1 + len(logp_M), device=logp_M.device).sin()
        found = torch.autograd.grad((logp_M * mixture).sum(), learns, allow_unused=True)
    return logp_M.detach(), [torch.zeros_like(p) if g is None else g
                             for p, g in zip(learns, found, strict=True)]


def apart(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Relative distance of two gradients."""
    if not theirs:
        return 0.0
    gap = sum(float((a - b).double().pow(2).sum()) for a, b in zip(ours, theirs, strict=True))
    norm = sum(float(b.double().pow(2).sum()) for b in theirs)
    return float((gap / max(norm, 1e-30)) ** 0.5)
