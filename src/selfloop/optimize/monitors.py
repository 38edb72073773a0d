"""What is watched at every update, whatever the loss: no gradient, no say in the mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from selfloop.optimize.batch import Batch, Scored
from selfloop.optimize.sharding import norms

Sums = dict[str, tuple[float, float]]
"""name -> (sum over this micro-batch, how many it is a sum of)."""


@torch.no_grad()
def watched(loss: Any, batch: Batch) -> Sums:
    """Monitors of one micro-batch; those that its branches and the loss's needs allow.

    margin, chosen_gain (nats) and accuracy of pairs with a reference: h(chosen) - h(rejected),
    h(chosen), and the share of pairs in which the first is larger. A chosen_gain below 0 means
    that preferred answers become *less* likely. kl_reference (nats a token): k3 of answers against
    their reference. entropy_mean (nats a token). And what the loss itself offers by `watch`.
    """
    found: Sums = dict(loss.watch(batch)) if hasattr(loss, "watch") else {}
    chosen, rejected = (batch.branches.get(name) for name in ("chosen", "rejected"))
    if _referenced(chosen) and _referenced(rejected):
        assert chosen is not None and rejected is not None
        gap_B = chosen.ratio_B - rejected.ratio_B
        found["margin"] = _of(gap_B)
        found["chosen_gain"] = _of(chosen.ratio_B)
        found["accuracy"] = _of((gap_B > 0).to(gap_B.dtype))
    answer = batch.branches.get("answer")
    if answer is not None and _referenced(answer):
        d_BT = answer.reference_BT - answer.logp_BT
        found["kl_reference"] = _tokens(d_BT.exp() - d_BT - 1, answer)
    for scored in batch.branches.values():
        if scored.entropy_BT is not None:
            total, count = _tokens(scored.entropy_BT, scored)
            before = found.get("entropy_mean", (0.0, 0.0))
            found["entropy_mean"] = (before[0] + total, before[1] + count)
    return found


def gradient_norms(trainable: Mapping[str, Any], parts: Mapping[str, str]
                   ) -> tuple[torch.Tensor, dict[str, float]]:
    """The norm of the whole gradient, and of each part's (grad_norm_vision, ...).

    `parts`: parameter -> part; where there are none, as in a table, nothing is told apart. Parts
    that do not learn are left out, those that this update does not touch have norm 0.
    """
    touched = [name for name, p in trainable.items() if p.grad is not None]
    each_N = norms([trainable[name].grad for name in touched])
    found: dict[str, list[int]] = {parts[name]: [] for name in trainable if name in parts}
    for n, name in enumerate(touched):
        if name in parts:
            found[parts[name]].append(n)
    return torch.linalg.vector_norm(each_N), {
        f"grad_norm_{part}": float(torch.linalg.vector_norm(each_N[mine]))
        for part, mine in sorted(found.items())}


def added(sums: Sums, more: Sums) -> None:
    """Adds the sums of a micro-batch to those of the update."""
    for name, (total, count) in more.items():
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + total, before[1] + count)


def means(sums: Sums) -> dict[str, float]:
    """Sums as means; what was never counted is left out."""
    return {name: total / count for name, (total, count) in sums.items() if count}


def _referenced(scored: Scored | None) -> bool:
    return scored is not None and scored.ref_BT is not None


def _of(found_B: Any) -> tuple[float, float]:
    return float(found_B.sum()), float(len(found_B))


def _tokens(found_BT: Any, scored: Scored) -> tuple[float, float]:
    return float((found_BT * scored.mask_BT).sum()), float(scored.mask_BT.sum())
