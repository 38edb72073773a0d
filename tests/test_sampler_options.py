"""What samplers are given: checks of every kind, options that draw nothing, and what they cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

import toyland
from scripted import asked, collect
from selfloop.collect.adaptive import AdaptiveTemperature
from selfloop.collect.beams import SentenceTree
from selfloop.collect.env import EnvSampler
from selfloop.collect.forced import ForcedPrefix, FromGold, Resumed, Rethink
from selfloop.collect.hinted import Distilled, Rationalise
from selfloop.collect.independent import Independent
from selfloop.collect.negatives import Negatives
from selfloop.collect.propose import AskOrAnswer, Propose, answering_or_asking
from selfloop.collect.refine import CritiqueRevise, RefinedContext, SelectAmong
from selfloop.collect.related import RelatedQuestions
from selfloop.collect.search import TreeSearch
from selfloop.collect.self_play import SpyGame
from selfloop.collect.views import MixedViews
from selfloop.engines.toy import ToyEngine
from selfloop.organize.verify.calibrated import steps_of
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.vote import MajorityVote
from selfloop.pictures import Library
from selfloop.recipes.csr import csr
from selfloop.recipes.visplay import visplay
from selfloop.roles import SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Rollout, Sample

# -- checks ---------------------------------------------------------------------------------------


async def by_a_model(generate, rollout: Rollout, sample: Sample, key: str) -> bool:
    """Right if the judge says so, who is asked under a key of its own."""
    (said,) = await generate(sample.context.said("user", "judge"), label=f"judge/{key}")
    return said.text == "yes"


def by_the_chain(rollout: Rollout, rationale) -> bool:
    return rationale == asked().rationale and "cat" in rollout.text


def never_reads(rollout: Rollout) -> bool:
    raise ValueError("no such formula")


def needs_all(rollout: Rollout, engine) -> bool:
    return True


@pytest.mark.parametrize("check", [by_a_model, by_the_chain])
@pytest.mark.parametrize("right", [True, False])
def test_a_check_within_a_sampler_is_given_what_it_names(check, right):
    def says(request, i):
        judged = request.context.text.endswith("judge")
        return ("yes" if right else "no") if judged else "a cat" if right else "a dog"

    hinted, _ = collect(Rationalise(check, n=2), says)
    assert len(hinted) == (2 if right else 4)
    searched, _ = collect(TreeSearch(check, budget=3), says)
    assert {r.sampling["solved"] for r in searched} == {right}


def test_a_check_that_fails_stops_no_run_and_is_no_zero():
    """As in stage 2; a single formula that cannot be read would else end the run for good."""
    plain, _ = collect(Rationalise(never_reads, n=2), lambda r, i: "a dog")
    assert len(plain) == 2, "could not tell, so there is no hint"
    searched, _ = collect(TreeSearch(never_reads, budget=2), lambda r, i: "a dog")
    assert {r.sampling["check"] for r in searched} == {None}
    for rollout in (*plain, *searched):
        assert rollout.sampling["check_error"].endswith("raised ValueError: no such formula")


@pytest.mark.parametrize(("check", "name"), [(MajorityVote(), "group"), (needs_all, "engine")])
@pytest.mark.parametrize("sampler", [Rationalise, TreeSearch])
def test_a_check_that_judges_no_single_answer_is_refused(sampler, check, name):
    with pytest.raises(SelfloopError, match=f"{sampler.__name__}.check=.*it asks for '{name}'"):
        sampler(check)


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [
    Independent, ForcedPrefix, Resumed, FromGold, Rethink, Distilled, CritiqueRevise, SelectAmong,
    RefinedContext, Propose, MixedViews, Negatives, AdaptiveTemperature, RelatedQuestions])
@pytest.mark.parametrize("n", [0, -2])
def test_samplers_that_would_draw_nothing_are_refused(sampler, n):
    with pytest.raises(SelfloopError, match=rf"{sampler.__name__}\(n={n}\): must be at least 1"):
        sampler(n=n)


@pytest.mark.parametrize(("make", "said"), [
    (lambda: EnvSampler(dict, max_turns=0), r"EnvSampler\(max_turns=0\): must be at least 1"),
    (lambda: Resumed(op="blurr"), r"Resumed\(op='blurr'\): no such picture operation"),
    (lambda: Resumed(op="blur", severity=2), r"Resumed\(severity=2\): expected"),
    (lambda: Resumed(kept=1.5), r"Resumed\(kept=1.5\): expected a share"),
    (lambda: FromGold(kept=-1), r"FromGold\(kept=-1\): expected a share"),
    (lambda: Rethink(share=2), r"Rethink\(share=2\): expected a share"),
    (lambda: Rethink(n=2, share=0.25), "none of 2 answers would be gone on with"),
    (lambda: Independent(n=8, views=0.05), "none of 8 draws would see a changed picture"),
    (lambda: Rethink(triggers=()), "give one trigger at least"),
    (lambda: SpyGame(severity=0), "or the spy sees what the others do"),
    (lambda: SpyGame(severity=2), "at most 1"),
])
def test_options_are_refused_when_the_sampler_is_built(make, said):
    with pytest.raises(SelfloopError, match=said):
        make()


def test_a_spy_game_needs_one_picture_or_two():
    with pytest.raises(SelfloopError, match=r"needs one picture, or two .* it has 3 media"):
        collect(SpyGame(), lambda r, i: "a", asked(n_pictures=3))


# -- sentences ------------------------------------------------------------------------------------


def test_sentences_end_in_chinese_as_well():
    """Else an answer is one sentence, cut at its 70th token and dropped."""
    def says(request, i):
        done = request.sampling.prefix.count("\u3002")
        return "" if done == 3 else f"\u8fd9\u662f\u7b2c{i}\u53ea\u732b\u3002" * 9

    paths, _ = collect(SentenceTree(width=2, depth=4), says)
    assert {len(r.sampling["path"]) for r in paths} == {4} and \
        all(r.finish_reason == "stop" for r in paths)
    assert all(len(steps_of(r, csr(exact).verifier.stop)) == 3 for r in paths), "the end is empty"


# -- questions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "asked_next"), [
    ("图中有几只猫？", True), ("كم قطة؟", True), ("¿Cuántos gatos hay?", True),
    ("图中有几只猫？红的吗？", False), ("几只猫? 图中？", False), ("图中有猫。", False)])
def test_questions_in_other_scripts(text, asked_next):
    drawn, _ = collect(Propose(n=1, answers=0, checks=0),
                       lambda r, i: f"<question>{text}</question>")
    assert drawn[0].sampling["proposed"] == (text if asked_next else None)


def test_nobody_asks_about_a_picture_that_is_not_there(tmp_path):
    """A data set with some text-only problems goes on: those are asked nothing."""
    text_only = asked("2 + 2 ?", n_pictures=0)
    assert collect(Propose(), lambda r, i: "<question>what is it?</question>", text_only)[0] == []
    words = ("<question>odd?</question>", "<question>red?</question>", "yes")
    loop = visplay(toyland.paid, asked=4, judged=3, n=3, max_new_tokens=1, samples=4, steps=2,
                   iterations=1, low=0.0, high=1.0)
    run(replace(loop, gate=None, evaluation=None), [text_only, *toyland.samples(tmp_path, 3)],
        {"solver": ToyEngine(words, seed=1)}, tmp_path / "run",
        library=Library(tmp_path / "images"))
    manifest = RunFolder(tmp_path / "run").manifest(1)
    assert manifest["counts"]["problems"] > 4 and manifest["counts"]["proposed"]


# -- costs ----------------------------------------------------------------------------------------


class Plays:
    """Two turns."""

    def reset(self, sample: Sample, key: str):
        self.turn = 0
        return sample.context

    def step(self, text: str):
        self.turn += 1
        return ("go on",), 0.0, self.turn == 2


@pytest.mark.parametrize("sampler", [
    Rationalise(by_the_chain, n=3), Resumed(n=3), CritiqueRevise(n=2, rounds=2),
    SelectAmong(n=3, votes=2), RefinedContext(n=3, rounds=2), Propose(n=2, answers=3, checks=2),
    Negatives(causes=("blur", "eliciting"), n=2, blind=True),
    Negatives(causes=("blur", "eliciting", "mask"), n=2, pick_one=True),
    EnvSampler(Plays, n=3, max_turns=2), SentenceTree(width=3, top=1, bottom=1, depth=2),
    TreeSearch(lambda rollout: False, budget=2, children=2)], ids=lambda s: type(s).__name__)
def test_a_plan_counts_what_is_drawn(sampler):
    def says(request, i):
        if request.context.text.endswith("<question> and </question>."):
            return f"<question>what is in place {i}?</question>"
        return "yes" if "Answer yes or no" in request.context.text else f"it is {i}.\n"

    _, engine = collect(sampler, says)
    assert sum(request.n for request in engine.asked) == sampler.per_problem


def test_a_plan_counts_own_questions_and_their_answers():
    assert AskOrAnswer(Propose(n=2, answers=0, checks=3), Independent(n=5)).per_problem == 18
    assert answering_or_asking("own", Propose(1, 0, 0), Independent(n=5)) == Independent(n=5)
