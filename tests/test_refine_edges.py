"""Refinement at its edges: inputs on which a step once did the wrong thing without a word."""

from __future__ import annotations

import json
import time

import pytest

from selfloop.collect.independent import Independent
from selfloop.data import Samples
from selfloop.doors import asking
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.preference import DPO
from selfloop.organize.advantages import LeaveOneOut, OnlyBest, PassAtK
from selfloop.organize.beside import Beside
from selfloop.organize.chain import Chain
from selfloop.organize.clear_view import ClearView
from selfloop.organize.refine.balance import AtMost, Balanced
from selfloop.organize.refine.best_right import BestRight
from selfloop.organize.refine.blind import NeedsPicture
from selfloop.organize.refine.builders import Described, Refine, Select
from selfloop.organize.refine.decontaminate import EvaluationPrints, leaks, prints_of
from selfloop.organize.refine.degenerate import Degenerate
from selfloop.organize.refine.duplicates import SameAnswer, SameText
from selfloop.organize.refine.filters import AccuracyBand, Finished, Role
from selfloop.organize.refine.learnt import Learnt
from selfloop.organize.refine.near import near_texts
from selfloop.organize.refine.pair_filters import (
    Distinct,
    Fluent,
    LengthBalance,
    SimilarityWindow,
    SwapOrDrop,
    similarity,
)
from selfloop.organize.refine.pairs import BestVersusWorst, Constructed, Levels, Margin, Pairs
from selfloop.organize.refine.pools import Pool
from selfloop.organize.refine.replay import SelectiveReplay
from selfloop.organize.refine.wording import normal, units, visible
from selfloop.organize.rewarded import OutcomePairs
from selfloop.organize.signals import (
    BestWorst,
    Demonstrate,
    GroupAdvantage,
    Privileged,
    Views,
)
from selfloop.organize.verify.rules import yes_no
from selfloop.organize.verify.vote import MajorityVote
from selfloop.recipes.csr import csr
from selfloop.roles import Optim, SelfloopError, call_by_name
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Group, Media, Message, Sample, Verdict, digest
from test_refine_more import group, pair, picture, texts_of

# -- pairs ------------------------------------------------------------------------------------

def rollouts_of(maker, made) -> list[tuple[str, ...]]:
    return [s.rollouts for s in maker([made], "k")]


@pytest.mark.parametrize(("maker", "scores", "texts", "found"), [
    (BestWorst(gap=0), [1], None, []),                         # no answer is paired with itself
    (BestWorst(gap=0), [1, 1], None, []),
    (BestWorst(gap=0, per_sample=5), [1, .5, 0], None, [("a0", "a2")]),
    (BestWorst(gap=0, per_sample=5), [1, .7, .5, 0], None, [("a0", "a3"), ("a1", "a2")]),
    (BestWorst(gap=0), [1, 0], ["a cat", "a cat"], []),        # equal texts, unequal scores
    (BestWorst(gap=0), [1, 0], ["", "a dog"], []),             # an empty text is not preferred
    (BestWorst(gap=0), [1, 0], ["a dog", ""], [("a0", "a1")]),
    (Pairs(BestVersusWorst()), [.1 + .2, .3], None, []),       # they differ by 5e-17
    (Pairs(Levels()), [.1 + .2, .3], None, []),
    (Pairs(Margin(0)), [.1 + .2, .3], None, []),
    (BestWorst(gap=0), [.1 + .2, .3], None, []),
    (GroupAdvantage(), [.1 + .2, .3], None, []),
    (LeaveOneOut(), [.1 + .2, .3], None, []),
    (OnlyBest(), [.1 + .2, .3], None, []),
    (Demonstrate(), [1, 1, 1], ["", " \u200b", "7"], [("a2",)]),  # nothing is no demonstration
    (Refine(), [1, 0], ["", "bad"], []),
    (Select(k=2), [1, 0, 0], ["", "bad", "worse"], []),
    (BestWorst(gap=.2), [.3, .1], None, [("a0", "a1")]),       # .3 - .1 = .19999999999999998
    (Pairs(Margin(.2)), [.3, .1], None, [("a0", "a1")]),
    (Pairs(Margin(.2)), [.3, .2], None, []),
    (Pairs(Margin(0)), [1, 0], ["a cat", "a cat "], []),
    (Pairs(Margin(0)), [1, 0], ["\u200b", "a dog"], []),
    (Pairs(BestVersusWorst(.2)), [.3, .1], None, [("a0", "a1")]),
    (Pairs(BestVersusWorst()), [1, 0], ["a cat", "a cat"], []),
    (Pairs(Levels()), [1, 0], ["a cat", "a cat"], []),
    (Pairs(Levels()), [1, 0], ["", "a dog"], []),
])
def test_a_pair_is_two_answers_of_which_one_is_better(maker, scores, texts, found):
    assert rollouts_of(maker, group(scores, texts)) == found


