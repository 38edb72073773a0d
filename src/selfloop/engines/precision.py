"""Mixed precision: weights, gradients and moments in float32, matrix products in bfloat16.

Micikevicius et al. 2018, arXiv 1710.03740, without loss scaling, which bfloat16's range does not
need. Log-probs are taken from the logits in float32, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from selfloop.roles import SelfloopError


def must_mix(compute: str | None, dtype: str) -> str | None:
    """`compute`, where it goes with weights of this dtype. Raises SelfloopError otherwise."""
    if compute is None:
        return None
    if compute != "bfloat16":
        raise SelfloopError(f"compute={compute!r}: expected bfloat16, or leave it out (float16 "
                            "would need its losses scaled)")
    if dtype != "float32":
        raise SelfloopError(f"compute: bfloat16 is for float32 weights, but dtype is {dtype}: "
                            "leave out one of them")
    return compute


def computing(compute: str | None, device: torch.device) -> AbstractContextManager[Any]:
    """Where a model runs: as its weights are, or with products in `compute`."""
    if compute is None:
        return nullcontext()
    # A weight that was cast under no_grad would be kept for the pass that needs its gradient;
    # where nothing asks for gradients it is kept, since a sampler uses it at every token.
    return torch.autocast(device.type, getattr(torch, compute),
                          cache_enabled=not torch.is_grad_enabled())


@contextmanager
def differentiable() -> Iterator[None]:
    """Where a caller is in inference mode: no_grad instead. What is made in inference mode can
    never be differentiated, which features that are kept, and the self-check's gradients, must be.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
