"""What samplers draw beside answers is not judged as answers: choices, critiques, descriptions."""

from __future__ import annotations

import re

import numpy as np

import toyland
from scripted import Scripted, asked, collect
from selfloop.collect.describing import Describe
from selfloop.collect.refine import CritiqueRevise, RefinedContext, SelectAmong
from selfloop.doors import Doors
from selfloop.engines.toy import EOS, ToyEngine
from selfloop.loop import Loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.judging import SET_ASIDE, judge
from selfloop.organize.refine.annotate import WithHashes
from selfloop.organize.signals import Demonstrate
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.vote import MajorityVote
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Group, Sample, Verdict

CHOOSE = SelectAmong(n=3, votes=4, instruction="of {n} , {which} ?", max_new_tokens=2)


class Counts(ToyEngine):
    """Answers 7, 8 or 9, and chooses the second of what is listed."""

    def _logp(self, table, request, cells, t):
        words = ("2",) if "of 3 ," in request.context.text else ("7", "8", "9")
        logp = np.full(self.shape[2], -np.inf)
        logp[[EOS] if t else [self.ids[w] for w in words]] = -np.log(1 if t else len(words))
        return logp


def judged(sampler, says, verifier, pictures=0):
    sample = asked("how many ?", pictures, "2")
    rollouts, engine = collect(sampler, says, sample)
    group = Group(sample=sample, rollouts=tuple(rollouts))
    return judge(verifier, [group], Doors({"solver": engine}, 0, "s"))


def test_a_choice_is_right_if_what_it_chose_is(tmp_path):
    """Gold "2", answers 7, 8 and 9: the choice "2" names a place and is no right answer."""
    samples = [Sample(prompt=s.prompt, media=s.media, answer=gold, meta=s.meta)
               for s, gold in zip(toyland.samples(tmp_path / "data", 6), "228822", strict=True)]
    loop = Loop(name="choose", sampler=CHOOSE, verifier=exact, iterations=1, samples=6,
                learn=toyland._learn(Demonstrate(per_sample=9), SFT()))
    run(loop, samples, Counts(("2", "7", "8", "9"), contexts=512), tmp_path / "run")
    found = RunFolder(tmp_path / "run")
    right, choices = set(), 0
    for group in found.groups(0):
        gold = next(s.answer for s in samples if s.id == group.sample.id)
        texts = {r.id: r.text for r in group.rollouts}
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            if rollout.sampling["stage"] == "choice":
                assert rollout.text == "2"
                assert verdict.score == (texts[rollout.sampling["chosen"]] == gold)
                choices += verdict.right
            right |= {rollout.id} if verdict.right else set()
        assert gold == "8" or not any(v.right for v in group.verdicts)
    signals = found.signals(0, "solver")
    assert choices and signals and {s.rollouts[0] for s in signals} <= right
    eights = {s.id for s in samples if s.answer == "8"}
    assert {s.sample for s in signals} <= eights, "no place is imitated as an answer"


def test_choices_have_no_vote():
    def says(request, index):
        listed = re.findall(r"^(\d)\. (\d+)", request.context.text, re.M)
        return next(place for place, said in listed if said == "7") if listed else "787"[index]

    for verifier in (MajorityVote(), WithHashes(MajorityVote())):
        (group,) = judged(SelectAmong(n=3, votes=5), says, verifier).groups
        assert [v.score for v in group.verdicts] == [1.0, 0.0, 1.0] + [1.0] * 5
        assert {v.parts["vote_share"] for v in group.verdicts[:3]} == {2 / 3}
    none = judged(SelectAmong(n=3), lambda r, i: "1 or 2" if "Here are" in r.context.text else "2",
                  exact).groups[0].verdicts[-1]
    assert none.score == 0.0 and "none of the answers" in none.rationale
    open_ = judged(SelectAmong(n=3), lambda r, i: "2", lambda rollout: None).groups[0].verdicts
    assert [v.score for v in open_] == [None] * 4


def test_critiques_and_descriptions_are_set_aside():
    found = judged(CritiqueRevise(n=2, keep_critiques=True), lambda r, i: "2", exact)
    scores = [v.score for v in found.groups[0].verdicts]
    assert scores == [1.0, None, 1.0] * 2
    assert found.groups[0].verdicts[1] == Verdict(rationale=SET_ASIDE)
    assert found.unknown.rollouts == 4 and not found.unknown.abstained, "nobody was asked"
    kept = judged(RefinedContext(n=1, rounds=2, keep=True), lambda r, i: "2", exact)
    assert [v.score for v in kept.groups[0].verdicts] == [None, None, 1.0]
    described = judged(Describe(), lambda r, i: "2", exact, pictures=1)
    assert [v.score for v in described.groups[0].verdicts] == [None]
    assert not described.unknown.rollouts


def test_a_verifier_may_say_that_it_judges_critiques():
    class Terse:
        stages = frozenset({"critique"})

        def __call__(self, rollout):
            return len(rollout.text) < 3

    found = judged(CritiqueRevise(n=1, keep_critiques=True), lambda r, i: "2", Terse())
    assert [v.score for v in found.groups[0].verdicts] == [None, 1.0, None]


def test_braces_in_an_instruction_are_left_alone():
    rollouts, engine = collect(SelectAmong(n=2, instruction='of {n}: {"answer": 1} {} {n'),
                               Scripted(lambda r, i: "1"))
    assert 'of 2: {"answer": 1} {} {n\n1. ' in engine.asked[-1].context.text
    assert rollouts[-1].sampling["stage"] == "choice"


def test_a_failing_verifier_s_errors_are_counted_once():
    def broken(rollout):
        raise ValueError("no")

    found = judged(SelectAmong(n=3, votes=2), lambda r, i: "2", broken)
    assert found.unknown.errors == 3 and found.groups[0].verdicts[-1].score is None
