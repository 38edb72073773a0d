"""Verifiers: truth tables, abstention that is never a zero, and failures that are counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import toyland
from selfloop.collect.independent import Independent
from selfloop.doors import Doors, user
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.judging import judge
from selfloop.organize.signals import Demonstrate
from selfloop.organize.verify.answer_spread import SoftVote
from selfloop.organize.verify.combine import AllOf, Weighted
from selfloop.organize.verify.environment import EnvironmentReturn
from selfloop.organize.verify.judges import PairwiseJudge, ReferencePairwiseJudge
from selfloop.organize.verify.own_questions import OwnQuestions
from selfloop.organize.verify.rules import (
    as_number,
    choice,
    exact,
    final_answer,
    number,
    text,
    yes_no,
)
from selfloop.organize.verify.vote import Agreement, MajorityVote, majority
from selfloop.recipes.star import star
from selfloop.roles import Optim, SelfloopError, call_by_name
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Context, Group, Part, Rollout, Sample, Turn, Verdict

ASKED = Context(prompt=user("what is the sum ?"))


def said(words: str, index: int = 0, **sampling) -> Rollout:
    return Rollout(id=f"r{index}", sample="s", context=ASKED, turns=(Turn(token_ids=(1,)),),
                   output=(Part(text=words),), sampling=sampling)


# -- rules --------------------------------------------------------------------------------------

@pytest.mark.parametrize(("words", "found"), [
    ("", None), ("  \n ", None), (".", None), ("7", "7"), ("3 5 2 = 10", "10"),
    ("so \\boxed{12}", "12"), ("\\boxed{1} no, \\boxed{2}", "2"), ("<answer> 7 </answer>", "7"),
    ("<answer>\n</answer>", None), ("Answer: 7.", "7"), ("The final answer is 7", "7"),
    ("thinking 3\n4", "4"), ("a = 1 so b = 2", "2"), ("3 =", None),
])
def test_final_answers(words, found):
    assert final_answer(words) == found


@pytest.mark.parametrize(("words", "value"), [
    ("12", 12), ("-3.5", -3.5), ("1,234.5", 1234.5), ("12 %", 12), ("3e4", 3e4), ("1 2", 12),
    ("7 apples", 7), ("from 3 to 4", 4), (".5", 0.5), ("none", None), ("", None), ("-", None),
    ("1,2", 2), ("+4 kg", 4),
])
def test_numbers(words, value):
    assert as_number(words) == value


R, W, N = 1.0, 0.0, None


@pytest.mark.parametrize(("rule", "gold", "words", "score"), [
    # an answer that says nothing is wrong; a gold value that says nothing makes the rule abstain
    (exact, "7", "", W), (exact, "7", ".", W), (exact, None, "7", N), (exact, "7", "7", R),
    (exact, "7", "3 4 = 7", R), (exact, "7", "Solution:", W), (exact, "7", "what is the sum ?", W),
    (exact, "12", "1 2", R), (exact, "12", "<answer>12</answer>", R), (exact, "Left", " left. ", R),
    (exact, "7", "77", W), (exact, "7", "-7", W), (exact, 7, "7", R),
    (exact, "-7", "-7.", R), (exact, "-7", "(-7)", R), (exact, "7", "**7**", R),
    (exact, "+", "+", R),
    (exact, "+", "*", W), (exact, ".5", ".5", R), (exact, "5", ".5", W), (exact, "7", "$7", R),
    (exact, "7", "0 1 2 3 4 5 6 7 8 9", W), (exact, "two cats", "two  Cats!", R),
    (number, "1234.5", "1,234.5", R), (number, "7", "7.0 kg", R), (number, "-3", "3", W),
    (number, "-3", "\\boxed{-3}", R), (number, "7", "", W), (number, "7", "many", W),
    (number, "7", "Solution:", W), (number, "many", "7", N), (number, None, "7", N),
    (number, "12", "1 2", R), (number, 1e6, "1000000.5", R), (number, 1e6, "1000002", W),
    (number, "0", "0.0", R), (number, "0.5", ".5", R), (number, "5", ".5", W),
    (number, "30%", "30 percent", R),
    (choice, "B", "B", R), (choice, "B", "(b) the cat", R), (choice, "B", "A", W),
    (choice, "B", "A B C D", W), (choice, "B", "B or C", W), (choice, "B", "", W),
    (choice, "B", "?", W), (choice, "B", "Answer: B.", R), (choice, "(B)", "B) cat", R),
    (choice, "cat", "B", N), (choice, None, "B", N), (choice, "B", "Because", W),
    (yes_no, "yes", "Yes, it is", R), (yes_no, "yes", "no", W), (yes_no, "yes", "yes and no", W),
    (yes_no, "no", "not sure", W), (yes_no, "yes", "", W), (yes_no, "yes", "eyes", W),
    (yes_no, "maybe", "yes", N), (yes_no, None, "yes", N), (yes_no, "No", "no!", R),
    (text, ["cat", "kitten"], "Kitten", R), (text, "cat", "a cat", W), (text, "cat", "", W),
    (text, None, "cat", N), (text, [], "cat", N), (text, ["cat"], "cat kitten", W),
    (text, 3, "3", R),
])
def test_rules(rule, gold, words, score):
    verdict = rule(said(words), gold)
    assert verdict.score == score
    if score == R:
        assert verdict.rationale, "what was parsed is kept"


# -- votes --------------------------------------------------------------------------------------

@pytest.mark.parametrize(("answers", "winner", "share"), [
    (["a", "b", "a"], "a", 2 / 3), (["b", "a", "a", "b"], "b", 0.5), ([None, None], None, 0.0),
    ([], None, 0.0), ([None, None, "a"], "a", 1 / 3), (["a"], "a", 1.0),
])
def test_majority(answers, winner, share):
    assert majority(answers) == (winner, pytest.approx(share))


def group(*words: str, **more) -> Group:
    return Group(sample=Sample(prompt=user("what is the sum ?")),
                 rollouts=tuple(said(w, i, **more) for i, w in enumerate(words)))


@pytest.mark.parametrize(("words", "scores"), [
    (["7", "3 4 = 7", "8"], [1, 1, 0]), (["7", "8", "9"], [None] * 3), (["", "", "7"], [None] * 3),
    (["", "", ""], [None] * 3), (["7", "8"], [None] * 2), (["7"], [1]),
    (["7", "8", "8", "7", ""], [None] * 5), (["7", "8", "8"], [0, 1, 1]),
    (["Yes", "yes", "YES", "No", "No"], [1, 1, 1, 0, 0]),     # spelling is no other answer
    (["1,200", "1200", "7"], [1, 1, 0]), (["(B)", "b.", "C"], [1, 1, 0]),
    (["-7", "7", "-7."], [1, 0, 1]), ([".5", "5", ".5"], [1, 0, 1]),
    (["1 2", "12", "3"], [1, 1, 0]), (["+", "+", "*"], [1, 1, 0]),
])
def test_majority_vote(words, scores):
    assert [v.score for v in MajorityVote(share=0.5)(group(*words))] == scores
    first = MajorityVote(share=0.0, ties="first")(group("7", "8", "9"))
    assert [v.score for v in first] == [1.0, 0.0, 0.0]
    votes = MajorityVote(share=0.0)(group("Yes", "yes", "YES", "No", "No"))
    assert [(v.score, v.parts["vote_share"]) for v in votes[::4]] == [(1.0, 0.6), (0.0, 0.6)]
    assert votes[0].rationale == "Yes", "what was parsed is kept as it was said"


def evidence(words: str) -> str | None:
    return words.split("=")[0].strip() or None if "=" in words else None


def follows(words: str, question: str) -> bool | None:
    if "sum" not in question:
        return None
    return "=" in words and sum(int(d) for d in words.split("=")[0].split()) == int(
        words.split("=")[1])


@pytest.mark.parametrize(("words", "question", "scores"), [
    (["3 4 = 7"] * 3, "the sum", [1, 1, 1]),
    (["3 4 = 7"] * 3 + ["3 5 = 8"], "the sum", [1, 1, 1, 0]),
    (["3 4 = 7"] * 3 + ["3 4 = 9"], "the sum", [1, 1, 1, 0]),        # right digits, wrong sum
    (["3 4 = 7"] * 2, "the sum", [None] * 2),                        # too few
    (["3 4 = 7", "3 5 = 8", "1 1 = 2"], "the sum", [None] * 3),      # nobody agrees
    (["7", "7", "7"], "the sum", [None] * 3),                        # no evidence at all
    (["3 4 = 7"] * 3, "the colour", [None] * 3),                     # cannot tell if it follows
])
def test_agreement(words, question, scores):
    verdicts = Agreement(evidence, follows)(group(*words, question=question))
    assert [v.score for v in verdicts] == scores


# -- combinations -------------------------------------------------------------------------------

def right(rollout):
    return True


def wrong(rollout):
    return 0.0


def unsure(rollout):
    return None


def half(rollout):
    return 0.5


def raising(rollout):
    raise ZeroDivisionError("oops")


@pytest.mark.parametrize(("parts", "score"), [
    ((right, right), 1.0), ((right, wrong), 0.0), ((right, unsure), None), ((unsure, unsure), None),
    ((wrong, unsure), 0.0), ((unsure, wrong), 0.0), ((half, half), 0.25), ((half, right), 0.5),
])
def test_all_of(parts, score):
    assert AllOf(parts)(said("7")).score == score


@pytest.mark.parametrize(("parts", "score"), [
    (((1.0, right), (3.0, wrong)), 0.25), (((1.0, right), (9.0, unsure)), 1.0),
    (((1.0, unsure),), None), (((2.0, half), (2.0, right)), 0.75),
])
def test_weighted(parts, score):
    assert Weighted(parts)(said("7")).score == score


def test_combinations_hand_gold_to_those_who_name_it():
    both = AllOf((exact, right))
    assert call_by_name(both, rollout=said("7"), answer="7").score == 1.0
    assert call_by_name(both, rollout=said("8"), answer="7").score == 0.0
    assert call_by_name(both, rollout=said("8"), answer=None).score is None


@pytest.mark.parametrize(("sampling", "score"), [
    ({"return": 3.0}, 1.5), ({"return": 0}, 0.0), ({}, None), ({"return": "much"}, None),
    ({"return": -1}, -0.5),
])
def test_environment_return(sampling, score):
    assert EnvironmentReturn(scale=2.0)(said("x", **sampling)).score == score


# -- judging ------------------------------------------------------------------------------------

def nan(rollout):
    return float("nan")


def a_word(rollout):
    return "yes"


def too_few(group):
    return [True]


def no_list(group):
    return None


async def annotates(group):
    return group.model_copy(update={
        "verdicts": tuple(Verdict(score=1.0) for _ in group.rollouts), "annotations": {"n": 2}})


def judged(verifier):
    return judge(verifier, [group("7", "8"), group("9", "9")], Doors({}, 0, "0"))


@pytest.mark.parametrize("verifier", [raising, nan, a_word, too_few, no_list])
def test_what_goes_wrong_is_an_error_and_never_a_zero(verifier):
    found = judged(verifier)
    verdicts = [v for g in found.groups for v in g.verdicts]
    assert (found.unknown.errors, found.unknown.rollouts) == (4, 4)
    assert all(v.error and v.score is None and verifier.__name__ in v.verifier for v in verdicts)
    assert "r0" in found.unknown.first_error and verifier.__name__ in found.unknown.first_error


def test_what_a_verifier_may_return():
    for verifier, scores in ((right, [1.0, 1.0]), (wrong, [0.0, 0.0]), (unsure, [None, None]),
                             (half, [0.5, 0.5]), (annotates, [1.0, 1.0]),
                             (MajorityVote(ties="first"), [1.0, 0.0])):
        found = judged(verifier)
        assert [v.score for v in found.groups[0].verdicts] == scores
        assert found.unknown.errors == 0
    assert judged(annotates).groups[0].annotations == {"n": 2}
    blank = judged(None)
    assert [v.score for g in blank.groups for v in g.verdicts] == [None] * 4


# -- verifiers that fail in a run ----------------------------------------------------------------

def fails(rollout, answer):
    """Wrote before it was tested."""
    raise ZeroDivisionError("division by zero")


def fails_sometimes(rollout, answer):
    """On about one answer in four."""
    if int(rollout.id, 16) % 4 == 0:
        raise ZeroDivisionError("division by zero")
    return rollout.text.split()[:1] == [answer]


def mended(rollout, answer):
    return rollout.text.split()[:1] == [answer]


@dataclass(frozen=True)
class Counting(Independent):
    """Leaves a mark for every sample it draws for."""

    log: str = ""

    async def __call__(self, generate, sample, key):
        with open(self.log, "a") as log:
            log.write(f"{sample.id}\n")
        return await super().__call__(generate, sample, key)


def loop_with(verifier, log: Path, metric=None, **options) -> Loop:
    return Loop(name="judged", sampler=Counting(n=4, max_new_tokens=3, log=str(log)),
                verifier=verifier, shard=3, iterations=1, gate=None,
                evaluation=Evaluation(metric=metric) if metric else None,
                learn={"solver": Learn(organizer=Chain(maker=Demonstrate()), loss=SFT(),
                                       optim=Optim(lr=0.1, updates=2))}, **options)


def go(loop, tmp_path, where="run"):
    data = toyland.samples(tmp_path / "data", 6)
    return run(loop, data, ToyEngine(("yes", "no"), seed=1), tmp_path / where)


def test_a_verifier_that_fails_stops_the_run_and_what_was_collected_stays(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(SelfloopError) as caught:
        go(loop_with(fails, log), tmp_path)
    message = str(caught.value)
    for what in ("fails", "failed on 24 of 24 rollouts", "max_errors=0.05", "ZeroDivisionError",
                 "division by zero", "mend the verifier and run again", str(tmp_path / "run")):
        assert what in message
    folder = RunFolder(tmp_path / "run")
    assert len(list(folder.step(0).glob("rollouts-*.parquet"))) == 2
    assert folder.manifest(0) is None
    assert len(log.read_text().split()) == 6


@pytest.mark.parametrize("broken", [fails, fails_sometimes])
def test_a_mended_verifier_judges_the_stored_rollouts_without_drawing_again(tmp_path, broken):
    log = tmp_path / "log"
    with pytest.raises(SelfloopError, match="mend the verifier"):
        go(loop_with(broken, log), tmp_path)
    drawn = [p.read_bytes() for p in sorted((tmp_path / "run/steps/000000").glob("rollouts-*"))]
    assert len(go(loop_with(mended, log), tmp_path)) == 1
    assert len(log.read_text().split()) == 6, "nothing was drawn again"
    assert drawn == [p.read_bytes() for p in
                     sorted((tmp_path / "run/steps/000000").glob("rollouts-*"))]
    go(loop_with(mended, log), tmp_path, "fresh")
    for name in ("steps/000000/manifest.json", "loop.json",
                 "checkpoints/000001/solver/trainable.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    with pytest.raises(SelfloopError, match=r"another loop .verifier was"):
        go(loop_with(exact, log), tmp_path)  # once it has judged a step, it stays


def test_a_mended_metric_judges_the_seeds_answers_again(tmp_path):
    data, dev = toyland.samples(tmp_path / "d", 6), toyland.samples(tmp_path / "d", 6, first=6)
    log, place = tmp_path / "log", tmp_path / "run"

    def start(verifier):
        return run(loop_with(verifier, log, metric=verifier), data,
                   ToyEngine(("yes", "no"), seed=1), place, dev=dev)

    with pytest.raises(SelfloopError, match="mend the verifier"):
        start(fails)
    start(mended)
    from selfloop.evaluate.answers import read
    assert all(a.right is not None for a in read(place / "iterations/seed/answers.parquet"))


def test_a_few_failures_are_counted_stored_and_do_not_stop(tmp_path):
    done = go(loop_with(fails_sometimes, tmp_path / "log", max_errors=0.9), tmp_path)
    folder = RunFolder(tmp_path / "run")
    errors = sum(v.error for g in folder.groups(0) for v in g.verdicts)
    assert 0 < errors == folder.manifest(0)["counts"]["errors"] < 24
    assert folder.manifest(0)["counts"]["unjudged"] == errors == done[0].counts["errors"]


def test_every_shards_verdicts_are_stored_even_where_one_shard_had_many_failures(tmp_path):
    """The share is judged over the step; a bad shard in a good step is not lost."""
    loop = loop_with(fails_on_one, tmp_path / "log", max_errors=0.2)
    go(loop, tmp_path)
    folder = RunFolder(tmp_path / "run")
    assert all(g.verdicts for g in folder.groups(0))
    assert folder.manifest(0)["counts"]["errors"] == 4


def fails_on_one(rollout, sample):
    """On the four answers to one problem: a third of its shard, a sixth of the step."""
    if sample.media[0].meta["uri"].endswith("/0.png"):
        raise ZeroDivisionError
    return True


def test_votes_are_counted_question_by_question():
    """Related questions about one picture: "yes" is no wrong answer to "how many ?"."""
    asked = [("yes", "any ?"), ("yes", "any ?"), ("no", "any ?"), ("3", "many ?"), ("3", "many ?")]
    both = group(*(words for words, _ in asked))
    rollouts = [r.model_copy(update={"sampling": {"question": question}})
                for r, (_, question) in zip(both.rollouts, asked, strict=True)]
    found = MajorityVote()(both.model_copy(update={"rollouts": tuple(rollouts)}))
    assert [v.score for v in found] == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert found[0].parts["vote_share"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("metric", [
    MajorityVote(), SoftVote(), Agreement(str, str), PairwiseJudge(), ReferencePairwiseJudge(),
    OwnQuestions(MajorityVote())])
def test_what_compares_answers_is_no_metric(metric):
    """One answer agrees with itself: evaluation would always show 100 %."""
    with pytest.raises(SelfloopError, match="name as metric what tells right from wrong"):
        Evaluation(metric=metric)
    with pytest.raises(SelfloopError, match="name as metric"):
        star(metric)
    assert star(metric, exact).evaluation.metric is exact


def own_vote(group):
    """A vote that somebody wrote."""
    first = group.rollouts[0].text
    return [float(r.text == first) for r in group.rollouts]


def each_by_itself(group):
    return [float(bool(r.text)) for r in group.rollouts]


each_by_itself.compares = False


def labelled_group(group, answer):
    return [float(r.text == answer) for r in group.rollouts]


def test_a_vote_of_ones_own_is_no_metric_either():
    with pytest.raises(SelfloopError, match="let it say `compares = False`"):
        Evaluation(metric=own_vote)
    for metric in (each_by_itself, labelled_group):
        assert Evaluation(metric=metric).metric is metric


def test_a_vote_has_a_share_and_a_rule_for_ties():
    for options in ({"share": 50}, {"ties": "last"}):
        with pytest.raises(SelfloopError, match="ties abstain or first"):
            MajorityVote(**options)
