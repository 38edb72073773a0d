"""The gate's truth table, its guards, and its error rate over a whole run."""

from __future__ import annotations

import math

import pytest

from selfloop.evaluate.answers import Answer
from selfloop.evaluate.gate import (
    Blind,
    DistinctAnswers,
    EmptyAnswers,
    Gate,
    LengthRatio,
    ParseRate,
    PassAtK,
    Unjudged,
)
from selfloop.keys import generator
from selfloop.roles import SelfloopError
from selfloop.types import Decision


def answers(rights, per_cluster=1):
    return [Answer.model_construct(sample=f"q{i}", cluster=f"c{i // per_cluster}", right=r,
                                   draw=0, seed=0)
            for i, r in enumerate(rights)]


def first(n, of=200):
    """n right answers, then wrong ones."""
    return answers([True] * n + [False] * (of - n))


def test_promotes_what_is_shown_to_be_better():
    found = Gate()(first(130), first(110), 0)
    assert found.action == "promote" and found.gain == pytest.approx(0.1)
    assert found.why.startswith("promoted: 55.0 -> 65.0 on 200 dev questions, +10.0 points [")
    assert found.why.endswith("p<0.0001 < 0.025") and found.p_value < 1e-4
    assert found.interval[0] < 0.1 < found.interval[1]
    assert found.alpha_spent == 0.025 and found.guards == ()
    assert Decision.from_json(found.to_json()) == found


def test_holds_what_is_not_shown():
    found = Gate()(first(112), first(110), 0)
    assert found.action == "hold" and "p=0.25 >= 0.025" in found.why
    same = Gate()(first(110), first(110), 0)
    assert same.action == "hold" and same.p_value == 1.0 and same.gain == 0.0


def test_rolls_back_what_is_shown_to_be_worse():
    found = Gate()(first(100), first(110), 0)
    assert found.action == "roll back" and found.p_value < 0.025 and found.gain < 0
    assert "no worse" in found.why


def test_later_looks_ask_for_more():
    six = (first(116), first(110))  # p = 2^-6 = 0.0156
    actions = [Gate()(*six, look).action for look in range(3)]
    assert actions == ["promote", "hold", "hold"]
    assert Gate()(*six, 4).alpha_spent == pytest.approx(0.05 * 5 / 6)


def test_clusters_are_the_unit():
    rights = [True] * 40 + [False] * 160
    better, none = answers(rights, 20), answers([False] * 200, 20)
    assert Gate()(better, none, 0).action == "hold"  # two pictures, p = 1/4
    assert Gate()(answers(rights), answers([False] * 200), 0).action == "promote"


def test_a_significant_gain_may_be_too_small():
    found = Gate(min_gain=0.05)(first(118), first(110), 0)
    assert found.action == "hold" and "less than the required 5.0 points" in found.why
    assert Gate(min_gain=0.05)(first(121), first(110), 0).action == "promote"


def test_a_guard_rolls_back_even_a_better_model():
    found = Gate()(first(150), first(110), 0, {"empty": 0.5}, {"empty": 0.0})
    assert found.action == "roll back" and found.guards == ("EmptyAnswers",)
    assert "but guard EmptyAnswers: 50% of the answers are empty" in found.why
    off = Gate(guards=())(first(150), first(110), 0, {"empty": 0.5}, {"empty": 0.0})
    assert off.action == "promote"
    two = Gate()(first(150), first(110), 0, {"empty": 0.5, "no_image": 0.6},
                 {"empty": 0.0, "no_image": 0.2})
    assert two.guards == ("EmptyAnswers", "Blind")


def test_nothing_judged_is_held():
    found = Gate()(answers([None, None]), answers([True, True]), 0)
    assert found.action == "hold" and found.gain is None and "judged" in found.why
    fired = Gate()(answers([None]), answers([True]), 0, {"unjudged": 1.0}, {"unjudged": 0.0})
    assert fired.action == "roll back" and fired.guards == ("Unjudged",)


def test_one_cluster_proves_nothing():
    found = Gate()(answers([True] * 50, 50), answers([False] * 50, 50), 0)
    assert found.action == "hold" and found.interval is None
    assert Decision.from_json(found.to_json()) == found


def test_other_questions_and_bad_options_are_refused():
    with pytest.raises(SelfloopError, match="q199"):
        Gate()(first(100), first(100)[:-1], 0)
    with pytest.raises(SelfloopError, match="min_gain a fraction"):
        Gate(min_gain=2.0)
    with pytest.raises(SelfloopError, match="alpha"):
        Gate(alpha=0.0)


def test_the_same_answers_get_the_same_decision():
    a, b = first(116), first(110)
    assert Gate()(a, b, 1) == Gate()(a, b, 1)


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
    (Unjudged(), {"unjudged": 0.05}, {"unjudged": 0.02}, True),
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


def false_promotions(gate, looks=5, runs=300, clusters=50, size=3):
    """(share of runs that promote, share that roll back) when nothing ever gets better."""
    rng, up, down = generator("null"), 0, 0
    for _ in range(runs):
        lean = 0.25 + 0.5 * rng.random(clusters).repeat(size)  # pictures differ in difficulty
        seen = {gate(answers((rng.random(len(lean)) < flip).tolist(), size),
                     best, look).action
                for best in [answers((rng.random(len(lean)) < lean).tolist(), size)]
                for look in range(looks)
                for flip in [lean + 0.25 * rng.choice([-1, 1], clusters).repeat(size)]}
        up, down = up + ("promote" in seen), down + ("roll back" in seen)
    return up / runs, down / runs


def test_five_looks_promote_nothing_by_chance():
    up, down = false_promotions(Gate())
    assert 0 < up <= 0.06 and 0 < down <= 0.06


class Unspent(Gate):
    """A gate that spends its whole alpha at every look: the mistake that the test must see."""

    def _weigh(self, gain, level):
        return super()._weigh(gain, self.alpha)


def test_the_error_rate_test_sees_unspent_alpha():
    assert false_promotions(Unspent(), runs=100)[0] > 0.06
