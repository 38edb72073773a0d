"""Attention of answers to their own tokens and to a prompt that they share.

Each answer token sees two sets of keys: its prompt's, kept once for all answers, and its own
answer's up to itself. The two softmaxes are computed apart and merged by their log-sum-exps,
which is exact (Juravsky et al., Hydragen, arXiv 2402.05099, section 3.1); all queries of a prompt
go through one matrix product with its keys. In the backward pass each part is given the merged
output and log-sum-exp, as in ring attention (Liu et al., arXiv 2310.01889): no score matrix is
kept. Where a soft cap rules the fused kernels (optimize/kernels.py) out, the same two parts are
computed from plain operations.

Shapes: T answer tokens end to end, N answers of at most R, H heads over K key heads, D channels,
C prompts of P tokens in one block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from selfloop.optimize import masks
from selfloop.optimize.fork import FORK, Fork, Padding
from selfloop.optimize.kernels import Kernel, kernel_for

NAME = "selfloop_fork"
"""What the decoder's attention is called while answers run."""
_FEW = 192
"""Tokens of a prompt and its answers up to which one masked kernel beats three smaller ones."""


def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *,
              scaling: float | None = None, softcap: float | None = None, **more: Any
              ) -> tuple[torch.Tensor, None]:
    """The function that transformers calls: query [B, H, Q, D] -> [B, Q, H, D]."""
    fork = FORK.get()
    lender: Any = getattr(key, "lent_by", None)
    if fork is None or (lender is None and not fork.inside):
        raise NotImplementedError("this layer's keys did not pass the cache unchanged")
    refused = [name for name in ("s_aux", "sinks", "position_bias") if more.get(name) is not None]
    if refused:
        raise NotImplementedError(f"attention with {refused[0]} is not shared")
    if more.get("dropout"):
        raise NotImplementedError("attention that drops out at random is not shared")
    # Under autocast these were rotated in float32, and values projected in a narrow type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    if fork.inside:
        if attention_mask is not None or softcap:
            raise NotImplementedError("not causality alone")
        return _whole(module, query, key, value, fork, scale), None
    alone = query.shape[0] > 1  # answers as rows of a batch, or all in one row
    flat = (query, key, value)
    flat_THD, k_TKD, v_TKD = [fork.own.unpad(x.transpose(1, 2)) for x in flat] if alone \
        else [x.squeeze(0).transpose(0, 1) for x in flat]
    if hasattr(lender, "attend"):  # decoding brings its own
        out_THD = lender.attend(flat_THD, k_TKD, v_TKD, fork, scale, attention_mask, softcap)
    else:
        lent = [(k.to(v.dtype), v) for k, v in lender.lent]
        out_THD = attend(flat_THD, k_TKD, v_TKD, fork, lent, scale, masks.of(attention_mask),
                         softcap)
    return fork.own.pad(out_THD) if alone else out_THD[None], None


def _whole(module: Any, query: Any, key: Any, value: Any, fork: Any, scale: float) -> Any:
    """[1, P + T, H, D]: one prompt's attention to itself, and its answers' to it and themselves.

    In the last layer zeros where nobody reads it (tail.py).
    """
    p, at, more = fork.longest, 0, {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    if query.shape[0] > 1 or query.shape[2] != fork.whole:
        raise NotImplementedError("a layer that does not see the prompt and its answers in a row")
    if any(module is one for one in fork.last):
        fork.seen, at = True, fork.read_from
    if fork.whole <= _FEW:
        out = F.scaled_dot_product_attention(query[:, :, at:], key, value,
                                             attn_mask=fork.hidden_SS(query.dtype)[at:], **more)
        return _behind(out.transpose(1, 2), at)
    # Split, not sliced: the gradient of a slice is as large as the whole, and mostly zeros.
    (key_1KPD, k_1KTD), (value_1KPD, v_1KTD) = (x.split([p, fork.tokens], 2) for x in (key, value))
    _, query_1HPD, q_1HTD = query.split([at, p - at, fork.tokens], 2)
    first = F.scaled_dot_product_attention(query_1HPD, key_1KPD, value_1KPD, is_causal=not at,
                                           **more)
    q_THD, k_TKD, v_TKD = (x.squeeze(0).transpose(0, 1) for x in (q_1HTD, k_1KTD, v_1KTD))
    rest_THD = attend(q_THD, k_TKD, v_TKD, fork, [(key_1KPD, value_1KPD)], scale, None, None)
    return _behind(torch.cat([first.transpose(1, 2), rest_THD[None]], 1), at)


def _behind(out_1SHD: Any, at: int) -> Any:
    """The same after `at` places of zeros."""
    return F.pad(out_1SHD, (0, 0, 0, 0, at, 0)) if at else out_1SHD


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, masks.mask)


