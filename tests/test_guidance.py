"""Feedback: what a step found is the guidance, and changes what the next step draws."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

import toyland
from killing import contents
from scripted import asked, collect
from selfloop.collect import adaptive
from selfloop.collect.independent import Independent
from selfloop.collect.propose import EASIER, HARDER, PROPOSE, VISIBLE
from selfloop.collect.steered import Steered, plain_or_steered
from selfloop.collect.told import longest
from selfloop.config import RunConfig
from selfloop.engines.toy import EOS, ToyEngine
from selfloop.loop import Learn, Loop
from selfloop.methods import build_loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.refine.curriculum import Stage, Stages
from selfloop.organize.refine.learnt import Learnt
from selfloop.organize.signals import Demonstrate
from selfloop.organize.verify.questions import QuestionReward
from selfloop.pictures import Library
from selfloop.recipes.grpo import grpo
from selfloop.recipes.mm_upt import mm_upt
from selfloop.recipes.r3v import r3v
from selfloop.recipes.star import star
from selfloop.recipes.visplay import visplay
from selfloop.roles import Optim, SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
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


# -- whole loops ----------------------------------------------------------------------------------

QUESTIONS = tuple(f"<question>{q}?</question>" for q in ("why", "who", "where", "when"))
MANY = tuple("abcdefghijklmnop")


class Decided(ToyEngine):
    """A toy that says one of these words, each as likely, and then ends or never does."""

    def __init__(self, *said: str, endless: bool = False) -> None:
        self.said, self.endless = said, endless
        super().__init__(tuple(dict.fromkeys((*said, "yes", "no"))), contexts=512, scale=0.0)

    def _start(self, table) -> None:
        table[:, :, [self.ids[word] for word in self.said]] += 30
        table[:, 1:, EOS] += -100 if self.endless else 60
        super()._start(table)





def ran(loop, folder, engines, answers=("yes", "no")) -> RunFolder:
    """A run on twelve toy problems whose answers are these in turn; nothing moves the weights."""
    train = [s.model_copy(update={"answer": answers[i % len(answers)]})
             for i, s in enumerate(toyland.samples(folder.parent / "data", 12))]
    slow = {role: replace(how, optim=replace(how.optim, lr=1e-9))
            for role, how in loop.learn.items()}
    run(replace(loop, gate=None, evaluation=None, learn=slow), train, engines, folder,
        library=Library(folder / "images"))
    return RunFolder(folder)


def both(*said: str) -> dict[str, ToyEngine]:
    return {"solver": Decided(*said), "proposer": Decided(*QUESTIONS)}


def instructions(found: RunFolder, step: int) -> set[str]:
    """What the proposers of a step were told."""
    return {r.context.text.strip() for g in found.groups(step) for r in g.rollouts
            if r.role == "proposer"}


def heats(found: RunFolder, step: int) -> set[float]:
    """The temperatures of a step's draws."""
    return {round(t, 6) for t in temperatures(found.groups(step))}


def draws(found: RunFolder, step: int) -> dict[str, list[int]]:
    """{answer: how many draws each problem with that answer got}."""
    told: dict[str, list[int]] = {}
    for group in found.groups(step):
        told.setdefault(group.sample.answer, []).append(len(group.rollouts))
    return told


ASKED = {"steps": 2, "iterations": 1, "samples": 4, "max_new_tokens": 2}


