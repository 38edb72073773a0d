"""torch's fused attention kernels with their log-sum-exps, by device and number type.

`scaled_dot_product_attention` hides the log-sum-exp, which merging two sets of keys needs, so the
kernels beneath it are called. Each is tried once against plain operations before it is trusted;
where it fails or there is none, plain operations are used, which keep all scores in memory.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import torch

_aten: Any = torch.ops.aten
ALIGNED = 16
"""Numbers at whose multiples a GPU's kernel wants the rows of a mask to begin."""


class Kernel(Protocol):
    """Attention of queries [N, H, Q, D] to keys and values [N, H, P, D].

    `added` to their scores [N or 1, H or 1, Q, P]: what a mask is for a kernel (optimize/masks.py).
    """

    def forward(self, q: Any, k: Any, v: Any, causal: bool, scale: float,
                added: Any = None) -> tuple[Any, Any]:
        """(output [N, H, Q, D], log-sum-exp [N, H, Q])."""
        ...

    def backward(self, grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool,
                 scale: float, added: Any = None) -> tuple[Any, Any, Any]:
        """Gradients of q, k and v; `out` and `lse` may be those of a merge with other keys."""
        ...


@dataclass(frozen=True)
class OnCPU:
    """Every floating type."""

    def forward(self, q: Any, k: Any, v: Any, causal: bool, scale: float,
                added: Any = None) -> tuple[Any, Any]:
        """See `Kernel`."""
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=added, scale=scale)
        return out, lse

    def backward(self, grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool,
                 scale: float, added: Any = None) -> tuple[Any, Any, Any]:
        """See `Kernel`."""
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, attn_mask=added, scale=scale)
        return dq, dk, dv


@dataclass(frozen=True)
class FlashOnGPU:
    """FlashAttention-2: bfloat16 and float16, no mask but causality."""

    def forward(self, q: Any, k: Any, v: Any, causal: bool, scale: float,
                added: Any = None) -> tuple[Any, Any]:
        """See `Kernel`."""
        if added is not None:
            raise NotImplementedError("FlashAttention-2 takes no mask but causality")
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
        return out, lse

    def backward(self, grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool,
                 scale: float, added: Any = None) -> tuple[Any, Any, Any]:
        """See `Kernel`. Without dropout the random state is never read."""
        none = torch.zeros((), dtype=torch.uint64, device=q.device)
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse.contiguous(), None, None, q.shape[2], k.shape[2], 0.0, causal,
            none.new_zeros(2), none, scale=scale)
        return dq, dk, dv


@dataclass(frozen=True)
class EfficientOnGPU:
    """Memory-efficient attention (Rabe and Staats, arXiv 2112.05682): float32 as well."""

    def forward(self, q: Any, k: Any, v: Any, causal: bool, scale: float,
                added: Any = None) -> tuple[Any, Any]:
        """See `Kernel`."""
        out, lse, *_ = _aten._scaled_dot_product_efficient_attention(
            q, k, v, _aligned(added, q), True, 0.0, causal, scale=scale)
        return out, lse[..., :q.shape[2]]  # it is padded to a multiple of 32

    def backward(self, grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool,
                 scale: float, added: Any = None) -> tuple[Any, Any, Any]:
        """See `Kernel`."""
        padded = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf)
        none = torch.zeros((), dtype=torch.int64, device=q.device)
        dq, dk, dv, _ = _aten._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, _aligned(added, q), out, padded, none, none, 0.0,
            [True, True, True, False], causal, scale=scale)
        return dq, dk, dv


def _aligned(added: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor | None:
    """For each row and head, with rows of keys that begin at multiples of ALIGNED numbers."""
    if added is None:
        return None
    keys = added.shape[-1]
    if added.stride(-2) % ALIGNED:
        added = torch.nn.functional.pad(added, (0, -keys % ALIGNED))[..., :keys]
    return added.expand(*q.shape[:3], -1)


def candidates(device: str, dtype: torch.dtype, width: int) -> list[Kernel]:
    """Kernels for head width D that ought to work, the fastest first."""
    if device == "cpu":
        return [OnCPU()]
    if device != "cuda" or width % 8:
        return []
    half = dtype in (torch.bfloat16, torch.float16)
    efficient: list[Kernel] = [EfficientOnGPU()] if half or dtype == torch.float32 else []
    return [FlashOnGPU(), *efficient] if half and width <= 256 else efficient


_trusted: dict[tuple[str, torch.dtype, int, bool], Kernel | None] = {}


def kernel_for(q: Any, v: Any, masked: bool = False) -> Kernel | None:
    """The kernel for queries [.., D] and values [.., E]; None: use plain operations.

    `masked`: whether something is added to the scores.
    """
    if q.shape[-1] != v.shape[-1]:
        return None
    key = (q.device.type, q.dtype, q.shape[-1], masked)
    if key not in _trusted:
        found, why = None, ""
        for kernel in candidates(*key[:3]):
            why = _wrong(kernel, q.device, q.dtype, q.shape[-1], masked)
            if not why:
                found = kernel
                break
        if why and found is None:
            what = f"fused attention{' with masks' if masked else ''} on {key[0]} in {key[1]}"
            warnings.warn(f"no {what}: {why}; plain operations are used, which need more memory",
                          stacklevel=2)
        _trusted[key] = found
    return _trusted[key]


@torch.no_grad()
def _wrong(kernel: Kernel, device: Any, dtype: torch.dtype, width: int, masked: bool) -> str:
    """What a kernel gets wrong on a small problem; "" if nothing."""
    grid = torch.arange(2 * 5 * width, dtype=torch.float64).view(1, 2, 5, width)
    q, k, v, grad = (torch.sin(grid * n).to(device, dtype) for n in (0.7, 1.3, 2.1, 3.1))
    added = None
    if masked:  # nobody sees the third key
        added = torch.zeros(1, 1, 5, 5, dtype=dtype, device=device)
        added[..., 2] = torch.finfo(dtype).min / 2
    limit = 1e-5 if dtype in (torch.float32, torch.float64) else 0.05
    try:
        for causal in (False, True):
            out, lse = kernel.forward(q, k, v, causal, 0.5, added)
            found = [out, lse, *kernel.backward(grad, q, k, v, out, lse, causal, 0.5, added)]
            expected = _by_hand(q, k, v, grad, causal, added)
            gap = max(float((a.double() - b).abs().max())
                      for a, b in zip(found, expected, strict=True))
            if not gap <= limit * 10:
                return f"{type(kernel).__name__} is off by {gap:.3g}"
    except (RuntimeError, NotImplementedError) as error:
        return f"{type(kernel).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    return ""


def _by_hand(q: Any, k: Any, v: Any, grad: Any, causal: bool, added: Any) -> list[torch.Tensor]:
    """Output, log-sum-exp and gradients, written out: autograd would leave its tensors behind in
    whatever is being recorded around this call."""
    q, k, v, grad = (x.double() for x in (q, k, v, grad))
    score = (q @ k.transpose(-1, -2)) * 0.5
    if added is not None:
        score = score + added.double()
    if causal:
        seen = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).tril()
        score = score.masked_fill(~seen, -torch.inf)
    p = score.softmax(-1)
    out = p @ v
    ds = p * (grad @ v.transpose(-1, -2) - (grad * out).sum(-1, keepdim=True)) * 0.5
    return [out, score.logsumexp(-1), ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ grad]
