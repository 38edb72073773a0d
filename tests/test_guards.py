"""Every guard's truth table; actions, bounds and reasons to stop."""

from __future__ import annotations

import math

import pytest

from selfloop.evaluate.acting import (
    Acting,
    Hold,
    RaiseTemperature,
    RefreshReference,
    RollBack,
    ShrinkLearningRate,
    Stop,
    in_words,
)
from selfloop.evaluate.forgetting import Forgetting
from selfloop.evaluate.gate import GUARDS, Gate
from selfloop.evaluate.guards import (
    AnswerEntropy,
    Blind,
    DistinctAnswers,
    EmptyAnswers,
    LengthRatio,
    ParseRate,
    PassAtK,
    Unjudged,
    YesRate,
)
from selfloop.evaluate.rewarding import Disagreement, RewardParting
from selfloop.roles import SelfloopError
from selfloop.types import Decision, Iteration
from selfloop.words import Adjustment

N = {"questions": 400.0}
YES = {"yes_gold": 0.5, "yes_questions": 400.0}


def suite(now, then, p, low, epsilon=0.05, unjudged=(0.0, 0.0)):
    return {"suite/a": now, "suite/a/seed": then, "suite/a/p_worse": p, "suite/a/low": low,
            "suite/a/epsilon": epsilon, "suite/a/n": 40.0, "suite/a/unjudged": unjudged[0],
            "suite/a/unjudged_seed": unjudged[1]}


