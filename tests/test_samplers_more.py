"""The further samplers: what they ask of the model, what they mark, and what they leave out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

import toyland
from scripted import Scripted, asked, collect, picture
from selfloop.collect import adaptive, forced, refine, self_play, tools
from selfloop.collect.beams import SentenceTree, stopped
from selfloop.collect.conditioning import put_under
from selfloop.collect.env import EnvSampler
from selfloop.collect.hinted import Distilled, Rationalise
from selfloop.collect.independent import Independent
from selfloop.collect.negatives import EXCHANGED, WORSE_SEEN
from selfloop.collect.propose import Propose, parse_question
from selfloop.collect.search import Node, TreeSearch
from selfloop.collect.swapped_pictures import Pool
from selfloop.collect.tags import one_number, one_of, tagged
from selfloop.collect.views import Anneal, MixedViews
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.refine.own_questions import proposed_samples
from selfloop.organize.signals import Demonstrate, GroupAdvantage
from selfloop.organize.verify.environment import EnvironmentReturn
from selfloop.organize.verify.frame_order import FrameOrder, reordered
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library
from selfloop.roles import Optim, SelfloopError, reads
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Group, Message, Part, Rollout, Sample, Verdict

# -- parsers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "value", "why"), [
    ("<a>x</a>", "x", ""),
    ("say <A> x y </A> now", "x y", ""),
    ("", None, "no <a>"),
    ("<a> </a>", None, "is empty"),
    ("<a>x</a><a>y</a>", None, "more than once"),
    ("<a><a>x</a></a>", None, "more than once"),
    ("<a>x", None, "do not pair"),
    ("x</a>", None, "do not pair"),
    ("</a>x<a>", None, "do not pair"),
    ("<a>x<b>y</b></a>", "x<b>y</b>", ""),
    ("<ab>x</ab>", None, "no <a>"),
])
def test_tags_truth_table(text, value, why):
    found = tagged(text, "a")
    assert found.value == value and why in found.why and bool(found.why) == (value is None)


@pytest.mark.parametrize(("text", "value"), [
    ("2", "2"), ("Answer 2.", "2"), ("2 or 2", "2"), ("", None), ("1 or 2", None), ("7", None),
    ("0", None), ("2.5", None), ("none", None), ("9" * 5000, None),
])
def test_one_number_truth_table(text, value):
    assert one_number(text, 1, 3).value == value


@pytest.mark.parametrize(("text", "value"), [
    ("Yes.", "yes"), ("no", "no"), ("yes or no", None), ("", None), ("I know", None)])
def test_one_of_truth_table(text, value):
    assert one_of(text, ("yes", "no")).value == value


@pytest.mark.parametrize(("text", "value"), [
    ("<question>What is it?</question>", "What is it?"),
    ("<question>What\nis  it?</question>", "What is it?"),
    ("What is it?", None), ("<question>It is red.</question>", None),
    ("<question>What? Why?</question>", None), ("<question><b>a?</question>", None),
    ("<question>" + "a" * 400 + "?</question>", None), ("<question></question>", None),
])
def test_questions_truth_table(text, value):
    found = parse_question(text)
    assert found.value == value and bool(found.why) == (value is None)


# -- mixed views and what steps learn -------------------------------------------------------------


@pytest.mark.parametrize(("anneal", "step", "factor"), [
    (Anneal("linear", steps=10), 0, 1.0), (Anneal("linear", steps=10), 5, 0.5),
    (Anneal("linear", steps=10), 99, 0.0), (Anneal("power", steps=10, rate=2), 5, 0.75),
    (Anneal("exponential", steps=10, rate=0.5), 8, 0.75),
    (Anneal("exponential", steps=10, rate=0.5), 10, 0.0),
    (Anneal("sigmoid", steps=100), 40, 0.5), (Anneal("constant"), 77, 1.0),
])
def test_annealing_truth_table(anneal, step, factor):
    assert anneal(step) == pytest.approx(factor)
    curve = [anneal(s) for s in range(anneal.steps + 2)]
    assert curve == sorted(curve, reverse=True) and all(0 <= f <= 1 for f in curve)


def test_bad_annealing_is_refused():
    for bad in ({"shape": "cosine"}, {"steps": 0}, {"shape": "exponential", "rate": 2}):
        with pytest.raises(SelfloopError):
            Anneal(**bad)


def test_mixed_views_draw_n_clean_and_n_noisy_which_fade():
    def by_step(step):
        return collect(MixedViews(n=3, anneal=Anneal("linear", steps=4)),
                       lambda r, i: "a cat", guidance={"step": step})[0]

    assert [len(r.context.media[0].ops) for r in by_step(0)] == [0] * 3 + [1] * 3
    assert [by_step(s)[-1].context.media[0].ops[0].severity for s in (0, 2)] == [0.5, 0.25]
    assert all(not r.context.media[0].ops for r in by_step(4)) and len(by_step(4)) == 6
    with pytest.raises(SelfloopError, match="whole number"):
        by_step("late")


def test_noisy_answers_can_be_trained_on_the_clean_picture():
    rollouts, _ = collect(MixedViews(n=1, train_clean=True), lambda r, i: "a cat")
    noisy = rollouts[1]
    assert noisy.context == asked().context and noisy.turns[0].prompt_token_ids == ()
    assert noisy.turns[0].logprobs is None and noisy.turns[0].token_ids
    assert noisy.sampling["drawn_under"]["media"][0]["ops"][0]["name"] == "diffusion"
    assert len(collect(MixedViews(n=2), lambda r, i: "x", asked(n_pictures=0))[0]) == 4


def frames_asked(n: int) -> Sample:
    return asked("what happens ?", n_pictures=n)


def test_shuffled_views_stay_under_what_they_saw_and_need_two_pictures():
    views = MixedViews(n=2, op="shuffle", severity=1.0, anneal=Anneal("constant"))
    rollouts, _ = collect(views, lambda r, i: "a", frames_asked(3))
    sample = frames_asked(3)
    assert [reordered(r, sample) for r in rollouts] == [False, False, True, True]
    assert all(r.turns[0].logprobs is not None for r in rollouts)
    alone, engine = collect(views, lambda r, i: "a", frames_asked(1))
    assert len(alone) == 4 and len(engine.asked) == 1 and not any(
        "severity" in r.sampling for r in alone)


@pytest.mark.parametrize("op", [*WORSE_SEEN, *EXCHANGED, "view", "noise", "zoom"])
def test_mixed_views_take_every_image_side_cause(op):
    pool = Pool(tuple(picture(i) for i in range(4)), (0, 2**10 - 1, 2**20 - 1, 2**30 - 1))
    rollouts, _ = collect(MixedViews(n=1, op=op, severity=1, pool=pool, anneal=Anneal("constant")),
                          lambda r, i: "a", frames_asked(2))
    clean, worse = (r.context.media for r in rollouts)
    assert clean == frames_asked(2).media != worse and len(worse) == 2


@pytest.mark.parametrize(("build", "why"), [
    (lambda: MixedViews(op="shufle"), r"MixedViews\(op='shufle'\): no such picture operation"),
    (lambda: MixedViews(op="near"), "needs pool="),
    (lambda: MixedViews(op="page"), "no such picture operation"),
    (lambda: MixedViews(severity=1.5), r"MixedViews\(severity=1.5\): expected a number from 0"),
    (lambda: MixedViews(severity=float("nan")), "expected a number from 0"),
    (lambda: Independent(op="shuffle"), r"Independent\(op='shuffle'\): no such picture operation"),
    (lambda: Independent(severity=-0.1), "expected a number from 0"),
    (lambda: Independent(views=2), "expected a share from 0 to 1"),
])
def test_bad_views_are_refused_when_built(build, why):
    with pytest.raises(SelfloopError, match=why):
        build()


def test_ordered_and_shuffled_frames_are_learnt_from(tmp_path):
    """Video-R1's group through the loop: the bonus goes to ordered frames, shuffled ones to nobody.
    """
    media = toyland.pictures(tmp_path / "frames", 12)
    samples = [Sample(prompt=(Message(content=(*(Part(type="image") for _ in range(3)),
                                               Part(text="is it red ?"))),),
                      media=tuple(media[3 * i:3 * i + 3]), answer="yes") for i in range(4)]
    loop = Loop(
        name="t-grpo", verifier=FrameOrder(exact), gate=None, iterations=1, steps=3,
        sampler=MixedViews(n=4, op="shuffle", severity=1.0, anneal=Anneal("constant"),
                           max_new_tokens=1),
        learn={"solver": Learn(organizer=Chain(maker=GroupAdvantage()), loss=GRPO(),
                               optim=Optim(lr=0.1, updates=2))})
    run(loop, samples, ToyEngine(("yes", "no"), seed=1), tmp_path / "run",
        library=Library(tmp_path / "run" / "images"))
    folder, paid = RunFolder(tmp_path / "run"), []
    for step in range(3):
        shown = {r.id for g in folder.groups(step) for r in g.rollouts
                 if not reordered(r, g.sample)}
        for group in folder.groups(step):
            assert [reordered(r, group.sample) for r in group.rollouts] == [False] * 4 + [True] * 4
            paid += [v.score for v in group.verdicts[:4]]
            assert all(v.score is None and "shuffled" in v.parts for v in group.verdicts[4:])
        learnt = {i for s in folder.signals(step, "solver") for i in s.rollouts}
        assert learnt <= shown
    assert {0, 1.3} <= set(paid)


def test_several_turns_cannot_be_put_under_another_context():
    rollout = collect(MixedViews(n=1), lambda r, i: "a")[0][0]
    twice = rollout.model_copy(update={"turns": rollout.turns * 2})
    with pytest.raises(SelfloopError, match="2 turns"):
        put_under(asked().context, twice)


def test_the_step_is_counted_beside_what_else_is_known():
    state: dict = {}
    for step in (1, 2):
        _, update = adaptive.count_steps([], state)
        state |= update
        assert update["guidance"]["step"] == step
    _, update = adaptive.count_steps([], {"guidance": {"temperature": 0.7}})
    assert update["guidance"] == {"temperature": 0.7, "step": 1}


def on_grid(*rows: tuple[float, float | None, float]) -> Group:
    """(temperature, score, reward) of each draw of one problem."""
    drawn, _ = collect(forced.ForcedPrefix(text="", n=len(rows)), lambda r, i: f"{i}")
    return Group(sample=asked(), rollouts=tuple(
        r.model_copy(update={"sampling": {"grid": t}}) for r, (t, _, _) in
        zip(drawn, rows, strict=True)),
        verdicts=tuple(Verdict(score=s, parts={"prm": p}) for _, s, p in rows))


def test_reward_pass_at_k_truth_table():
    group = on_grid((1.0, 1, 0.1), (1.0, 0, 0.9), (1.0, 0, 0.8), (0.5, 1, 0.9), (0.5, None, 1.0),
                    (0.7, None, 1.0))
    for temperature, k, by, value in (
            (1.0, 2, "prm", 0.0), (1.0, 3, "prm", 1.0), (1.0, 1, "", 1.0), (0.5, 1, "prm", 1.0),
            (0.7, 2, "prm", None), (9.0, 2, "prm", None), (1.0, 2, "no such part", None)):
        assert adaptive.reward_pass([group], temperature, k, by) == value, (temperature, k, by)
    _, found = adaptive.ChooseTemperature(rank_by="prm")([group], {})
    assert found["guidance"] == {"temperature": 0.5, "reward_pass": {"0.5": 1.0, "1": 0.0}}


def test_temperature_ties_stay_and_nothing_known_changes_nothing():
    tie = on_grid((0.5, 1, 0), (0.9, 1, 0))
    choose = adaptive.ChooseTemperature()
    assert choose([tie], {})[1]["temperature"] == 0.5
    assert choose([tie], {"temperature": 0.9})[1]["temperature"] == 0.9
    assert choose([on_grid((0.5, None, 0))], {})[1] == {}


def test_adaptive_temperature_draws_the_grid_on_its_slice_only():
    grid = adaptive.AdaptiveTemperature(grid=(0.5, 1.5), n=2, share=1.0)
    rollouts, engine = collect(grid, lambda r, i: "a")
    assert [r.sampling["grid"] for r in rollouts] == [0.5, 0.5, 1.5, 1.5]
    assert [r.sampling.temperature for r in engine.asked] == [0.5, 1.5]
    _, engine = collect(replace(grid, share=0.0), lambda r, i: "a", guidance={"temperature": 0.7})
    assert [r.sampling.temperature for r in engine.asked] == [0.7]


# -- forced and hinted ----------------------------------------------------------------------------


def test_forced_tokens_are_never_trained():
    for sampler in (forced.ForcedPrefix(text="I see", n=2), forced.FromGold(n=2)):
        rollouts, engine = collect(sampler, lambda r, i: " a cat")
        for r in rollouts:
            (turn,) = r.turns
            prefix = engine.asked[0].sampling.prefix
            assert prefix and r.text == prefix + " a cat"
            assert engine.decode([t for t, m in zip(turn.token_ids, turn.mask, strict=True) if m]
                                 ) == " a cat"
    assert engine.asked[0].sampling.prefix == "I see ears. So"
    assert "rationale" in reads(forced.FromGold()) and not reads(forced.Rethink())


def test_resumed_answers_share_the_first_part_and_see_less():
    rollouts, engine = collect(forced.Resumed(n=2, op="blank"), lambda r, i: " one two three four")
    assert [r.sampling.get("resumed") for r in rollouts] == [
        None, None, rollouts[0].id, rollouts[1].id]
    assert engine.asked[-1].sampling.prefix == " one two"
    assert engine.asked[-1].context.media[0].ops[0].name == "blank"


def test_rethinking_goes_on_after_a_share_of_the_answers_that_ended():
    rollouts, _ = collect(forced.Rethink(n=8, share=0.25), lambda r, i: " yes")
    again = [r for r in rollouts if "rethought" in r.sampling]
    assert len(rollouts) == 10 and len(again) == 2
    for r in again:
        assert r.text == f"yes {r.sampling['trigger']} yes".replace("yes", " yes", 1)
        assert any(r.sampling["trigger"] in kind for kind in forced.TRIGGERS.values())
    cut = forced.Rethink(n=4, share=1, max_new_tokens=2)
    assert len(collect(cut, lambda r, i: " yes")[0]) == 4, "what was cut off is not gone on with"


def test_distilled_answers_stand_under_the_plain_question():
    rollouts, engine = collect(Distilled(n=2), lambda r, i: "Answer: cat")
    assert "step by step" in engine.asked[0].context.text
    assert all(r.context == asked().context and r.turns[0].logprobs is None for r in rollouts)


@pytest.mark.parametrize(("plain", "answer", "hinted"), [
    ("a dog", "a cat", 2), ("a cat", "a cat", 0), ("a dog", None, 0)])
def test_only_wrong_problems_get_the_hint(plain, answer, hinted):
    def says(request, index):
        return "a cat" if "The answer is" in request.context.text else plain

    rollouts, engine = collect(Rationalise(exact, n=2), says, asked(answer=answer))
    made = [r for r in rollouts if r.sampling.get("hinted")]
    assert len(made) == hinted and reads(Rationalise(exact)) == {"answer"}
    assert all(r.context == asked().context for r in made)
    if answer is not None and hinted:
        assert "The answer is a cat." in engine.asked[-1].context.text


# -- second looks ---------------------------------------------------------------------------------


def test_critique_and_revision_follow_each_answer():
    def says(request, index):
        text = request.context.text
        return "better" if "mended" in text else "bad" if "Compare" in text else "first"

    rollouts, engine = collect(refine.CritiqueRevise(n=2, rounds=2, keep_critiques=True), says)
    stages = [r.sampling["stage"] for r in rollouts]
    assert stages == ["answer", *["critique", "revision"] * 2] * 2
    assert rollouts[4].sampling["of"] == rollouts[2].id and rollouts[2].text == "better"
    plain, _ = collect(refine.CritiqueRevise(n=1, plain=True), says)
    assert [r.context for r in plain] == [asked().context] * 2
    assert [m.role for m in engine.asked[-1].context.prompt] == [
        "user", "assistant", "user", "assistant", "user"]


def test_choices_are_mapped_back_through_their_order():
    def says(request, index):
        listed = re.search(r"(\d)\. right", request.context.text)
        return listed[1] if listed else ["wrong", "right", "other"][index]

    rollouts, _ = collect(refine.SelectAmong(n=3, votes=6), says)
    choices = [r for r in rollouts if r.sampling["stage"] == "choice"]
    assert {r.sampling["chosen"] for r in choices} == {rollouts[1].id}
    assert len({r.text for r in choices}) > 1, "the order changes"
    undecided, _ = collect(refine.SelectAmong(n=2), lambda r, i: "1 or 2")
    assert undecided[-1].sampling["chosen"] is None and undecided[-1].sampling["why"]


def test_context_is_refined_from_the_one_before():
    def says(request, index):
        text = request.context.text
        if "What the picture shows" in text:
            return text.rsplit(": ", 1)[1]
        known = [int(d) for d in re.findall(r"d(\d)", text)]
        return f"d{1 + max(known, default=0)}"

    rollouts, _ = collect(refine.RefinedContext(n=1, rounds=3, keep=True), says)
    assert [r.text for r in rollouts] == ["d1", "d2", "d3", "d3"]
    assert rollouts[-1].context == asked().context
    assert rollouts[-1].sampling["description"] == "d3"
    assert len(collect(refine.RefinedContext(n=2, rounds=0), says)[0]) == 2


# -- trees ----------------------------------------------------------------------------------------


def sentences(request, index: int) -> str:
    """Sentences of growing length, so that log-probs rank them; after two, the end."""
    if request.sampling.prefix.count(".") >= 2:
        return ""
    return " " + "a" * (index + 1) + "."


def test_a_sentence_tree_keeps_the_best_and_the_worst():
    rollouts, engine = collect(SentenceTree(width=5, top=1, bottom=2), sentences)
    second = {r.sampling.prefix for r in engine.asked if r.sampling.prefix.count(".") == 1}
    assert second == {" a.", " aaaa.", " aaaaa."}
    assert rollouts[0].text == " a. a." and len(rollouts) == 3
    for r in rollouts:
        assert len(r.sampling["path"]) == 3 and r.finish_reason == "stop"
        assert sum(r.turns[0].mask) == len(r.turns[0].token_ids) and r.turns[0].logprobs is None


def test_a_sentence_tree_is_bounded_and_says_what_was_cut():
    rollouts, engine = collect(SentenceTree(width=2, depth=3), lambda r, i: " x.")
    assert [r.text for r in rollouts] == [" x. x. x."] and rollouts[0].finish_reason == "length"
    assert len(engine.asked) == 3, "equal sentences are one node"
    with pytest.raises(SelfloopError, match="temperature"):
        SentenceTree(temperature=0)


@pytest.mark.parametrize(("text", "prefix", "found"), [
    ("One. Two.", "One.", True), ("One. Two", "One.", False), ("One.", "One.", False),
    ('One. "Two." ', "One.", True), ("a\n\nb", "a\n", True)])
def test_what_ended_a_step_truth_table(text, prefix, found):
    assert stopped(text, prefix, (".", "\n\n")) == found


def test_ucb_is_the_formula():
    root = Node(visits=4, value=2)
    child = Node("a", 1, root, visits=2, value=1)
    assert child.ucb(1.0) == pytest.approx(0.5 + (1.3862943611 / 2) ** 0.5)
    assert Node("b", 1, root).ucb(1.0) == float("inf")
    child.credit(None)
    assert (child.visits, child.value, root.visits) == (3, 1.5, 5), "unjudged moves no mean"


def steps(right: str):
    """Two steps, then the answer: the path that begins with `right` is the one that is right."""
    def says(request, index):
        prefix = request.sampling.prefix
        if request.sampling.stop and prefix.count("\n") < 2:
            return "abc"[index] + "\n"
        return "a cat" if prefix.startswith(right) else "a dog"
    return says


def test_tree_search_finds_the_answer_and_counts_the_iterations():
    sampler = TreeSearch(exact, budget=30)
    easy, _ = collect(sampler, lambda r, i: "a cat" if not r.sampling.stop else f"{i}\n")
    assert len(easy) == 1 and easy[0].sampling["iterations"] == 1 and easy[0].sampling["solved"]
    hard, _ = collect(sampler, steps("c\nb"))
    assert hard[-1].sampling["solved"] and hard[-1].text.endswith("a cat")
    assert 1 < hard[0].sampling["iterations"] <= 30
    assert [r.sampling["check"] for r in hard] == [0.0] * (len(hard) - 1) + [1.0]
    never, engine = collect(replace(sampler, budget=7), steps("z"))
    assert never[0].sampling["iterations"] == 7 and not never[0].sampling["solved"]
    assert len(engine.asked) <= 14
    assert collect(replace(sampler, budget=7), steps("z"))[0] == never
    assert reads(sampler) == {"answer"}


def test_tree_search_never_takes_unjudged_for_wrong_and_judges_ended_answers_once():
    calls: list[str] = []

    def unsure(rollout):
        calls.append(rollout.text)

    rollouts, _ = collect(TreeSearch(unsure, budget=6), lambda r, i: "end")
    assert {r.sampling["check"] for r in rollouts} == {None} and len(calls) == len(rollouts) == 1


# -- proposer -------------------------------------------------------------------------------------


def proposer(request, index: int) -> str:
    text = request.context.text
    if "Ask one question" in text:
        return ["<question>What is it?</question>", "nothing", "<question>what IS it?</question>",
                "<question>Who made it?</question>"][index]
    if "Can this question" in text:
        return "no" if "Who" in text else "yes"
    return "a cat"


def test_proposals_are_parsed_checked_and_answered():
    rollouts, engine = collect(Propose(n=4, answers=2), proposer)
    proposals = [r for r in rollouts if "proposed" in r.sampling]
    assert [r.role for r in proposals] == ["proposer"] * 4
    assert [r.sampling["proposed"] for r in proposals] == [
        "What is it?", None, None, "Who made it?"]
    assert [r.sampling["why"] for r in proposals] == [
        "", "no <question>", "asked before", "not answerable"]
    answers = [r for r in rollouts if "proposal" in r.sampling]
    assert len(answers) == 2 and {r.sampling["question"] for r in answers} == {"What is it?"}
    assert {r.sampling["proposal"] for r in answers} == {proposals[0].id}
    assert "what is it ?" not in engine.asked[0].context.text, "its own question is not shown"
    (new,) = proposed_samples([Group(sample=asked(), rollouts=tuple(rollouts))])
    assert new.parent == proposals[0].id and new.answer is None
    assert new.context.text.strip() == "What is it?" and new.cluster == asked().cluster


def test_unknown_answerability_is_not_a_yes():
    def says(request, index):
        return "maybe" if "Can this" in request.context.text else proposer(request, 0)

    rollouts, _ = collect(Propose(n=1), says)
    assert len(rollouts) == 1 and rollouts[0].sampling["answerable"] is None
    assert not proposed_samples([Group(sample=asked(), rollouts=tuple(rollouts))])


# -- tools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "found"), [
    ("<crop>0,0,500,500</crop>", tools.Action("crop", (0, 0, 500, 500))),
    ("I look. <BOX> 1, 2, 30, 40 </BOX>", tools.Action("box", (1, 2, 30, 40))),
    ("<zoom>500,500</zoom>", tools.Action("zoom", (250, 250, 750, 750))),
    ("<zoom>0,1000</zoom>", tools.Action("zoom", (0, 500, 500, 1000))),
    ("", "write a tool"), ("<crop></crop>", "is empty"), ("<crop>1,2", "do not pair"),
    ("<crop>0,0,9,9</crop>", "at least 20"), ("<crop>500,0,400,500</crop>", "x0 < x1"),
    ("<crop>0,0,2000,500</crop>", "from 0 to 1000"), ("<crop>1,2,3</crop>", "takes 4 numbers"),
    ("<crop>a,b,c,d</crop>", "whole numbers"), ("<crop>0,0,1e3,9</crop>", "whole numbers"),
    ("<crop>-1,0,500,500</crop>", "whole numbers"),
    ("<crop>0,0,500,500</crop><crop>0,0,500,500</crop>", "more than once"),
    ("<crop><crop>0,0,500,500</crop></crop>", "more than once"),
    ("<crop>0,0,500,500</crop><zoom>1,1</zoom>", "one tool"),
    ("<zoom>1,2,3,4</zoom>", "takes 2 numbers"),
    ("<crop>2: 0,0,500,500</crop>", tools.Action("crop", (0, 0, 500, 500), 2)),
    ("<zoom>3:500,500</zoom>", tools.Action("zoom", (250, 250, 750, 750), 3)),
    ("<box>0: 1,2,30,40</box>", tools.Action("box", (1, 2, 30, 40), 0)),
    ("<crop>2:</crop>", "whole numbers"), ("<crop>1:2:0,0,500,500</crop>", "whole numbers"),
])
def test_tool_calls_truth_table(text, found):
    parsed = tools.parse_action(text)
    assert parsed == found if isinstance(found, tools.Action) else found in parsed


def test_a_play_with_tools_shows_pictures_and_ends():
    said = ["<crop>0,0,500,500</crop>", "<crop>oops</crop>", "<box>0,0,100,100</box>",
            "<answer>a cat</answer>"]
    (rollout,), engine = collect(
        EnvSampler(tools.PictureTools, n=1, max_turns=9),
        lambda r, i: said[sum(m.role == "assistant" for m in r.context.prompt)])
    assert rollout.sampling["turns"] == 4 and rollout.text.endswith("<answer>a cat</answer>")
    shown = engine.asked[-1].context.media
    assert [m.ops[0].name for m in shown[1:]] == ["region", "box"]
    assert shown[1].ops[0].key == "0,0,500,500" and shown[0] == picture()
    assert "could not be read" in engine.asked[2].context.text


def test_a_look_may_name_its_picture():
    def play(said, pictures=3, **options):
        _, engine = collect(
            EnvSampler(tools.PictureTool(**options), n=1, max_turns=9),
            lambda r, i: said[sum(m.role == "assistant" for m in r.context.prompt)],
            asked(n_pictures=pictures))
        return engine.asked

    told = play(["<crop>3: 0,0,500,500</crop>", "<box>0,0,100,100</box>", "<zoom>4: 1,1</zoom>",
                 "<zoom>0: 1,1</zoom>", "<answer>a cat</answer>"])
    assert "There are 3 pictures" in told[0].context.text and "2: 0,0,500,500" \
        in told[0].context.text
    views = told[-1].context.media[3:]
    assert [(m.sha256, m.ops[0].name) for m in views] == [
        (picture(2).sha256, "region"), (picture(0).sha256, "box")]
    assert "no picture 4, only 1 to 3" in told[3].context.text
    assert "no picture 0, only 1 to 3" in told[4].context.text
    assert len(told) == 5, "a picture that is not there ends nothing"
    assert "There are" not in play(["<answer>a cat</answer>"], pictures=1)[0].context.text
    bare = play(["[2: 500,500]", "a cat"], read=tools.read_brackets, instruction=tools.BRACKETS)
    assert bare[-1].context.media[3].sha256 == picture(1).sha256
    assert "colon" in bare[0].context.text


def test_a_look_at_a_frame_stands_after_its_time():
    frames = [m.model_copy(update={"meta": {"seconds": i + 0.5}})
              for i, m in enumerate(asked(n_pictures=2).media)]
    episode = tools.PictureTools()
    episode.reset(Sample(prompt=asked(n_pictures=2).prompt, media=tuple(frames)), "k")
    shown, _, _ = episode.step("<zoom>2: 500,500</zoom>")
    assert shown[0] == "<1.5 seconds>" and shown[1].sha256 == frames[1].sha256


def test_looks_are_limited():
    (rollout,), _ = collect(EnvSampler(tools.PictureTools, n=1, max_turns=50),
                            lambda r, i: "<zoom>500,500</zoom>")
    assert rollout.sampling["turns"] == 5  # four looks, and one that is refused by ending
    with pytest.raises(SelfloopError, match="no picture to look at"):
        collect(EnvSampler(tools.PictureTools), lambda r, i: "", asked(n_pictures=0))


def test_a_tool_s_view_opens_as_a_picture(tmp_path):
    places = pytest.importorskip("selfloop.places")  # the operations `region`, `box` and `erase`
    assert set(places.PLACED) == {"region", "box", "erase"}
    image = Image.new("RGB", (100, 60), (0, 0, 200))
    image.paste((250, 250, 0), (0, 0, 50, 30))
    image.save(tmp_path / "a.png")
    library = Library()
    medium = toyland.read(tmp_path / "a.png")[0]
    seen = library.open(tools.Action("crop", (0, 0, 500, 500)).seen(medium))
    assert seen.size == (100, 60) and seen.getpixel((90, 50)) == (250, 250, 0)
    narrow = library.open(tools.Action("crop", (0, 0, 100, 500)).seen(medium))
    assert narrow.getpixel((2, 30)) == (128, 128, 128) and narrow.getpixel((50, 30))[0] == 250
    framed = library.open(tools.Action("box", (500, 500, 1000, 1000)).seen(medium))
    assert framed.getpixel((50, 30)) == (255, 0, 0) and framed.getpixel((70, 45)) == (0, 0, 200)
    with pytest.raises(SelfloopError, match="four whole numbers"):
        library.open(medium.with_op("region", 1.0, "1,2"))


# -- the spy game ---------------------------------------------------------------------------------


def test_clue_rewards_sum_to_zero_and_follow_the_formula():
    for votes in ([3, 0, 0, 1], [0, 0, 0, 0], [1, 2, 0, 1]):
        for spy in range(4):
            assert sum(self_play.clue_rewards(votes, spy)) == pytest.approx(0)
    spy, quiet, _, blamed = self_play.clue_rewards([3, 0, 0, 1], 0)
    assert spy == pytest.approx(-0.1 * (3 - 1 / 3))
    assert quiet == pytest.approx(0.1 * (3 - 1 / 3) / 3 + 0.1 / 3)
    assert blamed == pytest.approx(0.1 * (3 - 1 / 3) / 3 - 0.1 * (1 - 1 / 3))


@pytest.mark.parametrize(("vote", "readable", "me", "reward"), [
    (0, True, 1, 1.0), (2, True, 1, -1.0), (None, True, 1, -0.5), (None, False, 1, -1.0),
    (1, True, 0, 0.5), (0, True, 0, -1.0), (None, True, 0, 0.2), (None, False, 0, -1.0)])
def test_vote_rewards_truth_table(vote, readable, me, reward):
    assert self_play.vote_reward(vote, readable, me, spy=0) == reward


@pytest.mark.parametrize(("text", "found"), [
    ("<answer>3</answer>", (2, True)), ("<answer>Player 3.</answer>", (2, True)),
    ("<answer>none</answer>", (None, True)), ("<answer>N/A</answer>", (None, True)),
    ("3", (None, False)), ("<answer>9</answer>", (None, False)),
    ("<answer>1 or 2</answer>", (None, False)), ("<answer>1</answer><answer>1</answer>",
                                                 (None, False))])
def test_votes_truth_table(text, found):
    assert self_play.parse_vote(text, 4) == found


def test_a_spy_game_pays_for_finding_the_spy():
    engine = Scripted(lambda r, i: "")

    def says(request, index):
        if "Which player" not in request.context.text:
            return "odd" if request.context.media[0].ops else "usual"
        spy = re.search(r"Player (\d): odd", request.context.text)[1]
        return f"<answer>{spy}</answer>"

    engine.says = says
    rollouts, _ = collect(self_play.SpyGame(n=3), engine)
    assert Counter(r.sampling["phase"] for r in rollouts) == {"clue": 24, "vote": 12}
    for r in rollouts:
        won = EnvironmentReturn()(r).score
        if r.sampling["phase"] == "vote":
            assert won == (-1.0 if r.sampling["spy"] else 1.0)
        else:
            assert (won < 0) == r.sampling["spy"]
        assert bool(r.context.media[0].ops) == r.sampling["spy"], "only its own picture"
    first = engine.asked[0].context
    assert "Player 1" not in first.text and len(first.media) == 1
    pair, engine = collect(self_play.SpyGame(rounds=1), says_nothing, asked(n_pictures=2))
    assert {r.context.media[0] == picture(1) for r in pair if r.sampling["spy"]} == {True}


def says_nothing(request, index: int) -> str:
    return "hm"


# -- whole loops on the toy engine ----------------------------------------------------------------

FAST = {"temperature": 1.0, "max_new_tokens": 4}


def in_a_loop(sampler, tmp_path, maker, loss, verifier=toyland.paid, steps=()) -> tuple:
    loop = Loop(name="more", sampler=sampler, verifier=verifier, iterations=1, steps=2,
                samples=6, shard=3, learn=toyland._learn(maker, loss, steps=steps))
    engine = ToyEngine(("yes", "no", "look", "again", "odd"), seed=3)
    return run(loop, toyland.samples(tmp_path / "data", 6), engine, tmp_path / "run")


@pytest.mark.parametrize("case", ["views", "rethink", "distilled", "spy", "temperature"])
def test_whole_loops_learn_from_these_samplers(case, tmp_path):
    sampler, maker, loss, verifier, steps_ = {
        "views": (MixedViews(n=3, op="blank", train_clean=True, **FAST), GroupAdvantage(), GRPO(),
                  toyland.paid, (adaptive.count_steps,)),
        "rethink": (forced.Rethink(n=4, share=0.5, triggers=("look again",), **FAST),
                    GroupAdvantage(), GRPO(), toyland.paid, ()),
        "distilled": (Distilled(n=4, **FAST), Demonstrate(), SFT(), toyland.paid, ()),
        "spy": (self_play.SpyGame(rounds=1, op="blank", clue_tokens=3, vote_tokens=3),
                GroupAdvantage(), GRPO(), EnvironmentReturn(), ()),
        "temperature": (adaptive.AdaptiveTemperature(grid=(0.5, 1.5), share=0.5, n=3,
                                                     max_new_tokens=4), Demonstrate(), SFT(),
                        toyland.paid, (adaptive.ChooseTemperature(),)),
    }[case]
    (iteration,) = in_a_loop(sampler, tmp_path, maker, loss, verifier, steps_)
    assert iteration.counts["drawn"] > 0 and iteration.version == 2
    assert iteration.labels_full == 0


def test_types_are_rollouts_of_the_sample():
    sample: Sample = asked()
    for sampler in (MixedViews(n=1), forced.Resumed(n=1), refine.SelectAmong(n=2)):
        found, _ = collect(sampler, lambda r, i: "1", sample)
        assert all(isinstance(r, Rollout) and r.sample == sample.id for r in found)
        assert len({r.id for r in found}) == len(found)
