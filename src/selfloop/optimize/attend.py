"""Attention of answers to their own tokens and to a prompt that they share.

Each answer token sees two sets of keys: its prompt's, kept once for all answers, and its own
answer's up to itself. The two softmaxes are computed apart and merged by their log-sum-exps,
which is exact (Juravsky et al., Hydragen, arXiv 2402.05099, section 3.1); all queries of a prompt
go through one matrix product with its keys. In the backward pass each part is given the merged
output and log-sum-exp, as in ring attention (Liu et al., arXiv 2310.01889): no score matrix is
kept. Where a window or a soft cap rules the fused kernels (optimize/kernels.py) out, the same two
parts are computed from plain operations.

Shapes: T answer tokens end to end, N answers of at most R, H heads over K key heads, D channels,
C prompts of P tokens in one block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from selfloop.optimize.fork import FORK, Fork, Padding
from selfloop.optimize.kernels import Kernel, kernel_for

NAME = "selfloop_fork"
"""What the decoder's attention is called while answers run."""
_HIDDEN = -1e30
"""A score that no softmax sees, finite so that rows without any visible key stay numbers."""
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
        out_THD = attend(flat_THD, k_TKD, v_TKD, fork, lent, scale, attention_mask, softcap)
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


def mask(*, mask_function: Any = causal_mask_function, attention_mask: Any = None, **_: Any
         ) -> torch.Tensor | None:
    """What each answer token may see, by the model's own rule; None when that is everything.

    Bool [1, 1, T, P + R] for the longest prompt and answer: first the prompt's places, then the
    answer's. Nothing is known here about windows or chunks: the rule is asked. Layers find the
    first place of each block's prompts that anybody sees noted at it (`first_seen`): all that has
    to be read back is read once a pass, not by every layer.
    """
    fork = FORK.get()
    if fork is None or (attention_mask is not None and not fork.inside):
        raise NotImplementedError("answers of a fork have no padding of their own")
    if mask_function is causal_mask_function:
        return None
    if fork.inside:
        raise NotImplementedError("a mask of another kind than causality")
    if fork.note is not None:
        return fork.note(mask_function)  # type: ignore[no-any-return]
    device = fork.device
    zero = torch.zeros((), dtype=torch.long, device=device)
    query_T1 = (fork.start_T + fork.offset_T)[:, None]
    prompt_P = torch.arange(fork.longest, device=device)[None]
    answer_TR = fork.start_T[:, None] + torch.arange(fork.reach, device=device)
    first_TP = mask_function(zero, zero, query_T1, prompt_P)
    own_TR = mask_function(zero, zero, query_T1, answer_TR)
    causal_TR = answer_TR <= query_T1
    first_TP = first_TP.expand(fork.tokens, fork.longest) | (prompt_P >= fork.start_T[:, None])
    own_TR = own_TR.expand(*answer_TR.shape) & causal_TR
    everything = first_TP.all() & (own_TR == causal_TR).all()
    found = torch.stack([everything.long(), *_first_seen(fork, first_TP)]).tolist()
    if found[0]:
        return None
    visible: Any = torch.cat([first_TP, own_TR], -1)[None, None]
    visible.first_seen = found[1:]
    return visible  # type: ignore[no-any-return]


def _first_seen(fork: Fork, first_TP: torch.Tensor) -> list[torch.Tensor]:
    """The first place of each block's prompts that any of its answers sees; at most the last."""
    seen = [stretch[:, :block.length].any(0).long() for block, stretch
            in zip(fork.blocks, _stretches(fork, first_TP), strict=True)]
    return [F.pad(seen_P[:-1], (0, 1), value=1).argmax() for seen_P in seen]


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)


def attend(q_THD: Any, k_TKD: Any, v_TKD: Any, fork: Fork, lent: Any, scale: float,
           visible: torch.Tensor | None, softcap: float | None) -> Any:
    """[T, H, D]: merged attention to the prompts' keys and to the answers' own."""
    kernel = None if visible is not None or softcap else kernel_for(q_THD, v_TKD)
    if kernel is not None:
        flat = [x for pair in lent for x in pair]
        return _Fused.apply(q_THD, k_TKD, v_TKD, fork, scale, kernel, *flat)
    return _plain(q_THD, k_TKD, v_TKD, fork, lent, scale, visible, softcap)


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


def _stretches(fork: Fork, x_T: Any) -> list[Any]:
    """Each block's tokens."""
    if len(fork.blocks) == 1:
        return [x_T]
    return list(torch.split(x_T, [sum(block.counts) for block in fork.blocks]))


def merge(out_THD: Any, lse_TH: Any, far_THD: Any, far_TH: Any) -> tuple[Any, Any]:
    """Two softmaxes over separate keys as one over all: (output, log-sum-exp)."""
    lse_Th = torch.logaddexp(lse_TH, far_TH)
    near_TH1 = (lse_TH - lse_Th).exp()[..., None].to(out_THD.dtype)
    away_TH1 = (far_TH - lse_Th).exp()[..., None].to(out_THD.dtype)
    return out_THD * near_TH1 + far_THD * away_TH1, lse_Th


# -- the fused kernel ---------------------------------------------------------------------------

_Function: Any = torch.autograd.Function


