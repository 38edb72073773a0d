"""The decoder's last layer, run only where its result is read.

All tokens give it their keys and values. What else it would make of a prompt's tokens (but the
last, which predicts every answer's first) is read by nobody: beyond attention they are left out,
and places without a result hold zeros. transformers has no switch for this, so linear layers are
cut from outside. Which layer is the last and that nothing after it mixes tokens is a guess about
the model, and is compared with the plain path before it is trusted (prefix.py, hf_decode.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch

from selfloop.optimize.fork import PrefixCache, PrefixKeys

_known: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()
_whole: WeakSet[Any] = WeakSet()
"""Models whose draws differ where their prompts are cut."""


def last_layer(model: Any) -> list[Any]:
    """The modules of the decoder's last layer; none where its layers cannot be told."""
    if model not in _known:
        decoder = model.get_decoder()
        count = model.config.get_text_config(decoder=True).num_hidden_layers
        stacks = [child for child in decoder.children()
                  if isinstance(child, torch.nn.ModuleList) and len(child) == count]
        _known[model] = list(stacks[0][-1].modules()) if len(stacks) == 1 else []
    return _known[model]


@contextmanager
def cut(fork: Any) -> Iterator[None]:
    """Within it, linear layers of a together.Together's last layer leave out what nobody reads,
    once that layer's attention has been (`seen`). A layer that is recomputed enters it anew."""
    fork.seen = False
    with _shortened(fork.last if fork.read_from else (), fork.whole, fork.read_from,
                    lambda: fork.seen):
        yield


@contextmanager
def prompts(model: Any, cache: PrefixCache, length: int) -> Iterator[None]:
    """Within it, prompts of `length` tokens are run into an empty cache to be gone on from: once
    the last layer has left its keys there, its linear layers run the last token alone.

    Gradients gain nothing from it, so they are run whole (and may be recomputed). Draws are
    compared with the plain path at first use; a model that differs is run whole (`give_up`).
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    own = len(cache.layers) == count and isinstance(cache.layers[-1], PrefixKeys)
    if not own or length < 2 or model in _whole or torch.is_grad_enabled():
        yield
        return
    keys = cache.layers[-1]
    with _shortened(last_layer(model), length, length - 1, lambda: keys.keys is not None):
        yield


def give_up(model: Any) -> bool:
    """Run this model's prompts whole from now on; whether they were not before."""
    if model in _whole or not last_layer(model):
        return False
    _whole.add(model)
    return True


@contextmanager
def _shortened(modules: Sequence[Any], whole: int, at: int, seen: Callable[[], bool]
               ) -> Iterator[None]:
    """Linear layers run from place `at` of `whole` on, wherever `seen` says so."""
    def shorten(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if seen() and args[0].dim() == 3 and args[0].shape[1] == whole:
            return (args[0][:, at:], *args[1:])
        return None

    def lengthen(module: Any, args: tuple[Any, ...], out_BTD: Any) -> Any:
        if seen() and out_BTD.dim() == 3 and out_BTD.shape[1] == whole - at:
            return torch.nn.functional.pad(out_BTD, (0, 0, at, 0))
        return None

    with ExitStack() as hooks:
        for module in modules:
            if isinstance(module, torch.nn.Linear):
                hooks.enter_context(module.register_forward_pre_hook(shorten))
                hooks.enter_context(module.register_forward_hook(lengthen))
        yield
