"""GRPO and DPO follow TRL 1.16's learning curves on the same recorded completions.

20 updates of `GRPOTrainer.train()` and `DPOTrainer.train()` beside ours: loss, gradient norm, KL
and margin at each update, and the weights after the last one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("trl")

import torch

from selfloop.organize.signals import GroupAdvantage
from selfloop.types import Context, Group, Rollout, Sample, Turn, Verdict
from trl_curves import (
    UPDATES,
    Compared,
    Settings,
    World,
    dpo,
    embedded,
    grpo,
    our_grpo,
    preferences,
    random_model,
    record,
)

CLOSE = 1e-4
"""Of the figure's largest value; for weights, of the way that they have gone from the seed."""
TIGHT = Settings(iterations=2, clip_low=0.05, clip_high=0.05)


def follows(found: Compared, *figures: str) -> None:
    for curve in (found.ours, found.trl):
        assert all(len(curve.figures[name]) == UPDATES for name in ("loss", "grad_norm", *figures))
    gaps = found.gaps
    assert {"loss", "grad_norm", *figures} <= gaps.keys()
    assert max(gaps["loss"], gaps["grad_norm"], *(gaps[f] for f in figures)) < CLOSE, gaps
    assert gaps["weights"] < CLOSE / 10 and gaps["way"] < 3 * CLOSE, gaps
    moved = [abs(a - b) for a, b in zip(found.trl.figures["loss"], found.trl.figures["loss"][1:],
                                        strict=False)]
    assert min(moved) > 0, "a curve that stands still is easy to follow"


@pytest.fixture(scope="module")
def digits_world() -> World:
    return embedded(2 * UPDATES)


def test_grpo_on_the_embedded_model(digits_world: World) -> None:
    made = record(digits_world, UPDATES, 2, 4, 6)
    follows(grpo(digits_world, made, Settings()), "kl")


@pytest.fixture(scope="module")
def tight(digits_world: World) -> Compared:
    return grpo(digits_world, record(digits_world, UPDATES // 2, 2, 4, 6), TIGHT)


def test_grpo_with_two_updates_a_generation_so_that_the_clip_acts(tight: Compared) -> None:
    follows(tight, "kl", "clipped")
    clipped = tight.ours.figures["clipped"]
    assert clipped[::2] == [0.0] * (UPDATES // 2), "the first update is on policy"
    assert min(clipped[1::2]) > 0.1


def test_another_setting_is_another_curve(digits_world: World, tight: Compared) -> None:
    """The comparison can fail: a clip that is a little wider is seen in every figure."""
    wider = replace(TIGHT, clip_high=0.06)
    ours, seed = our_grpo(digits_world, record(digits_world, UPDATES // 2, 2, 4, 6), wider)
    gaps = Compared(ours, tight.trl, seed).gaps
    assert min(gaps[name] for name in ("loss", "grad_norm", "kl", "clipped", "way")) > 10 * CLOSE


def test_dpo_on_the_embedded_model(digits_world: World) -> None:
    made = preferences(digits_world, 2 * UPDATES, 6)
    follows(dpo(digits_world, made, Settings()), "margin")


def test_advantages_are_trls_but_for_the_standard_deviation() -> None:
    """The paper divides by the group's own standard deviation, TRL by the sample's."""
    scores = (0.0, 0.25, 1.0, 0.5)
    rollouts = tuple(Rollout(id=str(i), sample="s", context=Context(prompt=()), output=(),
                             turns=(Turn(token_ids=(1,)),)) for i in range(4))
    group = Group(sample=Sample(prompt=()), rollouts=rollouts,
                  verdicts=tuple(Verdict(score=s) for s in scores))
    ours = [signal.advantage for signal in GroupAdvantage()([group], "")]
    given = torch.tensor(scores)
    theirs = (given - given.mean()) / (given.std() + 1e-4)
    assert ours == pytest.approx((theirs * (4 / 3) ** 0.5).tolist(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_random_models(kind: str, tmp_path: Path) -> None:
    world = random_model(kind, tmp_path, 2 * UPDATES)
    made = record(world, UPDATES, 2, 4, 12)
    follows(grpo(world, made, Settings()), "kl")
    follows(grpo(world, made[:UPDATES // 2], TIGHT), "kl")
    follows(dpo(world, preferences(world, 2 * UPDATES, 12), Settings()), "margin")
