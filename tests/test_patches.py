"""Patch embeddings run as one product: what the convolution gives, under the same names."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from families import FAMILIES
from selfloop.engines.hf_load import load
from selfloop.engines.hf_patches import WholePatch, as_products


@pytest.mark.parametrize("bias", [False, True])
def test_a_whole_patch_is_one_product(bias):
    torch.manual_seed(0)
    plain = torch.nn.Conv3d(3, 5, (2, 4, 4), stride=(2, 4, 4), bias=bias).double()
    fast = copy.deepcopy(plain)
    as_products(torch.nn.Sequential(fast))
    assert type(fast) is WholePatch and fast.state_dict().keys() == plain.state_dict().keys()
    for sizes in ((2, 4, 4), (4, 8, 12)):  # a patch, and a picture of several
        x = torch.randn(7, 3, *sizes, dtype=torch.float64)
        grads = []
        for layer in (plain, fast):
            layer.zero_grad()
            out = layer(x)
            out.square().sum().backward()
            grads.append([out, *(p.grad for p in layer.parameters())])
        for ours, theirs in zip(grads[1], grads[0], strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("odd", [{"padding": 1}, {"groups": 3}, {"dilation": 2}])
def test_other_convolutions_are_left_as_they_are(odd):
    net = torch.nn.Sequential(torch.nn.Conv3d(3, 6, 2, **odd))
    x = torch.randn(2, 3, 4, 4, 4)
    expected = net(x)
    as_products(net)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_towers_see_the_same(name):
    family = FAMILIES[name](torch.float64)
    inputs = family.reader.inputs([family.prompt((1, 2), (20, 21, 22))])
    with torch.no_grad():
        expected = family.model(**inputs).logits
        as_products(family.model)
        assert any(type(m) is WholePatch for m in family.model.modules())
        torch.testing.assert_close(family.model(**inputs).logits, expected)


def test_the_engine_loads_its_models_so(tmp_path):
    family = FAMILIES["qwen2_5_vl"](torch.float32)
    family.model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    processor = SimpleNamespace()
    with mock.patch("selfloop.engines.hf_load.load_processor", return_value=processor):
        model = load(tmp_path).model
    assert [type(m) for m in model.modules() if isinstance(m, torch.nn.Conv3d)] == [WholePatch]
