"""Attention of text to a picture blocked while decoding (primitive S6, for BDHS's negatives).

The block is laid over whatever mask the model makes for its decoder: transformers asks one function
for each mask, and here that function is wrapped while a hidden prompt is read or gone on with. So
windows, two-way attention within a picture and position ids stay the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from selfloop.optimize import masks
from selfloop.optimize.attend import NAME
from selfloop.optimize.checkpointing import configs_of
from selfloop.optimize.fork import FORK, stateful

_FUNCTIONS: Any = ALL_MASK_ATTENTION_FUNCTIONS
_MASKS = ("sdpa", "eager")
"""Implementations that take a mask for each pair of places."""


@dataclass(frozen=True)
class Blind:
    """Places of one prompt: the pictures' tokens, and those of them that text may not see."""

    pictures: tuple[int, ...]
    hidden: tuple[int, ...]


def cannot_hide(model: Any) -> str:
    """Why attention to pictures cannot be blocked; "" if it can."""
    text = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder-decoder models read pictures elsewhere"
    if getattr(text, "cross_attention_layers", None):
        return "pictures are read by cross-attention"
    if stateful(text):
        return "layers that keep a state instead of keys carry the picture along in it"
    return ""


@contextmanager
def hiding(model: Any, blinds: Sequence[Blind | None], length: int) -> Iterator[None]:
    """Within it, the decoder's queries that are text do not see the hidden keys of their row.

    `blinds`: one for each row of the batch (for a fork: for each answer), whose prompts have at
    most `length` tokens. Queries behind the prompt are text. Does nothing when all are None.

    Raises NotImplementedError when the model makes no mask that could be changed.
    """
    if not any(blinds):
        yield
        return
    configs = configs_of(model)
    before = [config._attn_implementation for config in configs]
    fitting = [name if name in (*_MASKS, NAME) else "sdpa" for name in before]
    veil = _Veil(blinds, length, configs)
    inner = {name: _FUNCTIONS[name] for name in set(fitting)}
    token = _VEIL.set(veil)
    try:
        for config, name in zip(configs, fitting, strict=True):
            config._attn_implementation_internal = name
        for name, function in inner.items():
            _FUNCTIONS[name] = _Veiled(function)
        yield
        if not veil.used:
            raise NotImplementedError("the decoder makes its attention masks in a way of its own")
    finally:
        for name in inner:
            del _FUNCTIONS[name]
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name
        _VEIL.reset(token)


class _Veil:
    """The hidden places of a batch as tensors."""

    def __init__(self, blinds: Sequence[Blind | None], length: int, configs: Sequence[Any]) -> None:
        self.length, self.configs, self.used = length, {id(c) for c in configs}, False
        self.hidden_NP = _marked([b.hidden if b else () for b in blinds], length)
        self.text_NP = ~_marked([b.pictures if b else () for b in blinds], length)

    def blocked(self, queries: int, keys: int, first: int, device: Any) -> torch.Tensor:
        """Bool [N, 1, Q, K]: text that would look at a hidden key. Keys begin at place `first`."""
        beyond = max(0, first + keys - self.length)
        hidden_NK = torch.nn.functional.pad(self.hidden_NP, (0, beyond))[:, first:first + keys]
        if queries == self.length:  # the prompts themselves
            text_NQ = self.text_NP
        else:
            text_NQ = torch.ones(len(hidden_NK), queries, dtype=torch.bool)
        return (text_NQ[:, :, None] & hidden_NK[:, None, :])[:, None].to(device)


_VEIL: ContextVar[_Veil | None] = ContextVar("selfloop_veil", default=None)


@dataclass(frozen=True)
class _Veiled:
    """A mask function of transformers with the veil over what it gives."""

    inner: Any

    def __call__(self, *args: Any, **asked: Any) -> Any:
        veil = _VEIL.get()
        if veil is None or id(asked.get("config")) not in veil.configs:
            return self.inner(*args, **asked)  # the vision tower's, or another thread's
        veil.used = True
        if FORK.get() is not None:
            return _of_fork(self.inner(*args, **asked), veil).carried()
        asked |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        mask_N1QK = self.inner(*args, **asked)
        queries, keys = mask_N1QK.shape[-2:]
        block = veil.blocked(queries, keys, int(asked.get("kv_offset", 0)), mask_N1QK.device)
        if mask_N1QK.dtype == torch.bool:
            return mask_N1QK & ~block
        return mask_N1QK.masked_fill(block, torch.finfo(mask_N1QK.dtype).min)


def _of_fork(carrier: torch.Tensor | None, veil: _Veil) -> masks.Mask:
    """The mask of a fork's answers, one token each."""
    fork: Any = FORK.get()
    mask = masks.of(carrier) or masks.whole(fork)
    return mask.without(veil.blocked(1, fork.longest, 0, fork.device)[:, 0, 0])


def _marked(places: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """Bool [N, length], True at each row's places."""
    marked_NP = torch.zeros(len(places), length, dtype=torch.bool)
    for row, mine in enumerate(places):
        marked_NP[row, list(mine)] = True
    return marked_NP
