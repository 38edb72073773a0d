"""A decoding step's attention in plain products: what one softmax over all keys gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from selfloop.engines import hf_products as products
from selfloop.engines.hf_cache import DecodingKeys, Step
from selfloop.optimize.fork import Block


def by_hand(q_NHD: Any, own: Any, lent: Any, scale: float) -> torch.Tensor:
    n, h, _ = q_NHD.shape
    (c, k, *_), found = lent[0].shape, []
    for row in range(n):
        for head in range(h):
            kind, prompt = head // (h // k), row // (n // c)
            keys, values = (torch.cat([far[prompt, kind], near[row, kind]])
                            for far, near in zip(lent, own, strict=True))
            found.append((keys @ q_NHD[row, head] * scale).softmax(-1) @ values)
    return torch.stack(found).view(n, h, -1)


@pytest.mark.parametrize(("prompts", "each", "heads", "kinds"),
                         [(1, 1, 2, 2), (1, 5, 6, 2), (3, 4, 4, 4), (2, 3, 6, 1)])
def test_one_softmax_over_both_sets_of_keys(prompts, each, heads, kinds):
    torch.manual_seed(0)
    n = prompts * each
    q_NHD = torch.randn(n, heads, 4, dtype=torch.float64)
    own = [torch.randn(n, kinds, 9, size, dtype=torch.float64)[:, :, :3] for size in (4, 5)]
    lent = [torch.randn(prompts, kinds, 7, size, dtype=torch.float64) for size in (4, 5)]
    found = products.attend(q_NHD, (own[0], own[1]), (lent[0], lent[1]), 0.4)
    torch.testing.assert_close(found, by_hand(q_NHD, own, lent, 0.4))


def test_what_it_is_for():
    q = torch.zeros(6, 4, 8)
    assert products.suits(q, (3, 3), 100, q) and products.suits(q.double(), (6,), 100, q.double())
    assert not products.suits(q, (4, 2), 100, q)  # not as many to each prompt
    assert not products.suits(q.bfloat16(), (3, 3), 100, q.bfloat16())  # scores would be coarse
    assert not products.suits(q, (3, 3), 100, q.double())
    assert not products.suits(q, (3, 3), products.MOST, q)  # scores that leave the cache


@pytest.mark.parametrize("counts", [(4,), (2, 2), (3, 1)])
def test_a_layer_gives_the_same_either_way(counts):
    torch.manual_seed(0)
    keys, values = torch.randn(2, len(counts), 2, 11, 8).unbind(0)
    block = Block(SimpleNamespace(), 11, counts)  # type: ignore[arg-type]
    prefix, n = SimpleNamespace(keys=keys, values=values), sum(counts)
    layers = [DecodingKeys([prefix]) for _ in range(2)]
    fork, used = Step([block], [1] * n, torch.device("cpu")), 0
    for fork.step in range(12):
        q, k, v = torch.randn(n, 4, 8), *torch.randn(2, n, 2, 8).unbind(0)
        with mock.patch.object(products, "attend", wraps=products.attend) as plain:
            fast = layers[0].attend(q, k, v, fork, 0.3, None, None)
            used += plain.call_count
        with mock.patch.object(products, "suits", return_value=False):
            fused = layers[1].attend(q, k, v, fork, 0.3, None, None)
        torch.testing.assert_close(fast, fused, rtol=1e-5, atol=1e-6)
    assert used == (12 if len(set(counts)) == 1 else 0)