FIRES = [
    (EmptyAnswers(), {"empty": 0.21}, {"empty": 0.1}, True),
    (EmptyAnswers(), {"empty": 0.2}, {"empty": 0.1}, False),
    (EmptyAnswers(), {"empty": 0.3}, {"empty": 0.4}, False),
    (EmptyAnswers(), {"empty": 0.3}, {}, True),
    (ParseRate(), {"parsed": 0.85}, {"parsed": 0.97}, True),
    (ParseRate(), {"parsed": 0.92}, {"parsed": 0.97}, False),
    (ParseRate(), {"parsed": 0.45}, {"parsed": 0.5}, True),
    (ParseRate(), {"parsed": 0.45}, {"parsed": 0.3}, False),
    (ParseRate(min=0.4), {"parsed": 0.45}, {"parsed": 0.5}, False),
    (LengthRatio(), {"mean_tokens": 31.0}, {"mean_tokens": 10.0}, True),
    (LengthRatio(), {"mean_tokens": 30.0}, {"mean_tokens": 10.0}, False),
    (LengthRatio(), {"mean_tokens": 2.0}, {"mean_tokens": 10.0}, True),
    (LengthRatio(), {"mean_tokens": 2.0}, {"mean_tokens": 0.0}, False),
    (DistinctAnswers(), {"distinct": 0.04}, {"distinct": 0.1}, True),
    (DistinctAnswers(), {"distinct": 0.05}, {"distinct": 0.1}, False),
    (DistinctAnswers(), {"distinct": 0.02, "distinct_gold": 0.02}, {"distinct": 0.1}, False),
    (DistinctAnswers(), {"distinct": 0.009, "distinct_gold": 0.02}, {"distinct": 0.1}, True),
    (PassAtK(), {"pass@1": 0.6, "pass@8": 0.70}, {"pass@1": 0.5, "pass@8": 0.8}, True),
    (PassAtK(), {"pass@1": 0.4, "pass@8": 0.70}, {"pass@1": 0.5, "pass@8": 0.8}, False),
    (PassAtK(), {"pass@1": 0.6, "pass@8": 0.79}, {"pass@1": 0.5, "pass@8": 0.8}, False),
    (PassAtK(), {"pass@1": 0.6}, {"pass@1": 0.5}, False),
    (PassAtK(), {"pass@1": 0.6, "pass@4": 0.6, "pass@8": 0.9},
     {"pass@1": 0.5, "pass@4": 0.8}, True),
    (Blind(), {"no_image": 0.36}, {"no_image": 0.3}, True),
    (Blind(), {"no_image": 0.34}, {"no_image": 0.3}, False),
    (Blind(), {"no_image": 0.36, "questions": 300.0}, {"no_image": 0.3}, False),
    (Blind(), {"no_image": 0.45, "questions": 300.0}, {"no_image": 0.3}, True),
    (Blind(), {"no_image": 0.45, "visual_gain": 0.3, "questions": 300.0},
     {"no_image": 0.3, "visual_gain": 0.3}, False),
    (Blind(), {"no_image": 0.45, "visual_gain": 0.15, "questions": 300.0},
     {"no_image": 0.3, "visual_gain": 0.3}, True),
    (EmptyAnswers(), {"empty": 0.21, "questions": 20.0}, {"empty": 0.1}, False),
    (EmptyAnswers(), {"empty": 0.35, "questions": 400.0}, {"empty": 0.1}, True),
    (ParseRate(), {"parsed": 0.85, "questions": 20.0}, {"parsed": 0.97}, False),
    (ParseRate(), {"parsed": 0.45, "questions": 400.0}, {"parsed": 0.47}, False),
    (PassAtK(), {"pass@1": 0.6, "pass@8": 0.75, **N}, {"pass@1": 0.5, "pass@8": 0.8}, False),
    (PassAtK(), {"pass@1": 0.6, "pass@8": 0.70, **N}, {"pass@1": 0.5, "pass@8": 0.8}, True),
    (AnswerEntropy(), {"entropy": 0.4}, {"entropy": 1.0}, True),
    (AnswerEntropy(), {"entropy": 0.6}, {"entropy": 1.0}, False),
    (AnswerEntropy(), {"entropy": 0.4, "entropy_gold": 0.6}, {"entropy": 1.0}, False),
    (AnswerEntropy(), {"entropy": 0.2, "entropy_gold": 0.6}, {"entropy": 1.0}, True),
    (AnswerEntropy(), {"entropy": 0.4, "entropy_se": 0.3},
     {"entropy": 1.0, "entropy_se": 0.3}, False),
    (AnswerEntropy(), {"entropy": 0.0, "entropy_gold": 0.0}, {"entropy": 0.7}, False),
    (AnswerEntropy(), {"draw_entropy": 0.1, "pass@1": 0.5}, {"draw_entropy": 0.9, "pass@1": 0.5},
     True),
    (AnswerEntropy(), {"draw_entropy": 0.1, "pass@1": 0.6}, {"draw_entropy": 0.9, "pass@1": 0.5},
     False),
    (AnswerEntropy(), {"draw_entropy": 0.1}, {"draw_entropy": 0.9}, False),
    (YesRate(), {"yes_share": 0.8, **YES}, {"yes_share": 0.55}, True),
    (YesRate(), {"yes_share": 0.65, **YES}, {"yes_share": 0.55}, False),
    (YesRate(), {"yes_share": 0.2, **YES}, {"yes_share": 0.55}, True),
    (YesRate(), {"yes_share": 0.5, **YES}, {"yes_share": 0.9}, False),
    (YesRate(), {"yes_share": 0.1, **YES}, {"yes_share": 0.9}, False),
    (YesRate(), {"yes_share": 0.8, **YES, "yes_questions": 10.0}, {"yes_share": 0.55}, False),
    (YesRate(), {"yes_share": 0.8}, {"yes_share": 0.55}, False),
    (Disagreement(), {"disagreement": 0.3, **N}, {"disagreement": 0.1}, True),
    (Disagreement(), {"disagreement": 0.13, **N}, {"disagreement": 0.1}, False),
    (Disagreement(), {"disagreement": 0.3, "questions": 10.0}, {"disagreement": 0.1}, False),
    (Disagreement(), {"disagreement": 0.1, **N}, {"disagreement": 0.3}, False),
    (Disagreement(), {"train_disagreement": 0.3, "train_n": 400.0}, {"train_disagreement": 0.1},
     True),
    (RewardParting(), {"reward": 0.8, "accuracy": 0.50, **N}, {"reward": 0.5, "accuracy": 0.52},
     True),
    (RewardParting(), {"reward": 0.8, "accuracy": 0.78, **N}, {"reward": 0.5, "accuracy": 0.52},
     False),
    (RewardParting(), {"reward": 0.9, "accuracy": 0.54, **N}, {"reward": 0.5, "accuracy": 0.52},
     True),
    (RewardParting(), {"reward": 0.55, "accuracy": 0.50, **N}, {"reward": 0.5, "accuracy": 0.52},
     False),
    (RewardParting(), {"reward": 0.8, **N}, {"reward": 0.5}, False),
    (RewardParting(), {"train_reward": 0.9, "train_n": 400.0, "accuracy": 0.40, **N},
     {"train_reward": 0.6, "accuracy": 0.52}, True),
    (RewardParting(), {"train_reward": 0.9, "train_n": 400.0, "accuracy": 0.50, **N},
     {"train_reward": 0.6, "accuracy": 0.52}, False),  # it may only have learnt its questions
    (RewardParting(), {"train_reward": 0.6, "train_n": 400.0, "accuracy": 0.40, **N},
     {"train_reward": 0.6, "accuracy": 0.52}, False),  # worse, but not because of the reward
    (Forgetting(), suite(0.5, 0.9, 0.001, -0.5), {}, True),
    (Forgetting(), suite(0.88, 0.9, 0.001, -0.04), {}, False),  # worse, within epsilon
    (Forgetting(), suite(0.85, 0.9, 0.20, -0.15), {}, False),   # not shown to be worse
    (Forgetting(), suite(0.85, 0.9, 0.03, -0.15), {}, True),
    (Forgetting(), suite(0.85, 0.9, 0.03, -0.15) | {"suite/b/epsilon": 0.05}, {}, False),
    (Forgetting(), suite(0.85, 0.9, 0.03, -0.15, epsilon=0.2), {}, False),
    (Forgetting(), suite(0.9, 0.9, 1.0, 0.0, unjudged=(0.6, 0.1)), {}, True),
    (Forgetting(), suite(0.9, 0.9, 1.0, 0.0, unjudged=(0.2, 0.1)), {}, False),
    (Unjudged(), {"unjudged": 0.05}, {"unjudged": 0.02}, True),
    (Unjudged(), {"unjudged": 0.05, "questions": 60.0}, {"unjudged": 0.02}, False),
    (Unjudged(), {"unjudged": 0.03}, {"unjudged": 0.02}, False),
]


