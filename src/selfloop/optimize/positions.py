"""Where answers begin to count: read off the positions that a model gave its prompt.

Models number positions in their own ways: in three dimensions with pictures as grids (M-RoPE,
Qwen2-VL, arXiv 2409.12191, section 2.1), from one instead of zero (PaliGemma). An answer goes on
one after the largest number of its prompt, in every dimension. Nothing is left to the state that
some models keep between calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Positions:
    """How C prompts of one length were numbered."""

    dimensions: int
    """0: one-dimensional; else the size of the leading axis that the model expects."""
    offset_C: torch.Tensor
    """An answer's first position minus the prompt's length."""


@contextmanager
def watched(model: Any) -> Iterator[list[Any]]:
    """The position ids that the decoder is given within, one entry a call (None: its default)."""
    seen: list[Any] = []
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    hook = decoder.register_forward_pre_hook(
        lambda module, args, named: seen.append(named.get("position_ids")), with_kwargs=True
    ) if decoder is not None else None
    try:
        yield seen
    finally:
        if hook is not None:
            hook.remove()


def positions(seen: Sequence[Any], prompts: int, length: int, device: Any) -> Positions:
    """From what was `watched` while `prompts` prompts of `length` tokens were run."""
    ids = seen[-1] if seen else None
    if ids is None:
        return Positions(0, torch.zeros(prompts, dtype=torch.long, device=device))
    three = ids.dim() == 3
    if three and ids.shape[0] == 4:  # plain numbers first, for masks only
        ids = ids[1:]
    top_C = ids.reshape(-1, ids.shape[-2], ids.shape[-1]).amax((0, 2))
    return Positions(3 if three else 0, (top_C + 1 - length).to(device).expand(prompts))


def joined(parts: Sequence[Positions]) -> Positions:
    """Of several batches of prompts, one after another."""
    return Positions(max(p.dimensions for p in parts), torch.cat([p.offset_C for p in parts]))


def spread(ids: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Position ids [B, T] as the model expects them."""
    return ids.expand(dimensions, *ids.shape) if dimensions else ids
