"""Gradient checkpointing that keeps the shared prefix exact.

transformers' own switch drops the cache, and with it the prefix. Here each layer is recomputed
(non-reentrant) together with the fork it was run under, over caches that are idempotent: a second
run writes and reads the same keys (optimize/fork.py). Chen et al. 2016, arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from selfloop.optimize.attend import NAME
from selfloop.optimize.fork import FORK, Fork, forking
from selfloop.optimize.tail import cut


@contextmanager
def answering(model: Any, fork: Fork | None) -> Iterator[None]:
    """The decoder's attention belongs to `fork` (None: it is what it was)."""
    if fork is None:
        yield
        return
    configs = configs_of(model)
    before = [config._attn_implementation for config in configs]
    with forking(fork), cut(fork) if fork.inside else nullcontext():
        try:
            for config in configs:
                config._attn_implementation_internal = NAME
            yield
        finally:
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation_internal = name


_known: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()


def configs_of(model: Any) -> list[Any]:
    """The configurations that the decoder's layers look at; found once, used at every token."""
    if model not in _known:
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
        _known[model] = list({id(m.config): m.config for m in decoder.modules()
                              if hasattr(m, "config")}.values())
    return _known[model]


def enable(model: Any) -> None:
    """Recompute every layer that transformers marks as fit for it, whenever gradients are on."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.forward = _Again(model, module)


class _Again:
    """A layer's forward pass that is run a second time instead of being remembered."""

    def __init__(self, model: Any, module: Any) -> None:
        self.model, self.module, self.inner = model, module, module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.inner(*args, **kwargs)
        fork = FORK.get()

        def run(*again: Any) -> Any:
            with answering(self.model, fork):  # the backward pass has left it long since
                return self.inner(*again, **kwargs)

        # Only a layer that drops out at random must draw the same masks again.
        return checkpoint(run, *args, use_reentrant=False,
                          preserve_rng_state=self.module.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copied layer has its own forward pass, which remembers."""
        return MethodType(type(self.module).forward, memo.get(id(self.module), self.module))