@pytest.mark.parametrize(("words", "checks", "line", "learnt"), [
    (("a",), 0, HARDER, {"vote_share": 1.0}),
    (MANY, 0, EASIER, None),
    (("no",), 3, VISIBLE, {"unanswerable": 1.0}),
    (("yes",), 3, HARDER, {"unanswerable": 0.0, "vote_share": 1.0}),
])
@pytest.mark.parametrize("steer", [False, True])
def test_visplay_asks_as_the_last_step_learnt(tmp_path, words, checks, line, learnt, steer):
    loop = visplay(toyland.exact, asked=3, judged=10, n=3, checks=checks, steer=steer, **ASKED)
    found = ran(loop, tmp_path / "run", both(*words))
    assert instructions(found, 0) == {PROPOSE}
    assert instructions(found, 1) == {f"{PROPOSE}\n{line}" if steer else PROPOSE}
    guidance = found.manifest(0)["guidance"]
    assert not steer or learnt in (None, guidance["learnt"])
    assert steer or guidance.keys() == {"samples"}


@pytest.mark.parametrize(("words", "checks", "line", "at"), [
    # the vote on this step's questions is taken in the next, and heard of in the one after
    (("a",), 0, HARDER, 2), (MANY, 0, EASIER, 2), (("no",), 3, VISIBLE, 1)])
@pytest.mark.parametrize("steer", [False, True])
def test_mm_upt_asks_as_the_last_steps_learnt(tmp_path, words, checks, line, at, steer):
    loop = mm_upt(toyland.exact, questions="direct", asked=2, n=10, checks=checks, steer=steer,
                  **{**ASKED, "steps": 3})
    found = ran(loop, tmp_path / "run", both(*words))
    told = [instructions(found, step) for step in range(3)]
    assert told[:at] == [{PROPOSE}] * at
    assert told[at] == {f"{PROPOSE}\n{line}" if steer else PROPOSE}


def test_each_question_has_one_vote_share_and_unread_ones_none():
    rollouts, _ = collect(visplay(toyland.exact, asked=4, judged=4).sampler, lambda r, i:
                          (QUESTIONS[0], QUESTIONS[0], QUESTIONS[1], "hm")[i]
                          if "Ask one" in r.context.text else "ab"[i % 2 * ("who" in
                                                                          r.context.text)])
    group = Group(sample=asked(), rollouts=tuple(rollouts))
    verdicts = visplay(toyland.exact).verifier(group)
    shares = [v.parts["vote_share"] for v in verdicts if "vote_share" in v.parts]
    assert shares == [1.0, 1.0, 0.5], "the second is the first one asked again"
    judged = group.model_copy(update={"verdicts": tuple(verdicts)})
    assert Learnt()([judged], {})[1]["guidance"]["learnt"]["vote_share"] == 0.75
    assert "vote_share" not in QuestionReward()(Group(sample=asked(), rollouts=tuple(
        r for r in rollouts if r.role == "proposer")))[0].parts, "nobody answered"


@pytest.mark.parametrize("recipe", [star, grpo])
@pytest.mark.parametrize("steer", [False, True])
def test_draws_follow_what_the_last_step_learnt_of_each_problem(tmp_path, recipe, steer):
    loop = recipe(toyland.paid, n=8, max_new_tokens=2, samples=12, iterations=3, steer=steer,
                  **({"steps": 1} if recipe is grpo else {"views": 0.0}))
    found = ran(loop, tmp_path / "run", Decided("yes"))
    assert draws(found, 0) == {"yes": [8] * 6, "no": [8] * 6}
    assert heats(found, 0) == {1.0}
    after = draws(found, 1)
    if not steer:
        assert after == draws(found, 0) and found.manifest(0)["guidance"] == {}
        return
    guidance = found.manifest(0)["guidance"]
    assert guidance["learnt"] == {"in_band": 0.0, "zero_variance": 1.0, "saturated": 0.5,
                                  "hopeless": 0.5}
    assert set(guidance["flat"].values()) == {1} and len(guidance["flat"]) == 12
    assert set(after["yes"]) == {0, 2} and set(after["no"]) == {0, 16}, "fewer, more, or none"
    assert heats(found, 1) == {1.25}
    drawn = {g.sample.id for g in found.groups(1) if g.rollouts}
    assert found.manifest(1)["guidance"]["flat"] == {
        name: 2 if name in drawn else 1 for name in guidance["flat"]}


