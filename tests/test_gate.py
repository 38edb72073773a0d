"""The gate's truth table, and its error rate and power over a whole run."""

from __future__ import annotations

import pytest

from selfloop.evaluate.acting import Acting, Hold
from selfloop.evaluate.answers import Answer
from selfloop.evaluate.gate import Gate
from selfloop.evaluate.looks import joint_p
from selfloop.evaluate.statistics import SequentialAlpha
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
    assert off.guards == ()
    two = Gate()(first(150), first(110), 0, {"empty": 0.5, "no_image": 0.6},
                 {"empty": 0.0, "no_image": 0.2})
    assert two.guards == ("EmptyAnswers", "Blind")


def test_a_guard_may_hold_instead_but_never_let_through():
    gate = Gate(acting=Acting(on={"EmptyAnswers": (Hold(),)}))
    held = gate(first(150), first(110), 0, {"empty": 0.5}, {"empty": 0.0})
    assert held.action == "hold" and held.why.startswith("held: 55.0 -> 75.0")
    none = Gate(acting=Acting(on={"EmptyAnswers": ()}))(
        first(150), first(110), 0, {"empty": 0.5}, {"empty": 0.0})
    assert none.action == "hold"
    both = gate(first(150), first(110), 0, {"empty": 0.5, "no_image": 0.6},
                {"empty": 0.0, "no_image": 0.2})
    assert both.action == "roll back" and both.guards == ("EmptyAnswers", "Blind")
    harm = gate(first(90), first(110), 0, {"empty": 0.5}, {"empty": 0.0})
    assert harm.action == "roll back" and "it is no worse; guard EmptyAnswers" in harm.why


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


class Unspent(Gate):
    """A gate that spends its whole alpha at every look: the mistake that the test must see."""

    def _weigh(self, gain, level):
        return super()._weigh(gain, self.alpha)


# -- several looks at the same model --------------------------------------------------------------

def moved(up, down, of=200, right=100):
    """`right` of `of` right at first; then `down` of those are wrong and `up` others right."""
    return answers([i >= down for i in range(right)] + [i < up for i in range(of - right)])


def test_equal_candidates_share_one_test():
    """The same candidate four times is one test: what was not used at earlier looks comes back."""
    best, candidate = moved(0, 0), moved(18, 6)  # p = 0.011
    alone = Gate()(candidate, best, 3)
    assert alone.action == "hold" and ">= 0.0025" in alone.why
    again = Gate()(candidate, best, 3, earlier=[candidate] * 3)
    assert again.action == "promote" and "< 0.036 over 4 looks at the same model" in again.why
    levels = [SequentialAlpha().spent(k) for k in range(4)]
    assert joint_p([candidate], best, levels[:1]) == pytest.approx(0.0113, abs=0.002)
    together = joint_p([candidate] * 4, best, levels)  # and whatever crossed at looks 0 to 2
    assert 0.0113 < together <= levels[2] + 0.001


def test_unlike_candidates_pay_for_each_other():
    best, candidate = moved(0, 0), moved(18, 6)
    others = [answers([(i + k) % 4 == 0 for i in range(200)]) for k in range(3)]
    mixed = Gate()(candidate, best, 3, earlier=others)
    assert mixed.p_value > Gate()(candidate, best, 3, earlier=[candidate] * 3).p_value + 0.005


def test_what_was_spent_before_a_promotion_is_not_spent_again():
    best, candidate = moved(0, 0), moved(18, 6)
    after = Gate()(candidate, best, 3, earlier=[candidate])  # promoted at look 1
    assert "0.006 over 2 looks" in after.why  # 0.9 (spent(3) - spent(1)) = 0.9 (0.04 - 0.0333)


def test_looking_together_never_promotes_less():
    rng = generator("together")
    for _ in range(15):
        best = answers((rng.random(120) < 0.5).tolist())
        looks = [answers((rng.random(120) < 0.56 + 0.03 * k).tolist()) for k in range(4)]
        if Gate()(looks[3], best, 3).action == "promote":
            assert Gate()(looks[3], best, 3, earlier=looks[:3]).action == "promote"


# -- whole runs, simulated ------------------------------------------------------------------------

def test_null_runs_promote_rarely_and_detectable_gains_are_promoted():
    """The reduced version of what scripts/gate-power runs; see docs/gate-and-arms.md."""
    from selfloop.evaluate.simulating import World, detectable, simulate

    world = World(questions=160, per_cluster=2, looks=3)
    null = simulate(Gate(), world, runs=100, key="null")
    assert null.promoted_low <= 0.05, "not even the lower bound may be above alpha"
    assert null.rolled_back <= 0.1
    gain = simulate(Gate(), world.gaining(detectable(Gate(), world)), runs=40, key="gain")
    assert gain.promoted_high >= 0.8


def test_the_simulation_sees_a_gate_that_spends_too_much():
    from selfloop.evaluate.simulating import World, simulate

    world = World(questions=160, looks=6, alike=0.2)
    assert simulate(Unspent(guards=()), world, runs=80, key="null").promoted_low > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_two_thousand_null_runs(alike):
    from selfloop.evaluate.simulating import World, simulate

    null = simulate(Gate(), World(alike=alike), runs=2000, key=f"null/{alike}")
    assert null.promoted_high <= 0.05


@pytest.mark.slow
def test_detectable_gains_are_promoted():
    from selfloop.evaluate.simulating import World, detectable, simulate

    world = World()
    gain = simulate(Gate(), world.gaining(detectable(Gate(), world)), runs=500, key="gain")
    assert gain.promoted >= 0.8