def test_an_empty_answer_is_never_preferred(tmp_path):
    assert Distinct()([pair("", "a dog")]) == [] == Distinct()([pair(" \u200b\n", "a dog")])
    assert Distinct(contained=False, bare=())([pair("", "a dog")]) == []
    assert Distinct(contained=False, bare=())([pair("a dog", "")])
    medium = picture(tmp_path, "p", 0)
    made = group([None, None], ["", "a dog"], media=[medium], changed=(1,))
    for filters in ((), (Distinct(contained=False, bare=()),)):  # the second as SeVa's recipe
        assert Chain(maker=Pairs(Constructed(), filters))([made], {}, "k")[0] == []


def test_margins_are_compared_with_the_slack_of_a_sum():
    assert SwapOrDrop(.2)([pair(scores=(.3, .1))])
    assert SwapOrDrop(.2)([pair(scores=(.1, .3))]) == [], "exactly the margin, the wrong way"
    assert SwapOrDrop(.2)([pair(scores=(.1, .31))])[0].chosen.text == "bad"


@pytest.mark.parametrize("step", [0, -.02, float("nan"), 2])
def test_length_balance_refuses_a_grid_that_it_cannot_walk(step):
    with pytest.raises(SelfloopError, match="above 0"):
        LengthBalance(step=step)


# -- in a run ---------------------------------------------------------------------------------

def test_a_run_rewards_the_majority_whatever_its_spelling_and_pairs_only_what_differs(tmp_path):
    asked_once = Sample(prompt=(Message(role="user", content="is it ?"),),  # type: ignore[arg-type]
                        answer="yes")
    loop = Loop(
        name="vote", sampler=Independent(n=12, max_new_tokens=1), verifier=MajorityVote(share=0),
        learn={"solver": Learn(organizer=Chain(maker=BestWorst(gap=0, per_sample=12)),
                               loss=DPO(), optim=Optim(lr=0.1, updates=1))},
        evaluation=Evaluation(metric=yes_no), iterations=2)
    run(loop, Samples.of([asked_once]), ToyEngine(("Yes", "yes", "YES", "No"), seed=3), tmp_path,
        dev=Samples.of([asked_once]))
    for step in range(2):
        (judged_group,) = RunFolder(tmp_path).groups(step)
        scores: dict[str, set[float | None]] = {}
        for rollout, verdict in zip(judged_group.rollouts, judged_group.verdicts, strict=True):
            scores.setdefault(rollout.text.strip().lower(), set()).add(verdict.score)
        assert scores["yes"] == {1.0} and scores.get("no", {0.0}) == {0.0}
        of = {r.id: r.text.strip().lower() for r in judged_group.rollouts}
        made = RunFolder(tmp_path).signals(step, "solver")
        assert all((of[s.rollouts[0]], of[s.rollouts[1]]) == ("yes", "no") for s in made)


def asked_twice() -> Group:
    """Two answers to the sample's own question, then two to another one about its picture."""
    mixed = group([.2, .4, .8, 1], ["a", "b", "c", "d"])
    other = asking(mixed.sample, "and how many ?")
    return mixed.model_copy(update={"rollouts": tuple(
        r.model_copy(update={"context": other}) if i > 1 else r
        for i, r in enumerate(mixed.rollouts))})


@pytest.mark.parametrize("maker", [
    BestWorst(gap=0), Pairs(BestVersusWorst()), Pairs(Levels()), Pairs(Margin(0, 0)),
    OutcomePairs(Margin(0, 0)), Pairs(Constructed())])
