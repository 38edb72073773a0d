"""Parts that were made apart, used together: who judges what, and who may see which picture."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from scripted import Scripted
from selfloop.auditing.audit import audit
from selfloop.calling import asks_a_model
from selfloop.doors import Doors
from selfloop.engines.toy import ToyEngine
from selfloop.organize.judging import SET_ASIDE, judge
from selfloop.organize.refine.annotate import WithBlindAnswers, WithDescription, WithHashes
from selfloop.organize.refine.blind import NeedsPicture
from selfloop.organize.verify.combine import AllOf, InGroups, Weighted
from selfloop.organize.verify.judges import PairwiseJudge, PointwiseJudge
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.vote import MajorityVote
from selfloop.pictures import read
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder
from selfloop.types import Group, Message, Part, Rollout, Sample, Turn, Verdict

ASKED = Sample(prompt=(Message(content="what is the sum ?"),), answer="6")


def said(text: str, **notes: object) -> Rollout:
    return Rollout(id=f"{text}{notes}", sample=ASKED.id, context=ASKED.context,
                   turns=(Turn(token_ids=()),), output=(Part(text=text),), sampling=notes)


@pytest.mark.parametrize(("notes", "score"), [
    ({}, 1.0),
    ({"question": "what is the sum ?"}, 1.0),
    ({"question": "what is the largest ?"}, None),  # the gold sum says nothing about it
    ({"proposed": "6"}, None),
    ({"proposal": "x", "question": "how many ?"}, None),
    ({"program": "6"}, None), ({"constructed": 6, "proposal": "x"}, None),
    ({"conceived": None}, None), ({"drawing": "x", "proposal": "x"}, None),
    ({"phase": "clue"}, None),
])
def test_gold_judges_answers_to_its_own_question_alone(notes, score):
    group = Group(sample=ASKED, rollouts=(said("6", **notes),))
    (verdict,) = judge(exact, [group], Doors({}, 0, "t")).groups[0].verdicts
    assert verdict.score == score
    assert score is not None or verdict.rationale == SET_ASIDE


def test_what_reads_no_gold_value_still_sees_every_question():
    group = Group(sample=ASKED, rollouts=tuple(
        said("6", question="what is the largest ?", draw=i) for i in range(3)))
    judged = judge(MajorityVote(), [group], Doors({}, 0, "t")).groups[0]
    assert [v.score for v in judged.verdicts] == [1.0] * 3


def lenient(request, draw):
    """A judge that likes the first of two answers, or gives ten points."""
    what, mark = re.findall(r"^(better|score) (.+): N$", request.context.text, re.M)[-1]
    return f"{what} {mark}: {1 if what == 'better' else 10}"


def test_a_judge_is_shown_the_question_that_was_answered():
    """Not the sample's own, where a sampler asked others about the same picture."""
    group = Group(sample=ASKED, rollouts=(
        said("6"), said("4", question="what is the largest ?"), said("2", question="how many ?")))
    engine = Scripted(lenient)
    judged = judge(PointwiseJudge(), [group], Doors({"judge": engine}, 0, "t")).groups[0]
    assert [v.score for v in judged.verdicts] == [1.0] * 3
    for text, own in zip(_texts(engine), ("the sum", "the largest", "how many"), strict=True):
        assert [q for q in ("the sum", "the largest", "how many") if q in text] == [own]


def test_a_judge_beside_a_vote_is_shown_the_question_that_was_answered():
    group = Group(sample=ASKED, rollouts=(
        said("6"), said("4", question="what is the largest ?"), said("2", question="how many ?")))
    engine = Scripted(lenient)
    both = InGroups(AllOf((MajorityVote(), PointwiseJudge())))
    judged = judge(both, [group], Doors({"judge": engine}, 0, "t")).groups[0]
    assert [v.score for v in judged.verdicts] == [1.0] * 3
    for text, own in zip(_texts(engine), ("the sum", "the largest", "how many"), strict=True):
        assert [q for q in ("the sum", "the largest", "how many") if q in text] == [own]


