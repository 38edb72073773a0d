"""TRL's head at its best on a CPU.

TRL 1.16 computes log-probs in tiles by a "fused" head. Where there is no Triton it runs that head
over every position, prompt and pictures included, recomputes it in the backward pass, and measures
entropy, mean logits and top-1 hits for its logs in plain operations: as slow as a head can be.
On GPUs it keeps answer positions only. Here it is replaced by the fastest plain form of the same
quantity: answer positions only, logits kept for the backward pass, nothing for the logs. It makes
TRL faster than its users have it on a CPU; comparing with less would flatter us.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

TILE = 4096
"""Positions at a time, TRL's own number; more than one tile are recomputed, as TRL does."""


def put_lean_head(model: Any, temperature: float = 1.0) -> None:
    """Answer `model(..., labels=, fused_lm_head=True)` with log-probs of labelled positions."""
    shipped = model.forward

    @functools.wraps(type(model).forward)
    def forward(*args: Any, fused_lm_head: bool = False, labels: Any = None, **more: Any) -> Any:
        if not fused_lm_head:
            return shipped(*args, **more) if labels is None \
                else shipped(*args, labels=labels, **more)
        from trl.trainer.utils import FusedCausalLMOutput

        more["use_cache"] = False
        hidden_BTD = model.base_model(*args, **more).last_hidden_state[:, :-1]
        labels_BT = labels[:, 1:]
        mask_BT = labels_BT != -100
        logp_M = _logps(hidden_BTD[mask_BT], labels_BT[mask_BT],
                        model.get_output_embeddings().weight, temperature)
        logp_BT = logp_M.new_zeros(mask_BT.shape).masked_scatter(mask_BT, logp_M)
        nothing = torch.zeros_like(logp_BT)
        return FusedCausalLMOutput(
            loss=-logp_M.mean(), log_probs=logp_BT, entropy=nothing, mean_logits=nothing,
            is_top1=nothing.bool(), label_mask=mask_BT)

    model.forward = forward


def _logps(hidden_MD: Any, ids_M: Any, weight_VD: Any, temperature: float) -> torch.Tensor:
    def tile(hidden: Any, ids: Any) -> torch.Tensor:
        logits = torch.nn.functional.linear(hidden, weight_VD)
        logits = logits if temperature == 1.0 else logits / temperature
        return -torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")

    parts = list(zip(hidden_MD.split(TILE), ids_M.split(TILE), strict=True))
    if len(parts) == 1:
        return tile(*parts[0])
    return torch.cat([checkpoint(tile, *part, use_reentrant=False) for part in parts])