def test_nobody_sits_out_while_the_groups_teach(tmp_path):
    loop = grpo(toyland.paid, n=8, max_new_tokens=2, samples=12, iterations=1, steps=2, steer=True)
    found = ran(loop, tmp_path / "run", Decided("yes", "no"))
    assert found.manifest(0)["guidance"]["learnt"]["in_band"] == 1.0
    assert draws(found, 1) == {"yes": [8] * 6, "no": [8] * 6}


def test_new_problems_get_more_draws_while_the_others_were_hopeless(tmp_path):
    for steer, n in ((False, 4), (True, 8)):
        loop = grpo(toyland.paid, n=4, max_new_tokens=2, samples=4, iterations=1, steps=2,
                    steer=steer)
        found = ran(loop, tmp_path / f"run{steer}", Decided("yes"), answers=("no",))
        assert draws(found, 0) == {"no": [4] * 4} and draws(found, 1) == {"no": [n] * 4}


@pytest.mark.parametrize(("gain", "heat"), [(0.0, 1.0), (0.4, 1.2), (9.0, 1.5)])
def test_r3v_gets_hotter_while_groups_are_right(tmp_path, gain, heat):
    loop = r3v(toyland.paid, n=3, max_new_tokens=2, iterations=2, updates=1, gain=gain)
    found = ran(loop, tmp_path / "run", Decided("yes"))
    assert found.manifest(0)["guidance"]["learnt"]["saturated"] == 0.5
    assert [heats(found, step) for step in range(2)] == [{1.0}, {heat}]


def test_mm_upt_gets_hotter_while_all_agree(tmp_path):
    for steer, heat in ((False, 0.7), (True, 1.05)):
        loop = mm_upt(toyland.exact, n=4, steer=steer, **ASKED)
        found = ran(loop, tmp_path / f"run{steer}", Decided("a"))
        assert [heats(found, step) for step in range(2)] == [{0.7}, {heat}]


def test_a_run_that_was_steered_resumes_to_the_same_bits(tmp_path):
    loop = grpo(toyland.paid, n=4, max_new_tokens=2, samples=12, iterations=1, steps=3,
                save_every=1, steer=True)
    whole, again = (ran(loop, tmp_path / name, ToyEngine(("yes", "no"), seed=1))
                    for name in ("whole", "again"))
    assert whole.manifest(1)["guidance"]["flat"], "there is something to remember"
    for file in (*again.step(2).iterdir(), *again.iteration(0).iterdir()):
        file.unlink()
    (again.checkpoint(3) / "manifest.json").unlink()
    ran(loop, tmp_path / "again", ToyEngine(("yes", "no"), seed=1))
    assert contents(again.path) == contents(whole.path)


@pytest.mark.parametrize(("method", "options"), [
    ("grpo", {}), ("star", {}), ("mm_upt", {"checks": 3, "questions": "direct"}),
    ("visplay", {"checks": 3})])
def test_steering_is_reached_from_run_yaml(method, options):
    def built(**more):
        return repr(build_loop(RunConfig.model_validate({
            "data": {"train": "train.jsonl"}, "model": "embedded", "verifier": "exact",
            "method": method, "options": more})))

    assert "Learnt(" in built(steer=True, **options) and "Steered(" in built(steer=True)
    assert "Learnt(" not in built() and "Steered(" not in built()


def test_steered_draws_see_no_views():
    with pytest.raises(SelfloopError, match="leave out steer or the views"):
        grpo(toyland.exact, steer=True, view_share=0.5)


# -- truth tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("again", "flat", "in_band", "out"), [
    (1.0, 9, 0.0, 0.0), (0.5, 0, 0.0, 0.0), (0.5, 1, 0.0, 0.5), (0.5, 2, 0.0, 0.75),
    (0.5, 2, 0.6, 0.3), (0.5, 2, 1.0, 0.0), (0.5, 2, None, 0.0), (0.0, 1, 0.0, 1.0)])