def test_answers_to_different_questions_are_not_compared():
    largest = {"question": "what is the largest ?"}
    group = Group(sample=ASKED, rollouts=(
        said("6"), said("4", **largest), said("7"), said("5", **largest)))
    engine = Scripted(lenient)
    judged = judge(PairwiseJudge(average=True), [group], Doors({"judge": engine}, 0, "t")).groups[0]
    assert [v.parts["comparisons"] for v in judged.verdicts] == [1.0] * 4
    assert len(engine.asked) == 4
    assert ["the largest" in text for text in _texts(engine)] == [False, False, True, True]


def _texts(engine: Scripted) -> list[str]:
    return [request.context.text for request in engine.asked]


# -- annotations ----------------------------------------------------------------------------------

async def asked_judge(rollout, generate):
    """A judge: it asks a model, whatever that says."""
    await generate(rollout.context, n=1, role="judge", label=rollout.id)
    return 1.0


def failing(rollout, answer):
    if rollout.context.media:
        return rollout.text == answer
    raise ValueError("no picture")


def pictured(tmp_path) -> Group:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    sample = Sample(prompt=(Message(content=(Part(type="image"), Part(text="?"))),),
                    media=tuple(read(tmp_path / "red.png")), answer="6")
    rollout = said("6").model_copy(update={"sample": sample.id, "context": sample.context})
    return Group(sample=sample, rollouts=(rollout,))


def judged_with(verifier, group: Group) -> Group:
    toy = ToyEngine(("6",), seed=0)
    toy.bind(lambda medium: None)
    return judge(verifier, [group], Doors({"solver": toy, "judge": toy}, 0, "t")).groups[0]


def test_stored_annotations_come_back_in_their_order(tmp_path):
    """A pool of a resumed run would differ from that of one that was never killed."""
    group = Group(sample=ASKED, rollouts=(said("6"),), verdicts=(Verdict(score=1),), annotations={
        "no_image": [1.0], "description": "six", "at": {"z": 1, "a": 2}})
    folder = RunFolder(tmp_path)
    folder.put_verdicts(0, 0, "plan", [group], {})
    ((back,), _) = folder.judged(0, 0, "plan", [group.model_copy(update={"annotations": {}})])
    assert back.to_json() == group.to_json()


@pytest.mark.parametrize("rule", [exact, asked_judge])
@pytest.mark.parametrize("order", [
    lambda rule: WithHashes(WithBlindAnswers(rule, n=2, max_new_tokens=1)),
    lambda rule: WithBlindAnswers(WithHashes(rule), n=2, max_new_tokens=1),
    lambda rule: WithDescription(WithHashes(WithBlindAnswers(rule, n=2, max_new_tokens=1)),
                                 max_new_tokens=1),
])
def test_annotations_are_left_in_any_order_also_by_judges(tmp_path, rule, order):
    found = judged_with(order(rule), pictured(tmp_path))
    assert [v.score for v in found.verdicts] == [1.0] and not found.verdicts[0].error
    assert None not in found.annotations["no_image"] and len(found.annotations["no_image"]) == 2
    assert len(found.annotations["perceptual_hashes"]) == 1
    assert NeedsPicture(k=1)([found]) == []


def test_a_filter_that_would_know_nothing_is_a_failure_and_not_silence(tmp_path):
    found = judged_with(WithBlindAnswers(failing, n=2, max_new_tokens=1), pictured(tmp_path))
    assert found.verdicts[0].error and "without the picture" in found.verdicts[0].rationale
    with pytest.raises(SelfloopError, match="MajorityVote judges the answers of a group together"):
        WithBlindAnswers(WithHashes(MajorityVote()))


def test_a_judge_within_a_combination_is_known_to_ask_a_model(tmp_path):
    assert asks_a_model(AllOf((exact, PointwiseJudge())))
    assert asks_a_model(WithHashes(Weighted(((1.0, exact), (1.0, PointwiseJudge())))))
    assert not asks_a_model(AllOf((exact, exact)))
    toy = ToyEngine(("score 7",), seed=0)
    samples = [ASKED, Sample(prompt=(Message(content="and now ?"),), answer="9")]
    one = audit(AllOf((exact, PointwiseJudge())), samples, quick=True,
                engines={"solver": toy, "judge": toy})
    plain = audit(AllOf((exact, exact)), samples, quick=True)
    assert sum(c.paid.n for c in one.cases) < sum(c.paid.n for c in plain.cases) / 2