def test_answers_to_different_questions_are_no_pair(maker):
    made = maker([asked_twice()], "k")
    assert [s.rollouts for s in made] == ([] if maker == Pairs(Constructed()) else [
        ("a1", "a0"), ("a3", "a2")])
    for signal in made:
        chosen, rejected = (signal.branches[n].context for n in ("chosen", "rejected"))
        asked = "and how many ?" if signal.rollouts[0] == "a3" else "what is a ?"
        assert chosen.text.startswith(asked) and rejected.text.startswith(asked)


def test_rows_of_mending_are_of_one_question():
    mixed = asked_twice()
    first, second = (v.model_copy(update={"score": s}) for v, s in zip(
        mixed.verdicts[:2], (1., 0.), strict=True))
    mixed = mixed.model_copy(update={"verdicts": (first, second, first, second)})
    rows = Refine()([mixed], "k")
    assert [r.rollouts for r in rows] == [("a0", "a1"), ("a2", "a3")]
    assert [r.branches["target"].context.text.partition("\n")[0] for r in rows] == [
        "what is a ?", "and how many ?"]


@pytest.mark.parametrize(("maker", "made"), [
    (Demonstrate(), 1), (BestWorst(), 1), (BestWorst(corrupted="crop"), 0), (Privileged(), 0),
    (Views(Demonstrate()), 1), (Described(Demonstrate()), 1), (ClearView(), 0),
    (Described(Demonstrate(), strict=True), 0), (Beside(GroupAdvantage(), "masked", "answer"), 0),
    (Beside(GroupAdvantage(), "masked", "answer", keep=True), 2)])
def test_conversations_are_put_under_no_other_context(maker, made):
    """A right conversation with an environment ended runs of star, papo, mdpo and sdft."""
    shown = group([1, 0], ["a", "b"], media=(Media(sha256="a" * 64),),
                  notes={"description": "two cats"})
    talked = shown.model_copy(update={"rollouts": tuple(
        r.model_copy(update={"turns": r.turns * 2}) for r in shown.rollouts)})
    found = call_by_name(maker, groups=[talked], key="k", answers={shown.sample.id: "a"})
    assert len(found) == made
    for signal in found:
        for branch in signal.branches.values():
            assert branch.turns == talked.rollouts[0].turns or branch.turns[0].prompt_token_ids


@pytest.mark.parametrize(("chosen", "rejected", "kept"), [
    ("13", "3", True), ("The answer is B.", "A", True), ("12.5", "12", True), ("-7", "7", True),
    ("cats", "cat", True), ("Of the cats", "the cat", True),
    ("A dog sits on the left.", "dog", False), ("a red cat on a mat", "Red cat", False),
    ("the cat.", "the cat", False), ("\u7ea2\u8272\u7684\u732b", "\u7ea2\u8272", False),
])
def test_what_is_contained_is_contained_word_by_word(chosen, rejected, kept):
    assert bool(Distinct()([pair(chosen, rejected)])) == kept


@pytest.mark.parametrize(("made", "says"), [
    (lambda: AccuracyBand(.9, .1), r"AccuracyBand\(low=0.9, high=0.1\)"),
    (lambda: SimilarityWindow(.9, .1), "nothing lies between"), (lambda: Learnt(.9, .1), "Learnt"),
    (lambda: AtMost(0, (SameText(),)), "n=0.*at least 1"), (lambda: AtMost(1, ()), "alike"),
    (lambda: Balanced(SameText(), ratio=0), "ratio=0"), (lambda: Pool(limit=0), "limit=0"),
    (lambda: Pool(rollouts=0), "rollouts=0"), (lambda: BestRight("p", k=0), "k=0"),
    (lambda: NeedsPicture(k=0), "k=0"), (lambda: PassAtK(0), "k=0"),
    (lambda: Select(k=1), "at least 2"), (lambda: Refine(per_sample=0), "per_sample=0"),
    (lambda: Demonstrate(per_sample=0), "per_sample=0"), (lambda: Margin(per_sample=-1), "-1"),
    (lambda: BestWorst(per_sample=0), "per_sample=0"), (lambda: Learnt(memory=0), "memory=0"),
])
def test_options_that_would_drop_or_keep_all_are_refused(made, says):
    with pytest.raises(SelfloopError, match=says):
        made()


# -- degenerate text --------------------------------------------------------------------------

THE = "the {a} stands by the {b} and looks at the {c} ."
PROSE = " ".join(THE.format(a=f"a{chr(97 + i % 26)}{i}", b=f"b{i}", c=f"c{i}") for i in range(60))
"""660 words, 27 % of them "the"; a quarter as many in what follows."""
PLAIN = " ".join(f"the w{i} x{i} y{i} z{i} u{i} v{i} s{i} t{i} r{i}" for i in range(60))


