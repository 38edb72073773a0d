"""A vote is counted alike where it trains, where it is an arm and where it is reported."""

from __future__ import annotations

import pytest

from selfloop.evaluate.answers import Answer
from selfloop.evaluate.arms import _winner
from selfloop.evaluate.calibration import vote_precision
from selfloop.evaluate.monitors import monitors, of_answers
from selfloop.evaluate.scoring import solved
from selfloop.organize.verify.vote import MajorityVote
from selfloop.probed import _vote
from selfloop.types import Group
from test_refine_more import group

SPELLED = ["No", "No", "Yes", "\\boxed{yes}", "**yes**", "yes."]
"""Four say yes, in three spellings; "No" is the spelling that comes most often, beside "yes"."""
SAME = ["no", "no", "yes", "yes", "yes", "yes"]


def asked(texts: list[str]) -> Group:
    plain = group([0] * len(texts), texts)
    return plain.model_copy(update={"verdicts": (), "rollouts": tuple(
        r.model_copy(update={"context": plain.sample.context}) for r in plain.rollouts)})


def drawn(texts: list[str]) -> list[Answer]:
    return [Answer(sample="s", cluster="s", arm="draws", draw=i, text=text, parsed=text,
                   right="yes" in text.lower(), gold="yes") for i, text in enumerate(texts)]


def test_spelling_changes_no_vote():
    trained = MajorityVote()(asked(SPELLED))
    assert [v.score for v in trained] == [0, 0, 1, 1, 1, 1]
    assert _winner(asked(["No", "No", "Yes", "YES", "**Yes**"])).lower().strip("*") == "yes"
    share = trained[0].parts["vote_share"]
    (told,) = vote_precision(drawn(SPELLED)).bins
    assert told.confidence == pytest.approx(share) and told.accuracy == 1
    assert _vote(drawn(SPELLED)) == (pytest.approx(share), True)


@pytest.mark.parametrize("figures", [
    lambda texts: {k: v for k, v in of_answers(drawn(texts)).items() if k in (
        "maj@6", "vote_share", "draw_entropy")},
    lambda texts: {k: v.value for k, v in solved(drawn(texts)).items()},
    lambda texts: {k: v for k, v in monitors([asked(texts)]).items() if k in (
        "vote_share", "distinct", "entropy")},
])
def test_figures_of_a_vote_are_those_of_plainly_spelled_answers(figures):
    assert figures(SPELLED) == pytest.approx(figures(SAME)) and figures(SAME)


def test_what_is_no_answer_has_no_vote():
    """A description drawn beside four equal answers: they agree wholly."""
    plain = asked(["a red cat on a mat", "7", "7", "7", "7"])
    first, *others = plain.rollouts
    staged = plain.model_copy(update={"rollouts": (
        first.model_copy(update={"sampling": {"stage": "description"}}), *others)})
    found = monitors([staged])
    assert (found["vote_share"], found["entropy"]) == (1, 0) and found["drawn"] == 5