def attend(q_THD: Any, k_TKD: Any, v_TKD: Any, fork: Fork, lent: Any, scale: float,
           mask: masks.Mask | None, softcap: float | None) -> Any:
    """[T, H, D]: merged attention to the prompts' keys and to the answers' own."""
    near = kernel_for(q_THD, v_TKD, mask is not None and mask.own_NMS is not None)
    away = kernel_for(q_THD, v_TKD, mask is not None)
    if near is None or away is None or softcap:
        return _plain(q_THD, k_TKD, v_TKD, fork, lent, scale, mask, softcap)
    flat = [x for pair in lent for x in pair]
    return _Fused.apply(q_THD, k_TKD, v_TKD, fork, scale, mask, (near, away), *flat)


# -- layouts ------------------------------------------------------------------------------------

def fold(x_CMHD: Any, heads: int) -> Any:
    """[C, M, H, D] -> [C, K, G M, D]: the G query heads of a key head stand in one row with it."""
    c, m, h, d = x_CMHD.shape
    return x_CMHD.view(c, m, heads, h // heads, d).permute(0, 2, 3, 1, 4).reshape(c, heads, -1, d)


def unfold(x_CKQD: Any, most: int) -> Any:
    """[C, K, G M, D] -> [C, M, H, D]."""
    c, k, q, d = x_CKQD.shape
    return x_CKQD.view(c, k, q // most, most, d).permute(0, 3, 1, 2, 4).reshape(c, most, -1, d)


def _rows(x_THD: Any, padding: Padding, heads: int = 0) -> Any:
    """[T, K, D] -> [N, H, M, D], key heads repeated to `heads`."""
    x_NKMD = padding.pad(x_THD).transpose(1, 2)
    times = heads // x_NKMD.shape[1] if heads else 1
    return x_NKMD if times == 1 else x_NKMD.repeat_interleave(times, dim=1)


def _unrows(x_NHMD: Any, padding: Padding) -> Any:
    """[N, H, M, D] -> [T, H, D]."""
    return padding.unpad(x_NHMD.transpose(1, 2))


def merge(out_THD: Any, lse_TH: Any, far_THD: Any, far_TH: Any) -> tuple[Any, Any]:
    """Two softmaxes over separate keys as one over all: (output, log-sum-exp)."""
    lse_Th = torch.logaddexp(lse_TH, far_TH)
    near_TH1 = (lse_TH - lse_Th).exp()[..., None].to(out_THD.dtype)
    away_TH1 = (far_TH - lse_Th).exp()[..., None].to(out_THD.dtype)
    return out_THD * near_TH1 + far_THD * away_TH1, lse_Th


# -- the fused kernel ---------------------------------------------------------------------------

_Function: Any = torch.autograd.Function


class _Fused(_Function):  # type: ignore[misc]
    """Two runs of fused kernels, merged."""

    @staticmethod
    def forward(ctx: Any, q_THD: Any, k_TKD: Any, v_TKD: Any, fork: Fork, scale: float,
                mask: masks.Mask | None, kernels: tuple[Kernel, Kernel], *lent: Any) -> Any:
        heads, own = q_THD.shape[1], fork.own
        near, near_NHM = kernels[0].forward(
            _rows(q_THD, own), _rows(k_TKD, own, heads), _rows(v_TKD, own, heads), True, scale,
            mask and mask.own(q_THD.dtype))
        pairs = list(zip(lent[::2], lent[1::2], strict=True))
        out_THD, lse_TH = merge(_unrows(near, own), _unrows(near_NHM[..., None], own)[..., 0],
                                *far(q_THD, fork, pairs, scale, mask, kernel=kernels[1]))
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, out_THD, lse_TH, *lent)
        ctx.fork, ctx.scale, ctx.mask, ctx.kernels = fork, scale, mask, kernels
        return out_THD

    @staticmethod
    def backward(ctx: Any, grad_THD: Any) -> Any:
        q_THD, k_TKD, v_TKD, out_THD, lse_TH, *lent = ctx.saved_tensors
        fork, scale, mask = ctx.fork, ctx.scale, ctx.mask
        heads, kinds, own = q_THD.shape[1], k_TKD.shape[1], fork.own
        # Padding: no gradient comes in, and exp(score - inf) = 0 keeps it out of every sum.
        near, k, v = ctx.kernels[0].backward(
            own.fill(own.pad(grad_THD), 0.0).transpose(1, 2), _rows(q_THD, own),
            _rows(k_TKD, own, heads), _rows(v_TKD, own, heads), _rows(out_THD, own),
            own.fill(own.pad(lse_TH), torch.inf).transpose(1, 2), True, scale,
            mask and mask.own(q_THD.dtype))
        away, rest = [], []
        parts = (masks.stretches(fork, x) for x in (q_THD, grad_THD, out_THD, lse_TH))
        for i, (padding, *part) in enumerate(zip(fork.shared, *parts, strict=True)):
            q_b, grad_b, out_b, lse_b = (padding.pad(x) for x in part)
            lse_b = padding.fill(lse_b, torch.inf)[..., None]
            first, added = _far_mask(mask, i, heads // kinds, q_THD.dtype)
            key, value = lent[2 * i:2 * i + 2]
            q, *pair = ctx.kernels[1].backward(
                fold(padding.fill(grad_b, 0.0), kinds), fold(q_b, kinds), key[:, :, first:],
                value[:, :, first:], fold(out_b, kinds), fold(lse_b, kinds)[..., 0], False, scale,
                added)
            away.append(padding.unpad(unfold(q, padding.most)))
            rest += [F.pad(x, (0, 0, first, 0)) if first else x for x in pair]
        return (_unrows(near, own) + torch.cat(away), _unrows(_gathered(k, kinds), own),
                _unrows(_gathered(v, kinds), own), None, None, None, None, *rest)


def _gathered(x_NHMD: Any, heads: int) -> Any:
    """Gradients of repeated key heads, summed."""
    n, h, m, d = x_NHMD.shape
    return x_NHMD if h == heads else x_NHMD.view(n, heads, h // heads, m, d).sum(2)


# -- plain operations ---------------------------------------------------------------------------

def _plain(q_THD: Any, k_TKD: Any, v_TKD: Any, fork: Fork, lent: Any, scale: float,
           mask: masks.Mask | None, softcap: float | None) -> Any:
    heads, own = q_THD.shape[1], fork.own
    added = None if mask is None else mask.own(q_THD.dtype)
    if added is None:
        added = masks.causality(own.most, q_THD)
    out, lse = part(_rows(q_THD, own), _rows(k_TKD, own, heads), _rows(v_TKD, own, heads), scale,
                    added, softcap)
    return merge(_unrows(out, own), _unrows(lse[..., None], own)[..., 0],
                 *far(q_THD, fork, lent, scale, mask, softcap))[0]


def far(q_THD: Any, fork: Fork, lent: Any, scale: float, mask: masks.Mask | None = None,
        softcap: float | None = None, kernel: Kernel | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to the prompts alone: (output [T, H, D], log-sum-exp [T, H])."""
    outs, lses = [], []
    for i, (padding, (key, value), q_b) in enumerate(zip(
            fork.shared, lent, masks.stretches(fork, q_THD), strict=True)):
        kinds = key.shape[1]
        first, added = _far_mask(mask, i, q_THD.shape[1] // kinds, q_THD.dtype)
        q_CKQD, key, value = fold(padding.pad(q_b), kinds), key[:, :, first:], value[:, :, first:]
        if kernel is not None:
            out, lse = kernel.forward(q_CKQD, key, value, False, scale, added)
        else:
            out, lse = part(q_CKQD, key, value, scale, added, softcap)
        outs.append(padding.unpad(unfold(out, padding.most)))
        lses.append(padding.unpad(unfold(lse[..., None], padding.most))[..., 0])
    return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs), torch.cat(lses))


def _far_mask(mask: masks.Mask | None, block: int, times: int, dtype: torch.dtype
              ) -> tuple[int, torch.Tensor | None]:
    """The first place of a block's prompts that is seen, and what is added to scores from there."""
    return (0, None) if mask is None else (mask.first[block], mask.far(block, times, dtype))


def part(q_NHQD: Any, k_NHPD: Any, v_NHPD: Any, scale: float, added: Any,
         softcap: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over one set of keys: (output [N, H, Q, D], log-sum-exp [N, H, Q], float32)."""
    score = (q_NHQD @ k_NHPD.transpose(-1, -2)) * scale
    if softcap:
        score = softcap * torch.tanh(score / softcap)
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    if added is not None:
        score = score + added
    return torch.softmax(score, -1).to(v_NHPD.dtype) @ v_NHPD, torch.logsumexp(score, -1)