@pytest.mark.parametrize("words", [
    "5 \u00b5m", "\u211d", "2\u207f", "n\u00ba 3", "\u210f", "\u2113", "a cat \U0001f600", "\u2135",
    "| 1 | 2 | 3 |\n| 4 | 5 | 6 |", '{"label": "cat", "box": [12, 34, 56, 78]}',
    "[[12, 34], [56, 78]]", "1000000000000", "------------", "Chapter 1 .................. 5",
    "0 0 0 0 0 0", "| a | b |\n|---|---|\n| x | x |\n| x | x |", "```\nx x x x x x x\n```",
    "It\u2019s \u201cfine\u201d \u2026 \u2013 ok", PLAIN, "ha ha ha ha ha", "a\u00adb",
    "$$(x+1)^2 + (y-2)^2 = 9$$", "y = -(x-1)^2 + 3*(x+2)", "A(1, 2), B(-3, 4), C(5, -6)",
    "\\(\\{(x, y) : x^2 + y^2 \\le 1\\}\\)", "P(A|B) = P(B|A)P(A)/P(B)", "(x-1)(x+1)(x-2)(x+2) = 0",
    "-1 < x <= 3; x != 0; |x-1| > 2", "$$\\lim_{x \\to 0} \\frac{\\sin(x)}{x} = 1$$",
    "\u2200\u03b5>0 \u2203\u03b4>0: |x-a|<\u03b4 \u21d2 |f(x)-L|<\u03b5",
    " ".join(f"Angle {i} and its neighbour {i + 7} make {2 * i + 7} degrees." + (
        " Let me check that again." if i % 12 == 0 else "") for i in range(84)),
])
def test_good_text_is_not_broken(words):
    assert Degenerate().reason(words) is None


@pytest.mark.parametrize(("words", "reason"), [
    ("The image shows a red cat on a mat. " * 15, "a phrase repeats"),
    ("The image shows a red cat on a mat. " * 29, "a phrase repeats"),
    (" ".join(f"It is a red cat. The {n} stands." for n in "abcdef"), "a phrase repeats"),
    ("\u7ea2\u8272\u7684\u732b" * 50, "a phrase repeats"),
    ("\u3068\u3066\u3082" * 40, "a phrase repeats"),
    ("redcat" * 60, "a phrase repeats"), ("\u200b\u200b", "empty"), ("\ufeff \u200b", "empty"),
    ("0" * 300, "a character repeats"), ("-" * 300, "a character repeats"),
    ("!" * 12, "a character repeats"), ("0 1 " * 200, None), ("no 0 " * 6, "a phrase repeats"),
    (PROSE, "a word occurs too often"), ("1!@#$%^&*()_+{}[]<>?:", "mostly symbols"),
    ("| a | b |\n\n" + "no " * 6, "a phrase repeats"), ("[" * 9 + "{" * 9 + "!?", "mostly symbols"),
    ("(x+1)^2 + ([([([([([([([", "mostly symbols"), ("() [] {} ++ -- == // a", "mostly symbols"),
    (" ".join(f"It is {i}. Let me check that again." for i in range(20)), "a phrase repeats"),
])
def test_broken_text_of_other_kinds(words, reason):
    assert Degenerate(scripts=None).reason(words) == reason


def test_what_is_foreign_depends_on_the_question_and_on_most_answers():
    russian, chinese = "\u043a\u043e\u0442", "\u7ea2\u8272\u7684\u732b"
    mixed = f"a red {russian}"
    asked = group([1] * 2, [chinese, mixed], name=f"\u4ec0\u4e48 {chinese}")
    assert texts_of(Degenerate()([asked])) == [[chinese]], "the question is in Chinese"
    assert texts_of(Degenerate()([group([1] * 3, [russian, russian, chinese])])) == [
        [russian, russian]], "most answers are in Russian"
    assert texts_of(Degenerate()([group([1] * 3, ["a", "b", russian])])) == [["a", "b"]]
    assert texts_of(Degenerate()([group([1], [russian])])) == [[]], "one answer is no majority"
    japanese = group([1], ["\u3068\u3066\u3082\u30ab\u30fc"], name="\u732b")
    assert texts_of(Degenerate()([japanese])) == [["\u3068\u3066\u3082\u30ab\u30fc"]]
    whole = group([1, 0], [chinese, "\u84dd\u8272\u7684\u72d7"])
    assert len(Pairs(BestVersusWorst(), (Fluent(),))([whole], "k")) == 1
    assert Fluent()([pair("a cat", russian)]) == []