class _Fused(_Function):  # type: ignore[misc]
    """Two runs of a fused kernel, merged."""

    @staticmethod
    def forward(ctx: Any, q_THD: Any, k_TKD: Any, v_TKD: Any, fork: Fork,
                scale: float, kernel: Kernel, *lent: Any) -> Any:
        heads, own = q_THD.shape[1], fork.own
        near, near_NHM = kernel.forward(_rows(q_THD, own), _rows(k_TKD, own, heads),
                                        _rows(v_TKD, own, heads), True, scale)
        pairs = list(zip(lent[::2], lent[1::2], strict=True))
        out_THD, lse_TH = merge(_unrows(near, own), _unrows(near_NHM[..., None], own)[..., 0],
                                *far(q_THD, fork, pairs, scale, kernel=kernel))
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, out_THD, lse_TH, *lent)
        ctx.fork, ctx.scale, ctx.kernel = fork, scale, kernel
        return out_THD

    @staticmethod
    def backward(ctx: Any, grad_THD: Any) -> Any:
        q_THD, k_TKD, v_TKD, out_THD, lse_TH, *lent = ctx.saved_tensors
        fork, scale, kernel = ctx.fork, ctx.scale, ctx.kernel
        heads, kinds, own = q_THD.shape[1], k_TKD.shape[1], fork.own
        # Padding: no gradient comes in, and exp(score - inf) = 0 keeps it out of every sum.
        near, k, v = kernel.backward(
            own.fill(own.pad(grad_THD), 0.0).transpose(1, 2), _rows(q_THD, own),
            _rows(k_TKD, own, heads), _rows(v_TKD, own, heads), _rows(out_THD, own),
            own.fill(own.pad(lse_TH), torch.inf).transpose(1, 2), True, scale)
        away, rest = [], []
        parts = (_stretches(fork, x) for x in (q_THD, grad_THD, out_THD, lse_TH))
        for i, (padding, *part) in enumerate(zip(fork.shared, *parts, strict=True)):
            q_b, grad_b, out_b, lse_b = (padding.pad(x) for x in part)
            lse_b = padding.fill(lse_b, torch.inf)[..., None]
            q, *pair = kernel.backward(
                fold(padding.fill(grad_b, 0.0), kinds), fold(q_b, kinds), lent[2 * i],
                lent[2 * i + 1], fold(out_b, kinds), fold(lse_b, kinds)[..., 0], False, scale)
            away.append(padding.unpad(unfold(q, padding.most)))
            rest += pair
        return (_unrows(near, own) + torch.cat(away), _unrows(_gathered(k, kinds), own),
                _unrows(_gathered(v, kinds), own), None, None, None, *rest)


def _gathered(x_NHMD: Any, heads: int) -> Any:
    """Gradients of repeated key heads, summed."""
    n, h, m, d = x_NHMD.shape
    return x_NHMD if h == heads else x_NHMD.view(n, heads, h // heads, m, d).sum(2)


# -- plain operations ---------------------------------------------------------------------------

def _plain(q_THD: Any, k_TKD: Any, v_TKD: Any, fork: Fork, lent: Any, scale: float,
           visible: torch.Tensor | None, softcap: float | None) -> Any:
    heads, own = q_THD.shape[1], fork.own
    seen_T = None if visible is None else visible[0, 0]  # [T, P + R]
    causal_MM = torch.ones(own.most, own.most, dtype=torch.bool, device=q_THD.device).tril()
    near_N1MM = causal_MM[None, None]
    if seen_T is not None:
        near_N1MM = own.pad(seen_T[:, fork.longest:])[:, None] & causal_MM
    out, lse = part(_rows(q_THD, own), _rows(k_TKD, own, heads), _rows(v_TKD, own, heads), scale,
                    near_N1MM, softcap)
    return merge(_unrows(out, own), _unrows(lse[..., None], own)[..., 0],
                 *far(q_THD, fork, lent, scale, visible, softcap))[0]


def far(q_THD: Any, fork: Fork, lent: Any, scale: float, visible: Any = None,
        softcap: float | None = None, kernel: Kernel | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to the prompts alone: (output [T, H, D], log-sum-exp [T, H])."""
    outs, lses = [], []
    parts = [_stretches(fork, q_THD)]
    if visible is not None:
        parts.append(_stretches(fork, visible[0, 0]))
    # Keys that no answer sees any more (a window has passed) are not multiplied.
    firsts = getattr(visible, "first_seen", [0] * len(fork.blocks))
    for block, padding, (key, value), first, (q_b, *seen) in zip(
            fork.blocks, fork.shared, lent, firsts, zip(*parts, strict=True), strict=True):
        q_CKQD = fold(padding.pad(q_b), key.shape[1])
        if kernel is not None:
            out, lse = kernel.forward(q_CKQD, key, value, False, scale)
        else:
            see = None
            if seen:
                see_C1MP = padding.pad(seen[0][:, first:block.length])[:, None]
                see = see_C1MP.repeat(1, 1, q_THD.shape[1] // key.shape[1], 1)
            out, lse = part(q_CKQD, key[:, :, first:], value[:, :, first:], scale, see, softcap)
        outs.append(padding.unpad(unfold(out, padding.most)))
        lses.append(padding.unpad(unfold(lse[..., None], padding.most))[..., 0])
    return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs), torch.cat(lses))


def part(q_NHQD: Any, k_NHPD: Any, v_NHPD: Any, scale: float, visible: Any,
         softcap: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over one set of keys: (output [N, H, Q, D], log-sum-exp [N, H, Q], float32)."""
    score = (q_NHQD @ k_NHPD.transpose(-1, -2)) * scale
    if softcap:
        score = softcap * torch.tanh(score / softcap)
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    if visible is not None:
        score = score.masked_fill(~visible, _HIDDEN)
    return torch.softmax(score, -1).to(v_NHPD.dtype) @ v_NHPD, torch.logsumexp(score, -1)
