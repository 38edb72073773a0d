"""A vision tower's windows attended in one call instead of one after another.

Towers that are told where pictures and windows end (`cu_seqlens`: Qwen-VL's and those made after
them) attend to each by itself: without a flash-attention package that is one kernel call a window,
a picture of 48 x 48 patches 36 a layer. Windows of one length are a batch. transformers' code for
such packages hands over all of them at once; here that call ends in torch's own kernel.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from selfloop.optimize.memory import out_of_memory

NAME = "selfloop_flash_windows"
"""Within a tower's attention layer; with "flash" in it, the layer hands over all windows."""
NEAR = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest difference, relative to the largest number, at which a layer is trusted; others: 0.05."""


class Windowed:
    """Mixed into a layer's class: its windows in one call, once that has given the same."""

    config: Any
    training: bool
    _same: bool | None = None
    """Of the class: whether it has been compared, and what was found."""
    _why: str = ""
    """What stands in the way."""

    def forward(self, *args: Any, **named: Any) -> Any:
        """As the layer's own, up to the order of sums."""
        kind, cu_seqlens = type(self), named.get("cu_seqlens")
        run: Any = super().forward  # type: ignore[misc]
        if kind._same is False or self.training or cu_seqlens is None or len(cu_seqlens) <= 2 \
                or self.config._attn_implementation != "sdpa":
            return run(*args, **named)
        if kind._same is None:
            kind._same = self._agree(run, args, named)
        # From the first call on, so that a run that was resumed does as one that was not.
        return self._at_once(run, args, named) if kind._same else run(*args, **named)

    def _at_once(self, run: Any, args: Any, named: Any) -> Any:
        before = self.config._attn_implementation_internal
        self.config._attn_implementation_internal = NAME
        try:
            return run(*args, **named)
        finally:
            self.config._attn_implementation_internal = before

    @torch.no_grad()
    def _agree(self, run: Any, args: Any, named: Any) -> bool:
        """Whether both ways give the same; a layer that cannot be run so is left as it is."""
        try:
            found, expected = self._at_once(run, args, named), run(*args, **named)
        except Exception as error:  # whatever it is, the layer's own code is right
            if out_of_memory(error):
                raise
            first = (str(error).strip().splitlines() or [""])[0][:200]
            type(self)._why = f"{type(error).__name__}: {first}"
            return False
        a, b = (x[0] if isinstance(x, tuple) else x for x in (found, expected))
        near = NEAR.get(b.dtype, 0.05)
        same = a.shape == b.shape and bool((a - b).abs().max() <= near * b.abs().max())
        type(self)._why = "" if same else "that gives something else"
        return same


def at_once(net: torch.nn.Module) -> None:
    """Changes the class of every layer that may be run so. Names, weights and files stay."""
    made: dict[type, type] = {}
    for module in net.modules():
        kind = type(module)
        if not issubclass(kind, Windowed) and hasattr(module, "config") \
                and "cu_seqlens" in inspect.signature(kind.forward).parameters \
                and not any("cu_seqlens" in inspect.signature(type(m).forward).parameters
                            for m in module.children()):
            if kind not in made:
                made[kind] = type(kind.__name__, (Windowed, kind), {"__module__": kind.__module__})
            module.__class__ = made[kind]


def says(net: torch.nn.Module) -> str:
    """How each kind of layer attends to its windows, as `selfloop doctor` tells it; "" where no
    tower has any."""
    kinds = {type(m): None for m in net.modules() if isinstance(m, Windowed)}
    return ", ".join(
        f"{kind.__name__}: " + ("in one call" if kind._same else "not met yet"
                                if kind._same is None else f"one after another ({kind._why})")
        for kind in kinds)


def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *,
              cu_seq_lens_q: torch.Tensor, scaling: float | None = None, **_: Any
              ) -> tuple[torch.Tensor, None]:
    """The function that transformers calls: query [1, H, S, D] -> [1, S, H, D]."""
    if attention_mask is not None:
        raise NotImplementedError("windows under a mask")
    lengths_W = cu_seq_lens_q.diff()
    places_S, lengths = _by_length(lengths_W)
    parts = [x.squeeze(0).transpose(0, 1) for x in (query, key, value)]  # [S, H, D]
    if places_S is not None:
        parts = [x[places_S] for x in parts]
    at, found = 0, []
    for length, windows in lengths:
        rows = slice(at, at + length * windows)
        q, k, v = (x[rows].unflatten(0, (windows, length)).transpose(1, 2) for x in parts)
        out, _none = sdpa_attention_forward(module, q, k, v, None, scaling=scaling,
                                            is_causal=False)
        found.append(out.flatten(0, 1))
        at = rows.stop
    out_SHD = found[0] if len(found) == 1 else torch.cat(found)
    if places_S is not None:
        out_SHD = out_SHD[places_S.argsort()]
    return out_SHD[None], None


def _by_length(lengths_W: torch.Tensor) -> tuple[torch.Tensor | None, list[tuple[int, int]]]:
    """Where the patches of windows in order of length stand (None: they are in order), and
    (length, windows) of each length."""
    lengths = lengths_W.tolist()
    kinds = [(length, lengths.count(length)) for length in sorted(set(lengths)) if length]
    if len(kinds) == 1:
        return None, kinds
    of_S = lengths_W.repeat_interleave(lengths_W)
    return of_S.argsort(stable=True), kinds


AttentionInterface.register(NAME, attention)