def test_csr_makes_pairs_of_chinese_answers_and_takes_other_limits():
    chinese = group([1, 0], ["\u7ea2\u8272\u7684\u732b\u3002", "\u84dd\u8272\u7684\u72d7\u3002"])
    (pairs, _, _) = csr(yes_no).learn["solver"].organizer([chinese], {}, "k")
    assert len(pairs) == 1
    strict = csr(yes_no, broken=Degenerate(short=1, symbols=0)).learn["solver"].organizer
    assert strict([chinese], {}, "k")[0] == []


def test_degenerate_text_is_found_in_linear_time():
    for words in ("the red cat " * 20_000, "[" * 200_000, "ab" * 100_000, PLAIN * 60, "`" * 200_000,
                  "a|b\n" * 50_000):
        start = time.perf_counter()
        Degenerate().reason(words)
        assert time.perf_counter() - start < 5


# -- replay -----------------------------------------------------------------------------------

def replayed(groups, state, key):
    return SelectiveReplay(Chain(maker=GroupAdvantage()))(groups, state, key)


NOTHING = [group([None] * 8, name=f"n{i}") for i in range(16)]
THIN = [group([1, 0] + [None] * 6), *NOTHING[1:]]


@pytest.mark.parametrize("thin", [THIN, NOTHING, []], ids=["2 of 128", "all abstain", "no groups"])
def test_a_thin_step_is_topped_up_and_leaves_the_queue(thin):
    full = [group([1, 0, 0, 0, 1, 0, 0, 0], name=f"g{i}") for i in range(16)]
    signals, state, _ = replayed(full, {}, "k")
    assert (len(signals), len(state["replay"])) == (64, 64)
    for step in range(3):
        signals, state, _ = replayed(thin, state, f"l{step}")
        assert (len(signals), len(state["replay"])) == (64, 64)
    old = {k: v for k, v in state.items() if k != "replay_size"}  # a run's state of before
    assert (len(replayed(thin, old, "m")[0]), len(replayed(thin, old, "m")[1]["replay"])) \
        == (64, 64)


def test_replay_of_nothing_is_nothing():
    assert replayed([], {}, "k")[0] == [] == replayed(NOTHING, {}, "k")[0]
    smaller = [group([1, 0, 0, 0], name="s")]
    signals, state, _ = replayed(smaller, replayed(
        [group([1, 0, 0, 0], name=f"g{i}") for i in range(4)], {}, "k")[1], "l")
    assert (len(signals), len(state["replay"]), state["replay_size"]) == (2, 8, 8)


# -- classes ----------------------------------------------------------------------------------

def judged(rule, answers, gold) -> list[Group]:
    """One group an answer, judged by the rule as it ships."""
    made = [group([None], [words], name=f"g{i}") for i, words in enumerate(answers)]
    return [g.model_copy(update={"verdicts": (rule(g.rollouts[0], gold[i]),)})
            for i, g in enumerate(made)]


def test_a_class_is_not_split_by_its_spelling():
    said = [*["yes", "Yes", "YES", "yes."] * 5, "Yes, there is a red car", *["no", "No!"] * 5]
    groups = judged(yes_no, said, ["yes"] * 21 + ["no"] * 10)
    assert SameAnswer()(groups) == ["yes"] * 21 + ["no"] * 10
    kept = Balanced(SameAnswer())(groups, "k")
    assert len(kept) == 20 and sum(g in kept for g in groups[21:]) == 10


@pytest.mark.parametrize(("said", "label"), [
    ("Yes", "yes"), ("**No**", "no"), ("No, it is blue", "no"), ("yes it is", "yes"),
    ("No parking", "no parking"), ("No. 5", "no 5"), ("yes and no", "yes and no"),
    ("Yes, no", "yes no"), ("Norway", "norway"), ("3.5", "3.5"), ("-7", "-7"), ("a Cat.", "a cat"),
])
def test_the_class_of_an_answer(said, label):
    assert SameAnswer()([group([1], [said])]) == [label]