@pytest.mark.parametrize(("guard", "now", "then", "fires"), FIRES)
def test_guards(guard, now, then, fires):
    assert (guard(now, then) is not None) == fires


@pytest.mark.parametrize("guard", Gate().guards)
def test_guards_abstain_without_figures(guard):
    names = ("empty", "parsed", "mean_tokens", "distinct", "no_image", "unjudged", "pass@1",
             "pass@8")
    unknown = dict.fromkeys(names, math.nan)
    assert guard({}, {}) is None and guard(unknown, unknown) is None
    assert guard({}, dict.fromkeys(names, 1.0)) is None


def test_every_guard_has_a_truth_table():
    assert {type(g) for g in GUARDS} == {type(g) for g, *_ in FIRES} == {
        type(g) for g in Gate().guards}
    for guard in GUARDS:
        seen = {fires for g, _, _, fires in FIRES if type(g) is type(guard)}
        assert seen == {True, False}, guard


def test_reasons_hold_the_figures():
    said = RewardParting()({"reward": 0.8, "accuracy": 0.5, **N}, {"reward": 0.5, "accuracy": 0.52})
    assert said == ("the reward of the dev answers went from 50.0 to 80.0 while dev accuracy went "
                    "from 52.0 to 50.0")
    said = Forgetting()(suite(0.5, 0.9, 0.001, -0.5), {})
    assert said.startswith("suite a fell from 90.0 at the seed to 50.0 (p=0.001 < 0.05")
    assert "80% of the yes/no answers are yes, 55% before, where 50%" in YesRate()(
        {"yes_share": 0.8, **YES}, {"yes_share": 0.55})


# -- actions --------------------------------------------------------------------------------------

def decided(action="hold", *guards):
    return Decision(action=action, why="because", guards=guards)


def after(*decisions, acting=None):
    """(last adjustment, last facts) of a run of these decisions."""
    done: list[Iteration] = []
    adjustment, taken = Adjustment(), []
    for i, decision in enumerate(decisions):
        adjustment, taken = (acting or Acting())(decision, done)
        done.append(Iteration(index=i, first_step=i, steps=1, version=i + 1, continue_from=0,
                              best=0, decision=decision, adjustment=adjustment))
    return adjustment, taken