def test_sitting_out_truth_table(again, flat, in_band, out):
    assert Steered(again=again).sits_out(flat, in_band) == pytest.approx(out)


@pytest.mark.parametrize(("ahead", "difficulty", "hopeless", "n"), [
    (False, None, 1.0, 4), (True, None, None, 4), (True, None, 0.5, 7), (True, None, 1.0, 10),
    (True, 0.5, 1.0, 4), (True, 0.0, 1.0, 2), (True, 1.0, 0.0, 10)])
def test_draws_truth_table(ahead, difficulty, hopeless, n):
    assert Steered(n=4, most=10, ahead=ahead).draws(difficulty, hopeless) == n


@pytest.mark.parametrize(("n", "least", "most"), [(1, 1, 2), (3, 2, 6), (8, 2, 16), (16, 4, 32)])
def test_steered_stays_around_the_plain_number(n, least, most):
    sampler = plain_or_steered(True, n, 0.8, 32)
    assert (sampler.least, sampler.n, sampler.most) == (least, n, most)
    assert plain_or_steered(False, n, 0.8, 32) == Independent(n, 0.8, 32)


def test_flat_groups_are_counted_in_a_row():
    first, second = asked("first ?"), asked("second ?")

    def judged(sample, *scores):
        drawn, _ = collect(Independent(n=len(scores)), lambda r, i: "a", sample) \
            if scores else ([], None)
        return Group(sample=sample, rollouts=tuple(drawn),
                     verdicts=tuple(Verdict(score=s) for s in scores))

    state: dict = {}
    for a, b, flat in [
            ((1, 1), (0, 0), {first.id: 1, second.id: 1}),
            ((1, 1), (), {first.id: 2, second.id: 1}),
            ((1,), (0, 1), {first.id: 2}), ((None, None), (0, 0), {first.id: 2, second.id: 1}),
            ((0, 0), (0, 0), {first.id: 3, second.id: 2})]:
        _, update = Learnt()([judged(first, *a), judged(second, *b)], state)
        state = {**state, **update}
        assert update["guidance"]["flat"] == flat
    assert Learnt(memory=1)([judged(first, 1)], state)[1]["guidance"]["flat"] == {first.id: 3}


# -- length caps by stage -------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [
    Independent(n=2, max_new_tokens=1), Steered(n=2, max_new_tokens=1),
    adaptive.AdaptiveTemperature(n=2, share=0.5, max_new_tokens=1)],
    ids=lambda s: type(s).__name__)
def test_length_caps_grow_by_stage(tmp_path, sampler):
    stages = Stages(tuple(Stage(f"up to {cap}", 1, guidance=(("max_new_tokens", cap),))
                          for cap in (1, 2, 4)))
    for name, steps, lengths in (("staged", (stages,), [1, 2, 4, 4]), ("plain", (), [1, 1, 1, 1])):
        loop = Loop(name=name, sampler=sampler, verifier=toyland.paid, iterations=1, steps=4,
                    samples=6, learn={"solver": Learn(organizer=Chain(steps, Demonstrate()),
                                                      loss=SFT(), optim=Optim(updates=1))})
        found = ran(loop, tmp_path / name, Decided("yes", endless=True))
        assert [{r.tokens for g in found.groups(step) for r in g.rollouts}
                for step in range(4)] == [{n} for n in lengths]


@pytest.mark.parametrize("told", ["8", 0, -1, True, 2.0])
def test_a_length_cap_that_is_none_is_named(told):
    with pytest.raises(SelfloopError, match=r'guidance\["max_new_tokens"\] is'):
        longest({"max_new_tokens": told}, 8)


def test_the_own_cap_holds_where_nothing_is_told():
    assert longest(None, 8) == longest({}, 8) == 8 and longest({"max_new_tokens": 3}, 8) == 3
