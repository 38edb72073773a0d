"""Attention over a fork equals attention over whole sequences: values and gradients, in float64."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from selfloop.optimize import attend, kernels, masks
from selfloop.optimize.fork import Block, Fork, Padding, forking

torch.set_num_threads(1)
HEADS, KINDS, WIDTH = 4, 2, 8
LAYOUTS = {
    "even": [(5, [(3, 3), (3, 3)])],
    "uneven rows": [(5, [(3, 1, 2), (4,)])],
    "two blocks": [(5, [(3, 1), (2, 6)]), (9, [(2, 2)])],
    "an empty context": [(7, [(), (2, 5), ()])],
    "one token": [(3, [(1,)])],
}
"""Blocks of (prompt length, answer lengths of each context)."""


def made(layout: list[Any]) -> tuple[Fork, list[Any], tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    cache: Any = None
    fork = Fork([Block(cache, p, tuple(sum(rows) for rows in contexts))
                 for p, contexts in layout],
                [n for _, contexts in layout for rows in contexts for n in rows], "cpu")
    lent = [tuple(randn(len(contexts), KINDS, p, WIDTH) for _ in range(2))
            for p, contexts in layout]
    t = fork.tokens
    return fork, lent, (randn(t, HEADS, WIDTH), randn(t, KINDS, WIDTH), randn(t, KINDS, WIDTH))


def window_of(size: int) -> Any:
    return lambda b, h, q, k: (k <= q) & (q - k < size)


def chunks_of(size: int) -> Any:
    """Which of its own tokens an answer sees depends on its prompt's length."""
    return lambda b, h, q, k: (k <= q) & (q // size == k // size)


RULES = {"all": window_of(10**6), "window 4": window_of(4), "window 1": window_of(1),
         "chunks of 4": chunks_of(4), "chunks of 3": chunks_of(3),
         "keys alone": lambda b, h, q, k: k != 1}


def by_hand(layout: list[Any], lent: list[Any], qkv: Any, rule: Any, softcap: float | None
            ) -> torch.Tensor:
    """Each row alone: its prompt's keys followed by its own, one softmax over all."""
    outs, at = [], 0
    for (p, contexts), (keys, values) in zip(layout, lent, strict=True):
        for c, rows in enumerate(contexts):
            for n in rows:
                q, k, v = (x[at:at + n].transpose(0, 1) for x in qkv)
                whole_k, whole_v = (torch.cat([far[c], own], 1).repeat_interleave(
                    HEADS // KINDS, 0) for far, own in ((keys, k), (values, v)))
                score = q @ whole_k.transpose(1, 2) * 0.3
                if softcap:
                    score = softcap * torch.tanh(score / softcap)
                query, key = torch.arange(p, p + n)[:, None], torch.arange(p + n)[None]
                seen = rule(0, 0, query, key) & (key <= query)
                score = score.masked_fill(~seen, -torch.inf)
                outs.append((score.softmax(-1) @ whole_v).transpose(0, 1))
                at += n
    return torch.cat(outs)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_equals_whole_sequences(layout: list[Any], rule: Any, softcap: float | None) -> None:
    fork, lent, qkv = made(layout)
    leaves = [*qkv, *itertools.chain(*lent)]
    with forking(fork):
        seen = masks.mask(mask_function=rule)
    if rule is RULES["all"]:
        assert seen is None  # nothing is hidden, and this is noticed
    found = attend.attend(*qkv, fork, lent, 0.3, masks.of(seen), softcap)
    expected = by_hand(layout, lent, qkv, rule, softcap)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    weight = torch.arange(expected.numel(), dtype=torch.float64).view_as(expected).sin()
    ours = torch.autograd.grad((found * weight).sum(), leaves, allow_unused=True)
    theirs = torch.autograd.grad((expected * weight).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(torch.zeros_like(b) if a is None else a, b, rtol=0, atol=1e-12)


def test_windows_pass_the_prompt_by() -> None:
    """Rows that see nothing of their prompt stay numbers."""
    fork, lent, qkv = made([(5, [(9, 9)])])
    with forking(fork):
        seen = masks.mask(mask_function=window_of(3))
    found = attend.attend(*qkv, fork, lent, 0.3, masks.of(seen), None)
    assert torch.isfinite(found).all()
    found.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (*qkv, *lent[0]))


def test_windows_keep_no_scores() -> None:
    """As without windows: nothing larger than the queries waits for the backward pass."""
    fork, lent, qkv = made([(64, [(70, 80), (90,)])])
    with forking(fork):
        mask = masks.of(masks.mask(mask_function=window_of(32)))
    assert mask is not None and mask.first == (33,), "the first answer token sees 31 of the prompt"
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x.numel()) or x, lambda x: x):
        attend.attend(*qkv, fork, lent, 0.3, mask, None)
    assert kept and max(kept) <= max(x.numel() for x in (*qkv, *lent[0]))
    assert mask.own_NMS is not None and len(mask.own_NMS) == 1, "one for all answers"


def test_padding_there_and_back() -> None:
    flat = torch.arange(12.0).view(6, 2)
    for counts in ((3, 3), (1, 5), (2, 0, 4), (6,)):
        padding = Padding(counts, "cpu")
        assert torch.equal(padding.unpad(padding.pad(flat)), flat)
        filled = padding.fill(padding.pad(flat), -1.0)
        assert int((filled == -1).sum()) == 2 * (len(counts) * max(counts) - 6)


def test_keys_that_did_not_pass_the_cache_are_refused() -> None:
    fork, _, (q, k, v) = made(LAYOUTS["even"])
    heads = [x.transpose(0, 1)[None] for x in (q, k, v)]
    with pytest.raises(NotImplementedError, match="did not pass the cache"):
        attend.attention(None, *heads, None)
    heads[1].lent_by = SimpleNamespace(lent=[])
    with forking(fork), pytest.raises(NotImplementedError, match="s_aux"):
        attend.attention(None, *heads, None, s_aux=1.0)
    with pytest.raises(NotImplementedError):
        masks.mask()
    carrier = masks.whole(fork).carried()
    assert masks.of(carrier[:, :, 0:, :]) is masks.of(carrier) is not None
    with pytest.raises(NotImplementedError, match="the model changes its masks"):
        masks.of(carrier[:, :, -1:])


# -- kernels ------------------------------------------------------------------------------------

def test_a_kernel_is_tried_before_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_trusted", {})
    q = torch.zeros(1, 8, dtype=torch.float32)
    assert isinstance(kernels.kernel_for(q, q), kernels.OnCPU)

    class Off(kernels.OnCPU):
        def forward(self, *given: Any) -> tuple[Any, Any]:
            out, lse = super().forward(*given)
            return out, lse + 1

    class Fails(kernels.OnCPU):
        def forward(self, *given: Any) -> tuple[Any, Any]:
            raise RuntimeError("no such kernel")

    for kernel, why in ((Off(), "Off is off by 1"), (Fails(), "Fails: no such kernel")):
        monkeypatch.setattr(kernels, "_trusted", {})
        monkeypatch.setattr(kernels, "candidates", lambda *_, kernel=kernel: [kernel])
        with pytest.warns(UserWarning, match=why):
            assert kernels.kernel_for(q, q) is None
    assert kernels.kernel_for(q, torch.zeros(1, 4)) is None


def test_what_a_gpu_is_offered() -> None:
    names = [[type(k).__name__ for k in kernels.candidates("cuda", dtype, width)]
             for dtype, width in ((torch.bfloat16, 64), (torch.float32, 64), (torch.float64, 64),
                                  (torch.bfloat16, 20), (torch.bfloat16, 512))]
    efficient = ["EfficientOnGPU"]
    assert names == [["FlashOnGPU", *efficient], efficient, [], [], efficient]


def test_a_kernel_that_takes_no_masks_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses one, so the self-check does not trust it with masks, and the next is taken."""
    q, cpu = torch.zeros(1, 1, 1, 8), kernels.OnCPU()
    with pytest.raises(NotImplementedError, match="no mask but causality"):
        kernels.FlashOnGPU().forward(q, q, q, False, 1.0, torch.zeros(1, 1, 1, 1))
    monkeypatch.setattr(kernels, "_trusted", {})
    monkeypatch.setattr(kernels, "candidates", lambda *_: [kernels.FlashOnGPU(), cpu])
    assert kernels.kernel_for(q, q, masked=True) is cpu


def test_masks_are_laid_out_as_kernels_want_them() -> None:
    fork, _, (q, _, _) = made(LAYOUTS["two blocks"])
    with forking(fork):
        mask = masks.of(masks.mask(mask_function=window_of(4)))
    assert mask is not None
    for added in (mask.own(q.dtype), mask.far(0, 2, q.dtype), mask.far(1, 2, q.dtype)):
        wide = q.new_empty(added.shape[0], HEADS, added.shape[2], WIDTH)
        laid = kernels._aligned(added, wide)
        assert laid.data_ptr() == added.data_ptr() and laid.stride(-2) % kernels.ALIGNED == 0
        odd = added.contiguous()
        assert torch.equal(kernels._aligned(odd, wide), laid)


@pytest.mark.parametrize(("kernel", "masked"), [
    (kernels.FlashOnGPU(), False), (kernels.EfficientOnGPU(), False),
    (kernels.EfficientOnGPU(), True)])
@pytest.mark.parametrize("causal", [False, True])
def test_shapes_on_a_gpu_without_one(kernel: Any, masked: bool, causal: bool) -> None:
    """The meta device runs the operators' signatures and shapes, not their arithmetic."""
    q, k = (torch.empty(2, 4, n, 16, device="meta", dtype=torch.bfloat16)
            for n in (40, 40 if causal else 100))
    added = torch.empty(2, 1, 40, k.shape[2], device="meta", dtype=q.dtype) if masked else None
    out, lse = kernel.forward(q, k, k, causal, 0.25, added)
    assert out.shape == q.shape and lse.shape == (2, 4, 40) and lse.dtype == torch.float32
    found = kernel.backward(torch.empty_like(q), q, k, k, out, lse, causal, 0.25, added)
    assert [x.shape for x in found] == [q.shape, k.shape, k.shape]