def test_nothing_is_done_where_nothing_fired():
    for action in ("hold", "promote"):
        assert after(decided(action)) == (Adjustment(), [])
    assert after(*[decided("hold")] * 20) == (Adjustment(), []), "patience is None by default"


def test_actions_change_the_next_adjustment_and_are_told_with_their_figures():
    adjustment, taken = after(decided("roll back", "PassAtK"))
    assert adjustment == Adjustment(temperature=1.2)
    assert [t["action"] for t in taken] == ["RollBack", "RaiseTemperature"]
    assert taken[1] == {"action": "RaiseTemperature", "guard": "PassAtK", "why": "because",
                        "lr": 1.0, "temperature": 1.2, "refresh": False}
    assert in_words(taken) == ("temperature x 1.2",)
    assert after(decided("roll back", "Blind"))[0] == Adjustment(lr=0.5)
    assert after(decided("roll back", "SomebodysOwn"))[0] == Adjustment()
    assert after(decided("hold", "Forgetting"))[0] == Adjustment()


def test_two_guards_that_ask_for_the_same_get_it_once():
    adjustment, taken = after(decided("roll back", "Blind", "YesRate", "PassAtK"))
    assert adjustment == Adjustment(lr=0.5, temperature=1.2)
    assert [t["action"] for t in taken] == ["RollBack", "ShrinkLearningRate", "RaiseTemperature"]


def test_adjustments_add_up_within_bounds_and_stay():
    acting = Acting(strikes=None)
    five = [decided("roll back", "Blind", "PassAtK")] * 6
    assert after(*five, acting=acting)[0] == Adjustment(lr=0.05, temperature=1.5)
    assert after(decided("roll back", "Blind"), decided("promote"))[0] == Adjustment(lr=0.5)
    again = RaiseTemperature(1.1, most=1.15)
    hot = Adjustment(temperature=2.0)
    assert again(hot, "").temperature == 2.0, "a bound never undoes what was done"
    assert RefreshReference()(hot, "") == Adjustment(temperature=2.0, refresh=True)
    assert Stop()(Adjustment(stop="first"), "second").stop == "first"
    assert Hold()(hot, "") == RollBack()(hot, "") == hot


def test_the_same_trouble_twice_without_a_promotion_stops_the_run():
    twice = [decided("roll back", "Blind"), decided(), decided("roll back", "YesRate")]
    adjustment, taken = after(*twice)
    assert adjustment.stop == ("2 of 3 looks since the last promotion were harmful or set off a "
                               "guard (Blind, YesRate), and stepping back did not mend it")
    assert taken[-1]["action"] == "Stop"
    between = [twice[0], decided("promote"), twice[2]]
    assert not after(*between)[0].stop
    assert not after(twice[0], decided())[0].stop
    assert not after(*twice, acting=Acting(strikes=3))[0].stop
    assert after(decided("roll back"), decided("roll back"))[0].stop, "shown harm counts as well"


def test_patience():
    acting = Acting(patience=3)
    assert not after(*[decided()] * 2, acting=acting)[0].stop
    assert after(*[decided()] * 3, acting=acting)[0].stop == (
        "3 looks in a row promoted nothing: the loop no longer helps")
    assert not after(decided(), decided(), decided("promote"), decided(), acting=acting)[0].stop


def test_a_parted_reward_stops_at_once_and_the_mapping_can_be_changed():
    assert after(decided("roll back", "RewardParting"))[0].stop == "guard RewardParting fired"
    mild = Acting(on={"RewardParting": (RollBack(), ShrinkLearningRate(0.1))})
    assert after(decided("roll back", "RewardParting"), acting=mild)[0] == Adjustment(lr=0.1)
    assert mild.action(["RewardParting"]) == "roll back"
    assert mild.action(["Forgetting"]) == "hold"
    assert mild.actions("Blind") == Acting().actions("Blind")


@pytest.mark.parametrize(("make", "said"), [
    (lambda: Acting(strikes=0), "strikes=0"), (lambda: Acting(patience=0), "patience=0"),
    (lambda: Acting(on={"Blind": RollBack()}), "tuple of actions"),
    (lambda: ShrinkLearningRate(1.5), "factor"), (lambda: RaiseTemperature(0.9), "above 1"),
])
def test_senseless_actions_are_refused(make, said):
    with pytest.raises(SelfloopError, match=said):
        make()
