"""The last layer is run only where its result is read, and only where that changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from families import FAMILIES
from families.drawing import draw, drift, jobs, sampler
from families.making import BANNED
from families.measuring import BUDGET, checkpointed, exactly, measure, run
from selfloop.optimize import attend, tail, together
from selfloop.optimize.fork import PrefixCache
from selfloop.optimize.prefix import Shared

PROMPT_ENDS, ANSWERS = 5, (1, 7, 3, 5)
READ = 1 + sum(n - 1 for n in ANSWERS)
"""The prompt's last token, and the answers without their last."""


def lengths(layer: Any, kind: str) -> list[int]:
    """Notes how many tokens the layer's modules of that name are given, call by call."""
    seen: list[int] = []
    for name, module in layer.named_modules():
        if name.endswith(kind):
            module.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("few", [0, 10**9])
@pytest.mark.parametrize("again", [False, True], ids=["", "checkpointed"])
def test_what_nobody_reads_is_not_run(monkeypatch: pytest.MonkeyPatch, few: int, again: bool
                                      ) -> None:
    monkeypatch.setattr(attend, "_FEW", few)
    family = FAMILIES["llava"](torch.float64)
    rows = family.rows((1, 2), PROMPT_ENDS, ANSWERS)
    with exactly(torch.float64):
        path = Shared(family.model, family.reader, BANNED, BUDGET, worth=0)
        run(path, family.model, rows)  # compares both paths, on fewer rows
        layers = family.model.get_decoder().layers
        whole = rows[0].prompt + READ - 1
        up, keys, before = (lengths(layers[-1], "up_proj"), lengths(layers[-1], "k_proj"),
                              lengths(layers[0], "up_proj"))
        if again:
            with checkpointed(family.model):
                run(path, family.model, rows)
        else:
            run(path, family.model, rows)
    times = 1 + again
    assert up == [READ] * times and keys == before == [whole] * times


def test_a_layer_that_is_not_the_last_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["llava"](torch.float32)
    first = list(family.model.get_decoder().layers[0].modules())
    monkeypatch.setattr(together, "last_layer", lambda model: first)
    found = measure(family, family.rows((1,), PROMPT_ENDS, (7, 6)))
    assert found.path.together.open and not found.path.together.short
    assert found.logp < 1e-5 and found.gradient < 1e-4


def test_layers_that_cannot_be_told_are_run_whole() -> None:
    family = FAMILIES["llava"](torch.float32)
    decoder = family.model.get_decoder()
    decoder.more = torch.nn.ModuleList(torch.nn.Identity() for _ in decoder.layers)
    assert tail.last_layer(family.model) == []
    found = measure(family, family.rows((1,), PROMPT_ENDS, (7, 6)))
    assert found.path.together.open and found.logp < 1e-5


def test_outside_the_pass_nothing_is_left_behind() -> None:
    family = FAMILIES["llava"](torch.float32)
    measure(family, family.rows((1,), PROMPT_ENDS, (7, 6)))
    last = family.model.get_decoder().layers[-1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in last.modules())


# -- prompts that are drawn from ------------------------------------------------------------------

@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "cohere2_vision", "qwen3_5"])
def test_of_drawn_prompts_the_last_layer_runs_one_token(name: str) -> None:
    family = FAMILIES[name](torch.float64)
    mine, asked = sampler(family), jobs(family)
    with exactly(torch.float64):
        cut = draw(mine, asked)
        last = family.model.get_decoder().layers[-1]
        up, keys = lengths(last, "up_proj"), lengths(last, "k_proj")
        assert draw(mine, asked) == cut  # nothing is compared any more
        shorter = {(a, b) for a, b in zip(keys, up, strict=True) if a != b}
        assert shorter == {(len(job.ids), 1) for job in asked}
        assert tail.give_up(family.model) and not tail.give_up(family.model)
        up.clear()
        keys.clear()
        whole = draw(mine, asked)
        assert up == keys and len(up) > 1
        assert drift(family, asked, cut) < 1e-9
    assert not mine.why_not
    assert [d.token_ids for row in cut for d in row] == [d.token_ids for row in whole for d in row]


def test_prompts_that_differ_where_they_are_cut_are_run_whole(monkeypatch: pytest.MonkeyPatch
                                                              ) -> None:
    family = FAMILIES["llava"](torch.float32)
    shortened = tail._shortened
    # As if the layer's linear layers were called in another order: its keys are cut, too.
    monkeypatch.setattr(tail, "_shortened", lambda modules, whole, at, seen: shortened(
        modules, whole, at, lambda: True))
    mine, asked = sampler(family), jobs(family)
    drawn = draw(mine, asked)
    assert not tail.give_up(family.model), "it was not found out"
    assert not mine.why_not and mine.checked and drift(family, asked, drawn) < 1e-4


def test_where_gradients_are_wanted_prompts_are_run_whole() -> None:
    family = FAMILIES["llava"](torch.float32)
    text = family.model.config.get_text_config(decoder=True)
    last = family.model.get_decoder().layers[-1]
    with tail.prompts(family.model, PrefixCache(text), 8):
        assert not any(m._forward_hooks for m in last.modules())
    with torch.no_grad(), tail.prompts(family.model, PrefixCache(text), 8):
        assert any(m._forward_hooks for m in last.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in last.modules())
