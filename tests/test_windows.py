"""A tower's windows attended in one call: what one after another gives, gradients included."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from families import FAMILIES
from selfloop.engines import hf_windows
from selfloop.engines.hf_load import load
from selfloop.engines.hf_windows import Windowed, at_once, says


def layers_of(net: Any) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, Windowed)]


def learned(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Logits and the gradients of all weights."""
    model.zero_grad()
    out = model(**inputs).logits
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v",
                                  "qwen2_5_omni"])
def test_towers_see_and_learn_the_same(name):
    family = FAMILIES[name](torch.float64)
    inputs = family.reader.inputs([family.prompt((1, 2), (20, 21, 22))])
    expected = learned(family.model, inputs)
    at_once(family.model)
    assert layers_of(family.model)
    calls = []
    watched = mock.Mock(side_effect=hf_windows.attention)
    with mock.patch.dict(hf_windows.AttentionInterface._global_mapping,
                         {hf_windows.NAME: watched}):
        for _ in range(2):  # the first compares, the second trusts
            found = learned(family.model, inputs)
            calls.append(watched.call_count)
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs)
    assert all(type(layer)._same is not False for layer in layers_of(family.model))
    assert calls[0] > calls[1] - calls[0] > 0


@pytest.mark.parametrize("lengths", [[3, 3, 3], [4, 2, 4, 4, 2], [0, 5, 1], [6]])
def test_windows_of_any_lengths(lengths):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, sum(lengths), 4, dtype=torch.float64) for _ in range(3))
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    out, _ = hf_windows.attention(SimpleNamespace(), q, k, v, None, cu_seq_lens_q=ends,
                                  scaling=0.3)
    expected = torch.cat([torch.nn.functional.scaled_dot_product_attention(
        *(x[:, :, a:b] for x in (q, k, v)), scale=0.3)
        for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)], 2)
    torch.testing.assert_close(out, expected.transpose(1, 2))


class Config:
    """A configuration, as far as attention looks at it."""

    _attn_implementation_internal = "sdpa"

    @property
    def _attn_implementation(self) -> str:
        return self._attn_implementation_internal


class Layer(torch.nn.Module):
    """An attention layer as transformers writes them, which can be made wrong."""

    wrong = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.ran: list[str] = []

    def forward(self, x_SD: torch.Tensor, cu_seqlens: torch.Tensor | None = None) -> torch.Tensor:
        name = self.config._attn_implementation
        self.ran.append(name)
        return x_SD + (self.wrong if name == hf_windows.NAME else 0.0)


def windowed(**attributes: Any) -> Layer:
    class Own(Layer):
        pass

    for name, value in attributes.items():
        setattr(Own, name, value)
    layer = Own().eval()
    at_once(torch.nn.Sequential(layer))
    return layer


def test_a_layer_that_gives_something_else_is_left_as_it_is():
    layer, two = windowed(wrong=0.1), torch.tensor([0, 2, 4])
    for _ in range(3):
        assert layer(torch.ones(4, 3), cu_seqlens=two).tolist() == [[1.0] * 3] * 4
    assert layer.ran == [hf_windows.NAME, "sdpa", "sdpa", "sdpa", "sdpa"]
    assert layer.config._attn_implementation == "sdpa"
    assert says(layer) == "Own: one after another (that gives something else)"


def test_what_it_is_not_for_takes_the_layers_own_way():
    layer, two = windowed(), torch.tensor([0, 2, 4])
    layer(torch.ones(4, 3), cu_seqlens=two[:2])  # one window
    layer(torch.ones(4, 3))  # none is named
    layer.config._attn_implementation_internal = "eager"
    layer(torch.ones(4, 3), cu_seqlens=two)
    layer.config._attn_implementation_internal = "sdpa"
    layer.train()(torch.ones(4, 3), cu_seqlens=two)  # it may drop out at random
    assert layer.ran == ["sdpa", "sdpa", "eager", "sdpa"] and type(layer)._same is None
    assert says(layer) == "Own: not met yet" and says(torch.nn.Linear(1, 1)) == ""
    layer.eval()(torch.ones(4, 3), cu_seqlens=two)
    layer(torch.ones(4, 3), cu_seqlens=two)
    assert layer.ran[4:] == [hf_windows.NAME, "sdpa", hf_windows.NAME, hf_windows.NAME]
    assert says(layer) == "Own: in one call"


def test_a_layer_that_cannot_be_run_so_is_left_as_it_is():
    class Refusing(Layer):
        def forward(self, x_SD: torch.Tensor, cu_seqlens: Any = None) -> torch.Tensor:
            if self.config._attn_implementation == hf_windows.NAME:
                raise ValueError("no flash-attention here\nand more about it")
            return x_SD

    layer = Refusing().eval()
    at_once(torch.nn.Sequential(layer))
    for _ in range(2):
        assert layer(torch.ones(4, 3), cu_seqlens=torch.tensor([0, 2, 4])).sum() == 12
    assert type(layer)._same is False and layer.config._attn_implementation == "sdpa"
    assert says(layer) == "Refusing: one after another (ValueError: no flash-attention here)"


def test_names_weights_and_copies_stay():
    family = FAMILIES["qwen2_5_vl"](torch.float32)
    before = family.model.state_dict().keys()
    names = [type(m).__name__ for m in family.model.modules()]
    at_once(family.model)
    at_once(family.model)  # once is enough
    assert family.model.state_dict().keys() == before
    assert [type(m).__name__ for m in family.model.modules()] == names
    assert len(layers_of(copy.deepcopy(family.model))) == len(layers_of(family.model)) > 0


def test_the_engine_loads_its_models_so(tmp_path):
    family = FAMILIES["qwen2_5_vl"](torch.float32)
    family.model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with mock.patch("selfloop.engines.hf_load.load_processor", return_value=SimpleNamespace()):
        assert layers_of(load(tmp_path).model)
