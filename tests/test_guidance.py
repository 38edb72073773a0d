"""Feedback: what a step found is the guidance, and changes what the next step draws."""

from __future__ import annotations

import itertools

import pytest

from scripted import asked, collect
from selfloop.collect import adaptive
from selfloop.organize.chain import Chain
from selfloop.organize.signals import Demonstrate
from selfloop.types import Group, Verdict

# -- the adaptive temperature ---------------------------------------------------------------------


def of_step(sampler, samples, guidance, right=lambda r: True) -> list[Group]:
    """What a sampler draws of these samples, each answer judged by `right(rollout)`."""
    found = []
    for sample in samples:
        drawn, _ = collect(sampler, lambda r, i: "a", sample, guidance)
        found.append(Group(sample=sample, rollouts=tuple(drawn),
                           verdicts=tuple(Verdict(score=right(r)) for r in drawn)))
    return found


def temperatures(groups) -> set[float]:
    return {r.turns[0].temperature for g in groups for r in g.rollouts}


def on_slice(share: float):
    """(samples of the slice, the others)."""
    asked_for = [asked(f"number {i} ?") for i in range(40)]
    here = [s for s in asked_for if adaptive.keys.uniforms(f"slice/{s.id}", 1)[0] < share]
    return here, [s for s in asked_for if s not in here]


def test_a_chosen_temperature_outlasts_steps_without_the_slice():
    sampler = adaptive.AdaptiveTemperature(grid=(0.5, 1.5), start=1.0, share=0.05, n=2)
    chain = Chain(steps=(adaptive.ChooseTemperature(),), maker=Demonstrate())
    here, others = on_slice(0.05)
    far = [s for s in others if adaptive.keys.uniforms(f"slice/{s.id}", 1)[0] > 0.5][:3]
    state, guidance, seen = {}, {}, []
    for samples in (far, here, far, far):
        groups = of_step(sampler, samples, guidance,
                         lambda r: r.turns[0].temperature == 1.5)
        seen.append(temperatures(groups))
        _, state, guidance = chain(groups, state, "k")
    assert seen == [{1.0}, {0.5, 1.5}, {1.5}, {1.5}]
    assert guidance == {"temperature": 1.5, "empty_slices": 2}


def test_a_slice_that_was_drawn_but_not_judged_changes_nothing():
    sampler = adaptive.AdaptiveTemperature(grid=(0.5, 1.5), share=1.0, n=2)
    chain = Chain(steps=(adaptive.ChooseTemperature(),), maker=Demonstrate())
    groups = of_step(sampler, [asked()], {}, lambda r: None)
    assert chain(groups, {}, "k")[1:] == ({}, {})
    _, state, guidance = chain(groups, {"temperature": 0.7, "empty_slices": 2}, "k")
    assert (state, guidance) == ({"temperature": 0.7, "empty_slices": 0}, {"temperature": 0.7})


@pytest.mark.parametrize(("share", "most"), [(0.1, 4), (0.5, 1), (1.0, 0)])
def test_steps_without_a_slice_end(share, most):
    sampler = adaptive.AdaptiveTemperature(grid=(0.5, 1.5), share=share, n=1)
    chain = Chain(steps=(adaptive.ChooseTemperature(),), maker=Demonstrate())
    longest = 0
    for sample in (asked(f"number {i} ?") for i in range(30)):  # each the only one of its run
        state, guidance = {}, {}
        for empty in itertools.count():
            groups = of_step(sampler, [sample], guidance)
            _, state, guidance = chain(groups, state, "k")
            if len(groups[0].rollouts) == 2:
                break
            assert guidance["empty_slices"] == empty + 1, "the manifest says so"
        longest = max(longest, empty)
        assert state.get("empty_slices", 0) == 0 and "empty_slices" not in guidance
    assert longest == most


def test_no_share_asks_for_no_slice():
    sampler = adaptive.AdaptiveTemperature(grid=(0.5, 1.5), share=0.0, n=1)
    (group,) = of_step(sampler, [asked()], {"empty_slices": 10**9})
    assert len(group.rollouts) == 1
