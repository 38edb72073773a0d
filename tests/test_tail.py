"""The last layer is run only where its result is read, and only where that changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from families import FAMILIES
from families.making import BANNED
from families.measuring import BUDGET, checkpointed, exactly, measure, run
from selfloop.optimize import attend, tail, together
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
