"""Every role contract runs on the toy engine, improves, and survives a kill at any write."""

from __future__ import annotations

import random

import pytest

import toyland
from killing import DONE, KILLED, contents, perform
from selfloop.store import RunFolder

NAMES = sorted(toyland.loops())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run of every contract, in this process."""
    found = {"data": tmp_path_factory.mktemp("data")}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        found[name] = (folder, toyland.perform(name, folder, found["data"]))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_runs_to_the_end(whole, name):
    folder, iterations = whole[name]
    loop = toyland.loops()[name]
    assert len(iterations) == loop.iterations
    run = RunFolder(folder)
    manifest = run.manifest(0)
    assert manifest["counts"]["drawn"] > 0
    assert all(manifest["counts"][f"signals_{role}"] > 0 for role in loop.learn)
    learned = run.json("steps", "000000", "learned.json")
    assert all(learned[role]["updates"] > 0 for role in loop.learn)


def test_environment_turns_see_the_new_picture_and_train_only_drawn_tokens(whole):
    folder, _ = whole["environment"]
    group = RunFolder(folder).groups(0)[0]
    first, second = group.rollouts[0].turns
    assert len(first.media) == 1 and len(second.media) == 2
    assert second.media[1].ops[0].name == "blank"
    assert second.prompt_token_ids[:len(first.prompt_token_ids)] == first.prompt_token_ids
    from selfloop.engines.toy import ToyEngine
    from selfloop.types import Branch
    rows = ToyEngine(seed=1).rows(Branch.drawn(group.rollouts[0]))
    assert len(rows) == 1
    assert rows[0].count == len(first.token_ids) + len(second.token_ids)


def test_mdpo_pairs_have_three_branches_and_the_cropped_one_differs(whole):
    folder, _ = whole["mdpo"]
    pair = RunFolder(folder).signals(0, "solver")[0]
    assert set(pair.branches) == {"chosen", "rejected", "corrupted"}
    assert pair.branches["corrupted"].context.media[0].ops[0].name == "crop"
    corrupted, chosen = pair.branches["corrupted"], pair.branches["chosen"]
    assert corrupted.turns[0].token_ids == chosen.turns[0].token_ids


def test_both_roles_of_self_play_learn(whole):
    folder, _ = whole["proposer"]
    run = RunFolder(folder)
    for role in ("solver", "proposer"):
        assert {s.role for s in run.signals(0, role)} == {role}
    right = [run.manifest(s)["monitors"]["mean_score"] for s in range(4)]
    assert right[-1] > right[0]


def test_stale_steps_are_drawn_by_the_version_before(whole):
    run = RunFolder(whole["stale"][0])
    assert [run.manifest(s)["drawn_by"] for s in range(4)] == [0, 0, 1, 2]
    versions = {r.policy_version for g in run.groups(3) for r in g.rollouts}
    assert versions == {2}


def test_another_wave_was_drawn(whole):
    run = RunFolder(whole["waves"][0])
    assert run.manifest(0)["counts"]["problems"] > 4
    ids = run.manifest(0)["samples"]
    assert len(ids) == len(set(ids))


def test_save_every_keeps_few_checkpoints_and_learning_improves(whole):
    _, iterations = whole["seldom"]
    assert iterations[-1].reward > iterations[0].reward


@pytest.fixture(scope="module")
def resumed(whole, tmp_path_factory):
    """Every contract killed once at a seeded random write, and run again: (exit codes, folder)."""
    folders = {name: tmp_path_factory.mktemp(f"killed-{name}") for name in NAMES}
    ends = perform(whole["data"], [
        (name, folder, moment) for name, folder in folders.items()
        for moment in (random.Random(f"kill {name}").randrange(10, 60), None)])
    return {name: (ends[2 * i:2 * i + 2], folders[name]) for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("name", NAMES)
def test_killed_anywhere_and_resumed_equals_uninterrupted(whole, resumed, name):
    """Every write boundary is covered in test_kill.py."""
    ends, folder = resumed[name]
    assert ends == [KILLED, DONE]
    assert contents(folder) == contents(whole[name][0])
