"""Advantages from rewards: closed forms against brute force, and what they leave out."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean, pstdev, stdev

import pytest

from selfloop.organize.advantages import (
    AsScored,
    Desirability,
    LeaveOneOut,
    Marked,
    OnlyBest,
    Overlong,
    PassAtK,
    RunningBaseline,
    Together,
    Whitened,
)
from selfloop.organize.beside import Beside
from selfloop.organize.chain import Chain
from selfloop.organize.signals import BestWorst, Demonstrate, GroupAdvantage
from selfloop.roles import SelfloopError
from selfloop.types import (
    Group,
    Media,
    Message,
    Part,
    Rollout,
    Sample,
    Turn,
    Verdict,
)


def group(scores, name="q", role=None, tokens=None, finish="stop", pictures=0) -> Group:
    media = tuple(Media(kind="image", sha256=str(i) * 64) for i in range(pictures))
    parts = (*(Part(type="image") for _ in media), Part(text=name))
    sample = Sample(prompt=(Message(role="user", content=parts),), media=media)
    rollouts = []
    for i, _ in enumerate(scores):
        n = tokens[i] if tokens else 1
        turn = Turn(prompt_token_ids=(1, 2), media=media, token_ids=(5 + i,) * n,
                    logprobs=(-1.0,) * n, temperature=0.5, finish_reason=finish)
        rollouts.append(Rollout(id=f"{name}/{i}", sample=sample.id, context=sample.context,
                                turns=(turn,), output=(Part(text=f"a{i}"),),
                                role=role[i] if role else "solver"))
    return Group(sample=sample, rollouts=tuple(rollouts),
                 verdicts=tuple(Verdict(score=s) for s in scores))


def values(made):
    return [s.advantage for s in made]


def test_as_scored_leaves_out_what_was_not_judged():
    made = AsScored()([group([1.0, None, 0.0])], "k")
    assert values(made) == [1.0, 0.0]
    assert [s.rollouts for s in made] == [("q/0",), ("q/2",)] and made[0].group == made[0].sample


def test_leave_one_out():
    found = values(LeaveOneOut()([group([1.0, 0.0, 0.5, None]), group([1.0, 1.0], "same"),
                                  group([1.0], "alone")], "k"))
    assert found == pytest.approx([1 - 0.25, 0 - 0.75, 0.5 - 0.5])


def test_whitened_over_the_step():
    groups = [group([1.0, 0.0]), group([4.0, 2.0, 0.0], "r")]
    scores = [1.0, 0.0, 4.0, 2.0, 0.0]
    assert values(Whitened()(groups, "k")) == pytest.approx(
        [(s - fmean(scores)) / pstdev(scores) for s in scores])
    centred = [0.5, -0.5, 2.0, 0.0, -2.0]
    assert values(Whitened(centre=True)(groups, "k")) == pytest.approx(
        [s / pstdev(centred) for s in centred])
    assert Whitened()([group([None])], "k") == []


def test_only_the_best_and_by_how_much():
    scores = [0.2, 0.9, 0.5]
    assert values(OnlyBest()([group(scores), group([1.0, 1.0, 0.0], "tie")], "k")) \
        == pytest.approx([0.0, 0.4 / stdev(scores), 0.0], rel=1e-5)


@pytest.mark.parametrize(("k", "scores"), [
    (1, [1, 0, 0, 1, 0]), (2, [1, 0, 0, 1, 0]), (3, [1, 0, 0, 0, 0, 0]), (4, [1, 0, 0, 0, 0, 1])])
def test_pass_at_k_is_the_mean_over_all_subsets(k, scores):
    subsets = list(combinations(range(len(scores)), k))
    best = [max(scores[i] for i in subset) for subset in subsets]
    mean, std = fmean(best), pstdev(best)
    by_hand = [fmean((b - mean) / std for b, s in zip(best, subsets, strict=True) if i in s)
               for i in range(len(scores))]
    assert values(PassAtK(k)([group(scores)], "k")) == pytest.approx(by_hand)


def test_pass_at_one_is_grpo_and_certain_groups_teach_nothing():
    one = values(PassAtK(1)([group([1, 0, 0, 1, 1])], "k"))
    assert one == pytest.approx(values(GroupAdvantage(eps=0.0)([group([1, 0, 0, 1, 1])], "k")))
    assert PassAtK(3)([group([1, 1, 0, 0])], "k") == [], "any three hold a right one"
    assert PassAtK(4)([group([1, 0])], "k") == [] == PassAtK(2)([group([0, 0, 0])], "k")


def test_desirability_gives_every_answer_another_problems():
    groups = [group([1.0, 0.0], "a"), group([0.0, None, 1.0], "b")]
    made = Desirability()(groups, "k")
    assert values(made) == [1.0, -1.0, -1.0, 1.0]
    tokens = {r.turns[0].token_ids: g.sample.id for g in groups for r in g.rollouts}
    for signal in made:
        answer, other = signal.branches["answer"], signal.branches["mismatched"]
        assert other.context == answer.context
        assert answer.turns[0].temperature == other.turns[0].temperature == 1.0
    crossed = {(s.sample, s.branches["mismatched"].turns[0].token_ids) for s in made}
    assert len(tokens) == 3 and crossed, "tokens are alike between problems here"
    assert made == Desirability()(groups, "k")
    assert Desirability()([group([1.0, 0.0])], "k") == []


def test_a_running_baseline_a_role():
    """Vision-Zero: each role is held against its own past."""
    step = RunningBaseline(decay=0.75)
    one = group([1.0, 0.0, 4.0], role=["spy", "spy", "civilian"])
    lower, update = step([one], {})
    assert [v.score for v in lower[0].verdicts] == [1.0, 0.0, 4.0]
    assert update["baseline"] == pytest.approx({"spy": 0.25 * 0.5, "civilian": 1.0})
    lower, update = step([one], update)
    assert [v.score for v in lower[0].verdicts] == pytest.approx([0.875, -0.125, 3.0])
    chain = Chain(steps=(step,), maker=AsScored())
    _, state, _ = chain([one], {}, "k")
    made, state, _ = chain([one], state, "k")
    assert values(made) == pytest.approx([0.875, -0.125, 3.0]) and "baseline" in state


def test_overlong_answers_pay_by_length():
    """DAPO, eq. 13, limit 10 and cache 4: free to 6 tokens, -1 from 10 on, and where cut."""
    found = Overlong(10, 4)([group([1.0] * 5 + [None], tokens=[3, 6, 8, 10, 12, 12])])[0]
    assert [v.score for v in found.verdicts] == [1.0, 1.0, 0.5, 0.0, 0.0, None]
    assert Overlong(10, 4)([group([1.0], finish="length")])[0].verdicts[0].score == 0.0
    with pytest.raises(SelfloopError, match="0 < cache <= limit"):
        Overlong(4, 5)


def test_several_makers_together():
    both = Together((GroupAdvantage(), Demonstrate(per_sample=1)))
    made = both([group([1.0, 0.0])], "k")
    assert [s.kind for s in made] == ["advantage", "advantage", "demonstration"]
    assert {s.kind for s in both.makes} == {"advantage", "demonstration"}
    with pytest.raises(SelfloopError, match="at least one"):
        Together(())


def test_only_right_rethinks_are_imitated_beside_reinforcing_all():
    """VL-Rethinker: the imitation is of continuations after a trigger that end right."""
    plain = group([1.0, 0.0, 1.0, 0.0])
    found = plain.model_copy(update={"rollouts": tuple(
        r.model_copy(update={"sampling": {"rethought": "q/0"}}) if i >= 2 else r
        for i, r in enumerate(plain.rollouts))})
    made = Together((GroupAdvantage(), Marked(Demonstrate(), "rethought")))([found], "k")
    assert [s.kind for s in made] == ["advantage"] * 4 + ["demonstration"]
    assert made[-1].rollouts == ("q/2",)


def test_the_same_answer_beside_itself_under_another_picture():
    groups = [group([1.0, 0.0], pictures=2), group([1.0, 0.0], "no picture")]
    made = Beside(GroupAdvantage(), "masked", "answer", "mask", 0.6)(groups, "k")
    assert len(made) == 2, "without a picture both branches would be one"
    for signal in made:
        answer, masked = signal.branches["answer"], signal.branches["masked"]
        assert [m.ops[-1].name for m in masked.context.media] == ["mask", "mask"]
        assert masked.turns[0].token_ids == answer.turns[0].token_ids
        assert masked.turns[0].temperature == answer.turns[0].temperature == 0.5
        assert masked.turns[0].logprobs is None and not masked.turns[0].prompt_token_ids
    twice = Beside(Beside(BestWorst(), "chosen_blind", "chosen"), "rejected_blind", "rejected")
    assert set(twice(groups, "k")[0].branches) == set(twice.makes[0].branches) == {
        "chosen", "rejected", "chosen_blind", "rejected_blind"}
    with pytest.raises(SelfloopError, match=r"has no branch 'target', only \['answer'\]"):
        Beside(GroupAdvantage(), "x", "target")(groups, "k")
