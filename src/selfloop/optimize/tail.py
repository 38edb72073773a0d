"""The decoder's last layer, run only where its result is read.

All tokens give it their keys and values. What else it would make of a prompt's tokens (but the
last, which predicts every answer's first) is read by nobody: beyond attention they are left out,
and places without a result hold zeros. transformers has no switch for this, so linear layers are
cut from outside. Which layer is the last and that nothing after it mixes tokens is a guess about
the model, and is compared with the plain path before it is trusted (prefix.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

_known: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()


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
    at, fork.seen = fork.read_from, False

    def shorten(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if fork.seen and args[0].dim() == 3 and args[0].shape[1] == fork.whole:
            return (args[0][:, at:], *args[1:])
        return None

    def lengthen(module: Any, args: tuple[Any, ...], out_1TD: Any) -> Any:
        if fork.seen and out_1TD.dim() == 3 and out_1TD.shape[1] == fork.whole - at:
            return torch.nn.functional.pad(out_1TD, (0, 0, at, 0))
        return None

    with ExitStack() as hooks:
        for module in fork.last if at else ():
            if isinstance(module, torch.nn.Linear):
                hooks.enter_context(module.register_forward_pre_hook(shorten))
                hooks.enter_context(module.register_forward_hook(lengthen))
        yield