@pytest.mark.parametrize(("sizes", "least", "kept"), [
    ({"a": 6}, 10, 6), ({"a": 6, "b": 3}, 10, 6), ({"a": 6, "b": 3}, 4, 9),
    ({"a": 6, "b": 3}, 3, 6), ({}, 10, 0),
])
def test_balance_loses_no_step_for_having_few_groups(sizes, least, kept):
    groups = [group([1], [c], name=f"{c}{i}") for c, n in sizes.items() for i in range(n)]
    assert len(Balanced(SameAnswer(), least=least)(groups, "k")) == kept


# -- unjudged groups, and what is no number ----------------------------------------------------

@pytest.mark.parametrize("step", [Degenerate(), Finished(), Role("solver"), AccuracyBand()],
                         ids=lambda s: type(s).__name__)
def test_unjudged_groups_pass_like_groups_whose_judge_abstained(step):
    bare = group([None] * 3, ["a cat", "no " * 9, ""]).model_copy(update={"verdicts": ()})
    abstained = group([None] * 3, ["a cat", "no " * 9, ""])
    assert texts_of(step([bare])) == texts_of(step([abstained]))
    assert all(g.verdicts == () for g in step([bare]))


def test_nothing_is_learnt_or_distilled_from_unjudged_groups(tmp_path):
    bare = group([None], media=[picture(tmp_path, "p", 0)]).model_copy(update={"verdicts": ()})
    groups, update = Learnt()([bare], {})
    assert groups == [bare] and update["guidance"]["learnt"] == {}
    assert ClearView()([bare], "k") == [] and len(ClearView(at_least=None)([bare], "k")) == 1


def test_a_part_that_is_no_number_is_unknown():
    assert Verdict(score=1, parts={"p": float("nan"), "q": .5}).parts == {"q": .5}
    stored = '{"score":1.0,"parts":{"p":NaN}}'
    assert Verdict.from_json(stored).parts == {}, "a run that stored one stays readable"
    ranks = {0: {"p": .1}, 1: {"p": float("nan")}, 2: {"p": .9}}
    for key in "klmnop":
        (kept,) = BestRight("p", 1)([group([1, 1, 1], parts=ranks)], key)
        assert [r.id for r in kept.rollouts] == ["a2"]


# -- F8, and finished answers ------------------------------------------------------------------

@pytest.mark.parametrize(("low", "high", "scores", "kept"), [
    # the edges are inside
    (.1, .9, [.1], True), (.1, .9, [.9], True), (.1, .9, [.09], False), (.1, .9, [.91], False),
    (.1, .9, [1, 0], True), (.1, .9, [0, 0], False), (.1, .9, [1, 1], False),
    (.1, .9, [1] + [0] * 9, True), (.1, .9, [1] * 9 + [0], True),
    (.1, .9, [1] + [0] * 10, False), (.1, .9, [1] * 10 + [0], False),
    (.01, .99, [.01], True), (.01, .99, [.99], True), (.01, .99, [0], False),
    (.01, .99, [1], False), (.01, .99, [1] + [0] * 99, True),
    (.3, .8, [.3], True), (.3, .8, [.8], True), (.3, .8, [1, 1, 1, 1, 0], True),
    (.3, .8, [1] * 3 + [0] * 7, True), (.3, .8, [1, 1, 0, 0, 0, 0, 0], False),
    (.3, .8, [.81], False), (.3, .8, [.29], False),
    (.3, .8, [.1, .3, .5], True), (.3, .8, [.1, .2, .6], True),  # means of .3, give or take a bit
    (.1, .9, [None, None], False), (.1, .9, [None, 1, 0], True), (.1, .9, [None, 1], False),
    (.1, .9, [], False),
])
def test_accuracy_band(low, high, scores, kept):
    made = group(scores)
    assert AccuracyBand(low, high)([made]) == [made] * kept


@pytest.mark.parametrize(("reasons", "left"), [
    (("stop", "stop"), ["a0", "a1"]), (("stop", "length"), ["a0"]), (("error", "stop"), ["a1"]),
    (("length", "error"), []), ((), []),
])
def test_finished(reasons, left):
    made = group([1.0] * len(reasons))
    made = made.model_copy(update={"rollouts": tuple(
        r.model_copy(update={"turns": (r.turns[0].model_copy(update={"finish_reason": why}),)})
        for r, why in zip(made.rollouts, reasons, strict=True))})
    (kept,) = Finished()([made])
    assert [r.id for r in kept.rollouts] == left and len(kept.verdicts) == len(left)


# -- wording ----------------------------------------------------------------------------------

@pytest.mark.parametrize(("one", "other", "same"), [
    ("what is it ?", "what is it?", True), ("What is it", "what is  it?", True),
    ("it\u2019s a cat", "it's a cat", True), ("caf\u00e9", "cafe\u0301", True),
    ("\uff21\uff22\uff23 \uff11", "abc 1", True), ("a\u200b cat", "a cat", True),
    ("a well-known cat", "a well known cat", True), ("3 * 7", "3 / 7", False),
    ("-7", "7", False), ("3.5", "35", False), (".5", "5", False), ("?", "!", False),
    ("a cat", "a dog", False),
])
def test_normal_wording(one, other, same):
    assert (normal(one) == normal(other)) == same


def test_what_is_visible_and_what_is_a_unit():
    assert visible(" \u200b\u200b\ufeff\n") == "" and visible(" a\u00adb ") == "ab"
    assert units("What is 3.5 - 2 ?") == ["what", "is", "3.5", "-", "2"]
    assert units("\u7ea2\u8272\u7684 cat\u3002") == ["\u7ea2", "\u8272", "\u7684", "cat"]


@pytest.mark.parametrize(("one", "other"), [
    ("what is the man holding ?", "what is the man holding?"),
    ("what is the man\u2019s hat ?", "what is the man's hat ?"),
    ("is this a caf\u00e9 or a bar", "is this a cafe\u0301 or a bar"),
    ("\uff37\uff48\uff41\uff54 is it \uff1f", "What is it ?"), ("what is\u200b it", "what is it"),
])
def test_texts_that_read_the_same_are_one_cluster(one, other):
    assert near_texts([one, other, "something else than that"]) == [0, 0, 1]
    assert SameText()([group([1], name=one), group([1], name=other)]) == [0, 0]
    assert similarity(one, other) == 1


CHINESE = ("\u56fe\u7247\u4e2d\u7684\u7ea2\u8272\u6c7d\u8f66\u505c\u5728"
           "\u54ea\u4e00\u6761\u8857\u9053\u7684\u53f3\u8fb9")


def test_scripts_without_spaces_have_near_texts_and_leaks():
    near, far = CHINESE + "\u554a", "\u84dd\u8272\u7684\u72d7\u5728\u5ba4\u5185\u7761\u89c9\u5417"
    assert near_texts([CHINESE, near, far]) == [0, 0, 1]
    assert 0.9 < similarity(CHINESE, near) < 1 and similarity(CHINESE, far) < .3
    assert SimilarityWindow(.2, .99)([pair(CHINESE, near)])
    prints = prints_of([asked(CHINESE)], None)
    found = leaks([asked(far), asked("\u8bf7\u95ee\uff1a" + CHINESE)], prints)
    assert [i for i, _ in found] == [1] and "the same words" in found[0][1]


def asked(text: str) -> Sample:
    return Sample(prompt=(Message(role="user", content=text),))  # type: ignore[arg-type]


def test_a_question_is_known_however_it_is_punctuated():
    prints = prints_of([asked("What is the capital of France?")], None)
    others = ["What is the capital of France", "what is the capital of France ?",
              "\u201cWhat is the capital of France\u201d"]
    assert [i for i, _ in leaks([asked(t) for t in others], prints)] == [0, 1, 2]
    assert leaks([asked("What is the capital of Spain?")], prints) == []
    long = "the quick brown fox jumps over the lazy dog and then it sleeps for an hour"
    commas = long.replace(" ", ", ")
    assert len(leaks([asked(commas)], prints_of([asked(long)], None))) == 1


def test_prints_of_before_are_read_as_they_were_written():
    new = prints_of([asked("What is it?")], None)
    stored = json.loads(new.to_json())
    assert stored.pop("wording") == "normal"
    old = EvaluationPrints.from_json(json.dumps({**stored, "grams": [digest("what is it?")]}))
    assert old.to_json() == json.dumps({**stored, "grams": [digest("what is it?")]})
    assert [i for i, _ in leaks([asked("what is  it?"), asked("what is it")], old)] == [0]
