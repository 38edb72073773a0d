"""Answers that an audit of the shipped verifiers found wrongly paid, or refused, table by table."""

from __future__ import annotations

import asyncio
import time

import pytest

from selfloop.calling import reads
from selfloop.collect.independent import Independent
from selfloop.doors import user
from selfloop.evaluate.matchers import option
from selfloop.loop import Learn, Loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.signals import Demonstrate
from selfloop.organize.verify.answer_spread import SoftVote
from selfloop.organize.verify.asking import yes_or_no
from selfloop.organize.verify.boxes import OneBox, boxes_in, gold_boxes
from selfloop.organize.verify.claims import ClaimCheck, claims_in
from selfloop.organize.verify.combine import AllOf, InGroups, Weighted
from selfloop.organize.verify.counts import Count
from selfloop.organize.verify.format import FormatAndResult, Tags
from selfloop.organize.verify.judges import PairwiseJudge, points
from selfloop.organize.verify.measures import converted
from selfloop.organize.verify.numeric import Quantity, Relaxed
from selfloop.organize.verify.rules import AllAccepted, choice, exact, number, text, yes_no
from selfloop.organize.verify.symbolic import Symbolic
from selfloop.organize.verify.texts import ANLS, AnyAccepted
from selfloop.organize.verify.totals import Lexicographic, Sum
from selfloop.organize.verify.vote import MajorityVote
from selfloop.roles import SelfloopError
from selfloop.types import Context, Group, Part, Rollout, Sample, Turn, Verdict

R, W, N = 1.0, 0.0, None
ASKED = Context(prompt=user("which ?"))


def said(words: str, index: int = 0) -> Rollout:
    return Rollout(id=f"r{index}", sample="s", context=ASKED, turns=(Turn(token_ids=(1,)),),
                   output=(Part(text=words),))


# -- rules ---------------------------------------------------------------------------------------

QUANTITIES = [
    ("12 nm", "12 mm", W), ("12 µm", "12 mm", W), ("12 inches", "12 cm", W), ("12 lb", "12 kg", W),
    ("12 cm²", "12 m²", W), ("5 km/h", "5 km/s", W), ("5 N", "5 kN", W), ("5 MW", "5 mW", W),
    ("5 days", "5 hours", W), ("12 °F", "12 °C", W), ("$12", "€12", W), ("212 °F", "100 °C", R),
    ("12 apples", "12 cm", N), ("12", "12 cm", R), ("1 inch", "2.54 cm", R), ("3 or 5", "5", W),
    ("not 5", "5", W), ("between 3 and 5", "5", W), ("1, 2, 3, 4, 5", "5", W),
    ("The answer is not 5", "5", W), ("4 out of 10", "10", W), ("- 5", "5", W),
    ("1e400", "1e400", N), ("5", "9" * 400, N), ("5 cm", "5 cm long", R),
    ("three cm", "3 cm", R), ("two hours", "120 min", R),
    ("1 hour 30 minutes", "1.5 h", R), ("1 hour and 30 minutes", "90 min", R),
    ("5 ft 6 in", "66 in", R), ("66 in", "5'6\"", R), ("1 m 75 cm", "1.75 m", R),
    ("-1 h 30 min", "-1.5 h", R), ("1 h 90 min", "2.5 h", W), ("5 m and 30 cm", "5.3 m", W),
    ("5 cm by 3 mm", "5.3 cm", W), ("more than 1 h 30 min", "1.5 h", W),
    ("3 kilos", "3 kg", R), ("5 ms^{-1}", "5 m/s", R), ("5 ms", "5 m/s", W),
]
NUMBERS = [
    ("3 or 5", "5", W), ("1, 2, 3, 4, 5", "5", W), ("between 3 and 5", "5", W), ("not 5", "5", W),
    ("The answer is not 5", "5", W), ("4 out of 10", "10", W), ("−5", "5", W), ("−5", "-5", R),
    ("- 5", "5", W), ("3-5", "-5", W), ("\\frac{1}{2}", "2", W), ("\\frac{1}{2}", "0.5", R),
    ("10^3", "3", W), ("10^3", "1000", R), ("3 x 10^8", "8", W), ("3 x 10^8", "3e8", R),
    ("1 1/2", "1.5", R), ("1e-7", "2e-7", W), ("7", "1e400", N), ("7", "9" * 400, N),
    ("2 + 3 = 5", "5", R), ("\\boxed{\\frac{1}{2}}", "0.5", R), ("7 kg", "7", R),
    ("three", "3", R), ("The answer is three.", "3", R), ("There are three cats.", "3", R),
    ("minus three", "-3", R), ("twenty-one", "21", R), ("two hundred and five", "205", R),
    ("a dozen", "12", R), ("three billion", "3e9", R), ("3", "three", R), ("three", "4", W),
    ("three or four", "3", W), ("not three", "3", W), ("more than three", "3", W),
    ("two and a half", "2", W), ("three point five", "5", W), ("twenty-first", "20", W),
    ("the one on the left", "1", W), ("no one", "1", W), ("I count 3. One is red.", "3", R),
]
CHOICES = [
    ("a or b", "A", W), ("a, b, c, d", "A", W), ("(a) (b) (c) (d)", "A", W), ("A cat", "A", W),
    ("A man is riding a horse.", "A", W), ("a dog", "A", W), ("A is wrong", "A", W),
    ("A is not the answer", "A", W), ("I don't know", "I", W), ("A", "A, B", N),
    ("\\boxed{\\text{B}}", "B", R), ("Option B", "B", R), ("The correct option is B", "B", R),
    ("The answer is option B.", "B", R), ("It is B", "B", R), ("B, not A", "B", R),
    ("B) Vitamin A", "B", R), ("B", "B", R), ("b", "B", R), ("(b)", "B", R), ("**B**", "B", R),
    ("B. A cat", "B", R), ("B is correct", "B", R), ("B because it is red", "B", R),
    ("(B) the cat", "B", R), ("Answer: (B)", "B", R), ("b) cat", "B", R), ("A", "A", R),
    ("I", "I", R), ("A is correct", "A", R), ("a", "A", R), ("B or C", "B", W), ("B/C", "B", W),
    ("A) cat B) dog", "A", W), ("B and C", "B", W), ("A. cat, B. dog", "A", W), ("not B", "B", W),
    ("B is not right", "B", W), ("B\n\nThe cat is black.", "B", R), ("A\nIt shows a cat.", "A", R),
    ("B. A cat.\n\nExplanation: A is wrong, since it is white.", "B", R),
    ("B\n\nA is wrong, since it is white.", "B", R), ("A. cat\nB. dog\nC. pig", "A", W),
    ("C shows a cat.\nD shows a dog.\nSo the dog.", "C", W),
    ("<think>The answer is A? No.</think>\nB", "B", R), ("B</think>\nC", "B", W),
]
YES_OR_NO = [
    ("I have no idea", "no", W), ("no idea", "no", W), ("there is no way to tell", "no", W),
    ("not yes", "yes", W), ("Yes, there is no doubt.", "yes", R), ("no", "no", R),
    ("There is no cat", "no", R), ("No, there is no cat", "no", R), ("yes and no", "yes", W),
    ("yes or no", "yes", W), ("yes, no", "yes", W), ("yes/no", "no", W),
    ("The answer is yes", "yes", R), ("I'd say no.", "no", R), ("**Yes**", "yes", R),
    ("Yes.\n\nThe dog is on the left.", "yes", R), ("No\nI see a cat.", "no", R),
    ("Yes, a dog.\n\nThere is no cat.", "yes", R), ("No, wait.\nYes.", "yes", R),
    ("No, wait.\nYes.", "no", W), ("No one can tell.", "no", W), ("not sure", "no", W),
    ("Yes, I think.\nThe answer is 5", "yes", W), ("<think>yes?</think>No", "no", R),
]
TEXTS = [
    ("A-", "A+", W), ("O+", "O-", W), (">5", "<5", W), ("C#", "C", W), ("C", "C++", W),
    ("50", "50%", W), ("5", "5'", W), ("5'", "5'", R), ("A+", "A+", R), ("E=mc^2", "E=mc^2", R),
    ("x = 5", "x = 5", R), ("total = 5", "total = 5", R), ("answer: cat", "answer: cat", R),
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", R), ("None", [None], N), ("a", {"a": 1}, N),
    ("3", [3, 5], N), ("x", "", N), ("cat", ["cat", "dog"], R),
    ("['cat', 'dog']", ["cat", "dog"], W), ("- 5", "5", W), ("-5", "−5", R), ("\"cat\".", "cat", R),
    ("(cat)", "cat", R), ("**Answer:** cat", "cat", R), ("**The answer is cat**", "cat", R),
    ("f(x)", "f(x)", R), ("A*", "A", W), ("C#.", "C#", R), ("don't", "don't", R),
    ("\\text{cat}", "cat", R), ("**Final Answer**: cat", "cat", R),
    ("**Answer:**\n\ncat", "cat", R), ("The answer is:\n\ncat", "cat", R),
    ("cafe\u0301", "caf\u00e9", R), ("don\u2019t", "don't", R),
    ("<think>The answer is dog? No ...</think>\n\ncat", "cat", R),
    ("<think>The answer is cat? No ...</think>\n\ndog", "cat", W),
    ("<think>\\boxed{cat}</think>dog", "cat", W), ("the cat</think>dog", "dog", R),
    ("<think>The answer is cat", "cat", W), ("<think>The answer is cat</think>", "cat", W),
    ("<answer>cat</answer><think>or a dog</think>", "cat", R), ("◁think▷dog◁/think▷cat", "cat", R),
]
NEAR = [
    ("E=mc^2", "E=mc^2", R), ("answer: cat", "answer: cat", R), ("x", "", N),
]
RELAXED = [
    ("", "", N), ("x", " ", N),
]
COUNTS = [
    ("- 5", 5, W), ("twenty-one", 20, W), ("twenty-one", 21, R), ("one hundred", 1, W),
    ("two hundred", 2, W), ("five thousand", 5, W), ("3 million", 3, W), ("No one", 1, W),
    ("more than 5", 5, W), ("none", 0, R), ("no cats", 0, R), ("thirty", 30, R), ("1,000", 1000, R),
    ("a hundred", 100, R),
]
SETS = [
    ("a, b", ["a", "b"], R), ("b, a", ["a", "b"], R), ("a", ["a", "b"], W),
    ("a, b, c", ["a", "b"], W), ("AC", ["A", "C"], R), ("A and C", ["A", "C"], R),
    ("A, C", "A, C", R), ("cat and dog", ["dog", "cat"], R),
    ("Answer: dog; cat.", ["cat", "dog"], R),
    ("salt and pepper, cat", ["salt and pepper", "cat"], R), ("- cat\n- dog", ["cat", "dog"], R),
    ("", ["a"], W), ("a", [], N), ("a", [3, 4], N), ("a", None, N), ("(a) (b)", ["A", "B"], R),
    ("x, y", "", N), ("[\"cat\", \"dog\"]", ["cat", "dog"], R), ("\\boxed{A, C}", ["A", "C"], R),
    ("B", ["B"], R), ("Options A and C", ["A", "C"], R),
    ("<think>A and C</think>B", ["A", "C"], W), ("<think>B?</think>A and C", ["A", "C"], R),
]
RULES = [(Quantity(), QUANTITIES), (number, NUMBERS), (choice, CHOICES), (yes_no, YES_OR_NO),
         (exact, TEXTS), (text, TEXTS), (ANLS(), NEAR), (Relaxed(), RELAXED), (Count(), COUNTS),
         (AllAccepted(), SETS)]


@pytest.mark.parametrize(("rule", "words", "gold", "score"), [
    (rule, *row) for rule, table in RULES for row in table])
def test_what_rules_pay(rule, words, gold, score):
    assert rule(said(words), gold).score == score


@pytest.mark.parametrize(("value", "unit", "wanted", "found"), [
    (5, "m/s", "km/h", 18), (1, "mile", "km", 1.609344), (1, "kWh", "MJ", 3.6),
    (1, "bar", "Pa", 1e5),
    (1, "kV", "V", 1e3), (1, "mA", "A", 1e-3), (1, "kΩ", "ohm", 1e3), (2, "GHz", "MHz", 2e3),
    (1, "t", "kg", 1e3), (16, "oz", "lb", 1), (1, "L", "cm^3", 1e3),
    (1, "acre", "m^2", 4046.8564224),
    (1, "week", "days", 7), (0, "°C", "K", 273.15), (32, "°F", "°C", 0), (25, "C", "°C", 25),
    (12, "foo", "cm", None),
])
def test_units_are_converted(value, unit, wanted, found):
    said_in = converted(value, unit, wanted)
    assert (said_in and said_in[0]) == (found if found is None
                                        else pytest.approx(found, rel=1e-6, abs=1e-9))


def test_a_tolerance_on_degrees_is_none_on_kelvins():
    rule = Quantity(relative=0.05)
    assert rule(said("26 °C"), "25 °C").score == R and rule(said("30 °C"), "25 °C").score == W


def test_partial_sets_and_options_of_the_sample():
    assert AllAccepted(partial=True)(said("a, c"), ["a", "b"]).score == pytest.approx(1 / 3)
    asked = Sample(prompt=user("which ?"), meta={"options": ["a cat", "a dog"]})
    scores = [choice(said(words), "A", asked).score for words in (
        "a cat", "A cat", "a dog", "A. a cat", "a bird", "C")]
    assert scores == [R, R, W, R, W, W]


@pytest.mark.parametrize(("words", "letter"), [
    ("Option B", "B"), ("\\boxed{\\text{B}}", "B"), ("The answer is option B.", "B"),
    ("A man", None), ("B, not A", "B"),
])
def test_the_evaluation_has_the_same_rule(words, letter):
    assert option(words, {"A": "a cat", "B": "a dog"}) == letter


@pytest.mark.parametrize(("reply", "found"), [
    ("No idea", None), ("No way to tell", None), ("Yes, there is no doubt", True), ("No.", False),
    ("yes and no", None), ("Not yes", None), ("No, it is not.", False),
])
def test_a_checker_without_an_idea_rejects_nothing(reply, found):
    assert yes_or_no(reply) is found


# -- boxes ---------------------------------------------------------------------------------------

THIRD = [[1 / 3, 0.1, 2 / 3, 0.9], [0, 0, 1, 1]]


@pytest.mark.parametrize(("gold", "found"), [
    (THIRD, [tuple(THIRD[0]), (0, 0, 1, 1)]), ([1e-7, 0, 1, 1], [(1e-7, 0, 1, 1)]),
    ([0, 0, 12345678, 9], [(0, 0, 12345678, 9)]), ([100, 100, 0, 0], None), ([0, 0, 0, 9], None),
    ([[0, 0, 1, 1], [0, 0, 1]], None), ([[0, 0, 1, 1], None], None), ([], []), (7, None),
    ([0, 0, 1, float("nan")], None), ([[0, 0], [1, 1]], [(0, 0, 1, 1)]), (True, None),
    ({"box_2d": [1, 2, 3, 4]}, [(2, 1, 4, 3)]), ({"x1": 0, "y1": 0, "x2": 1, "y2": 1},
                                                 [(0, 0, 1, 1)]),
    ("[[0, 0, 1, 1], [0, 0]]", None), ("(0,0),(1,1)", [(0, 0, 1, 1)]), ("[9, 9, 0, 0]", None),
])
def test_gold_boxes_are_read_as_they_lie(gold, found):
    boxes = gold_boxes(gold)
    assert (None if boxes is None else [b.corners for b in boxes]) == found


@pytest.mark.parametrize("words", [
    "(0,0),(100,100)", "<|box_start|>(0,0),(100,100)<|box_end|>", "[[0,0],[100,100]]",
    '{"x1": 0, "y1": 0, "x2": 100, "y2": 100}', "\\boxed{0,0,100,100}", "[0, 0, 100, 100.]",
    "[0,0,1e2,100]", "{'xmin': 0, 'ymin': 0, 'xmax': 100, 'ymax': 100}", "<0,0,100,100>",
    "\\boxed{[0, 0, 100, 100]}", '{"bbox_2d": [0, 0, 100, 100]}',
])
def test_published_forms_of_boxes(words):
    assert OneBox(0.99)(said(words), [0, 0, 100, 100]).score == R


@pytest.mark.parametrize(("words", "corners"), [
    ('[{"box_2d": [10, 20, 30, 40], "label": "cat"}]', (20, 10, 40, 30)),
    ("<loc0010><loc0020><loc0030><loc0040> cat", (20, 10, 40, 30)),
    ('{"bbox_2d": [10, 20, 30, 40]}', (10, 20, 30, 40)),
])
def test_forms_that_are_y_first(words, corners):
    assert [b.corners for b in boxes_in(words)] == [corners]


def test_points_are_no_box_and_a_threshold_is_above_zero():
    assert boxes_in("(0,0),(1,1),(2,2)") == [] == boxes_in("(1, 2)")
    with pytest.raises(SelfloopError, match="more than 0"):
        OneBox(threshold=0)


# -- formulas ------------------------------------------------------------------------------------

@pytest.mark.parametrize(("words", "gold", "score"), [
    ("5 cm", "5 m", N), ("5 or 6", "5", W), ("act", "cat", N), ("y = 2", "x = 2", W),
    ("x = 2", "x = 2", R), ("x = 3 or x = 2", "x = 2", W), ("x = 3 and x = 2", "x = 2", W),
    ("either x = 3 or x = 2", "2", W), ("2x = 4 and so x = 2", "x = 2", R), ("1, 2", "x=1, x=2", R),
    ("x = 7 or x = 2", "x = 1 or x = 2", W), ("x = 2 or x = 1", "x = 1 or x = 2", R),
    ("x = 2", "x = 1 or x = 2", W), ("x = 1, x = 2", "x = 1 or x = 2", R),
    ("x = 3, x = 2", "x = 1, x = 2", W),
    ("So, x = 1 or x = 2", "x = 1 or x = 2", R), ("5 or so", "5", W),
    ("x = 3, y = 2", "x = 1, y = 2", N),
    ("2", "x = 2", R), ("\\{1,2\\}", "(1,2)", W), ("(1,2)", "(1,2)", R), ("5\\%", "5", W),
    ("5", "5\\%", N), ("$1$ $2$ $3$ $4$ $5$", "5", W), ("The answer is $5$.", "5", R),
    ("$1+1$ and then $2$. Answer: $3$", "3", R), ("3e8", "3 \\times 10^8", R), ("1", "\\frac{", N),
    ("\\boxed{\\frac{1}{2}}", "0.5", R), ("$5$ or $6$", "6", W), ("2", "x + y = 2", W),
    ("x + 1", "1 + x", R), ("\\sqrt{4}", "2", R), ("5", "5 \\text{ cm}", N), ("", "5", W),
    ("a cat", "the cat", N), ("2 + 3 = 5", "5", R), ("2\\pi", "\\pi \\cdot 2", R), ("2x", "x+x", R),
])
def test_formulas(words, gold, score):
    pytest.importorskip("math_verify")
    assert Symbolic()(said(words), gold).score == score


# -- combinations --------------------------------------------------------------------------------

def right(rollout):
    return 1.0


def minus(rollout):
    return -1.0


def broke(rollout):
    return Verdict(error=True, rationale="no server", cost=2.0)


async def asks(rollout, generate):
    return 0.5


def both_ways(verifier, **offered):
    value = verifier(rollout=said("7"), **offered)
    return asyncio.run(value) if hasattr(value, "__await__") else value


@pytest.mark.parametrize("verifier", [
    AllOf((right, broke)), Weighted(((1.0, right), (1.0, broke))),
    Sum(((1.0, right), (1.0, broke))),
    Lexicographic((right, broke)), FormatAndResult(right, broke), AllOf((AllOf((right, broke)),)),
], ids=lambda v: type(v).__name__)
def test_an_error_stays_an_error(verifier):
    verdict = both_ways(verifier)
    assert verdict.error and verdict.score is None and verdict.cost == 2.0
    assert "no server" in verdict.rationale


def test_an_error_among_accepted_golds_stays_an_error():
    def failing(rollout, answer):
        return Verdict(error=True) if answer == "b" else 1.0
    assert AnyAccepted(failing)(said("7"), ["a", "b"]).error


@pytest.mark.parametrize(("verifier", "score"), [
    (AllOf((right, asks)), 0.5), (Weighted(((1.0, asks), (1.0, right))), 0.75),
    (FormatAndResult(right, asks), 1.0), (AllOf((asks, AllOf((asks, right)))), 0.25),
])
def test_judges_are_awaited_inside_combinations(verifier, score):
    from selfloop.doors import Doors
    from selfloop.organize.judging import judge
    assert both_ways(verifier, generate=None).score == score
    group = Group(sample=Sample(prompt=user("which ?")), rollouts=(said("7"), said("8", 1)))
    found = judge(verifier, [group], Doors({}, 0, "test")).groups[0].verdicts
    assert [v.score for v in found] == [score] * 2


def test_combinations_of_nothing_and_of_negative_scores():
    for make in (AllOf, Weighted):
        with pytest.raises(SelfloopError, match="no verifier"):
            make(())
    with pytest.raises(SelfloopError, match="expected none below 0"):
        AllOf((minus, minus))(said("7"))
    with pytest.raises(SelfloopError, match="asks a model"):
        AnyAccepted(asks)


@pytest.mark.parametrize("weights", [(-1.0, 2.0), (0.0, 0.0), (float("nan"), 1.0)])
def test_a_weighted_mean_has_no_negative_weights(weights):
    """(2 a - b) / 1 is b where a cannot tell: the penalty would be paid."""
    with pytest.raises(SelfloopError, match="take Sum"):
        Weighted(((weights[0], right), (weights[1], minus)))


def judged_in(verifier, *words):
    from selfloop.doors import Doors
    from selfloop.organize.judging import judge
    group = Group(sample=Sample(prompt=user("which ?"), answer="7"),
                  rollouts=tuple(said(w, i) for i, w in enumerate(words)))
    return judge(verifier, [group], Doors({}, 0, "test")).groups[0].verdicts


def test_a_vote_is_combined_with_what_judges_each_answer():
    words = ("<answer>7</answer>", "7", "<answer>7</answer>", "<answer>8</answer>")
    both = judged_in(InGroups(AllOf((MajorityVote(), Tags(("answer",))))), *words)
    assert [v.score for v in both] == [1.0, 0.0, 1.0, 0.0] and both[0].parts["MajorityVote"] == 1.0
    assert both[0].parts["vote_share"] == 0.75, "what guidance and exports read"
    mean = judged_in(InGroups(Weighted(((3.0, MajorityVote()), (1.0, number)))), *words)
    assert [v.score for v in mean] == [1.0, 1.0, 1.0, 0.0]
    nested = InGroups(Sum(((1.0, AllOf((SoftVote(gamma=1.0), number))), (-0.5, Tags(("answer",))))))
    assert [v.score for v in judged_in(nested, *words)] == [0.25, 0.75, 0.25, -0.5]
    assert reads(nested) == {"answer"}
    undecided = judged_in(InGroups(AllOf((MajorityVote(), Tags(("answer",))))), "7", "8")
    assert [v.score for v in undecided] == [0.0, 0.0], "the form says no, whatever the vote"
    tied = judged_in(InGroups(Weighted(((1.0, MajorityVote()), (1.0, right)))), "7", "8")
    assert [v.score for v in tied] == [1.0, 1.0], "an abstention leaves the mean"


def test_parts_that_judge_groups_are_refused_with_the_way_to_name_them():
    learn = {"solver": Learn(organizer=Chain(maker=Demonstrate()), loss=SFT())}
    with pytest.raises(SelfloopError, match=r"AllOf: its part MajorityVote .*InGroups\(AllOf"):
        Loop(name="x", sampler=Independent(n=2), learn=learn,
             verifier=AllOf((number, Sum(((1.0, MajorityVote()),)))))
    for wrong in (MajorityVote(), AllOf((number,)), number):
        with pytest.raises(SelfloopError, match="with a part that judges groups"):
            InGroups(wrong)
    Loop(name="x", sampler=Independent(n=2), learn=learn,
         verifier=InGroups(AllOf((number, MajorityVote()))))


def test_parts_of_one_class_are_numbered():
    two = AllOf((Quantity(), Quantity(relative=0.5), right))
    assert two(said("6 cm"), answer="5 cm").parts == {"0:Quantity": 0.0, "1:Quantity": 1.0,
                                                      "right": 1.0}


# -- models that judge ---------------------------------------------------------------------------

@pytest.mark.parametrize(("reply", "claims"), [
    ("- none", []), ("- a\nb\n- c", ["a b", "c"]), ("- a\n- none", ["a"]), ("none\nof it", None),
    ("- a\n- b\n\nI hope this helps!", ["a", "b"]), ("<think>- no\n</think>- a", ["a"]),
])
def test_lists_of_claims(reply, claims):
    assert claims_in(reply) == claims


@pytest.mark.parametrize("words", ["", "  ", "a cat. " * 2000])
def test_claims_that_nobody_would_check_are_not_counted_as_right(words):
    async def never(*given, **more):
        raise AssertionError("nothing is asked")
    verdict = asyncio.run(ClaimCheck(share=True)(never, said(words), Sample(prompt=user("?")), "k"))
    assert verdict.score is None and not verdict.error and verdict.rationale


@pytest.mark.parametrize(("reply", "value"), [
    ("**score ab: 7**", 0.7), ("score ab: 7\nThat is all.", 0.7), ("`score ab: 7`", 0.7),
    ('```json\n{"reason": "x", "score": 7, "code": "ab"}\n```', 0.7),
    ("score ab: 7\nNo, 3 of 10.", None), ("score ab: 7\nbut\nwell", None),
    ("score ab: 7\nHowever, I was wrong", None), ("**score ab: 7**\nscore ab: 3", None),
    ('```json\n{"reason": "x", "score": 7, "code": "cd"}\n```', None),
    ('```\n{"score": 7}\n```\nscore ab: 7', 0.7),
])
def test_verdicts_in_the_dress_of_chat_models(reply, value):
    assert points(reply, "ab") == (None if value is None else pytest.approx(value))


def test_a_group_of_empty_answers_wins_nothing():
    async def never(*given, **more):
        raise AssertionError("nothing is asked")
    group = Group(sample=Sample(prompt=user("?")), rollouts=(said(""), said(" ", 1)))
    verdicts = asyncio.run(PairwiseJudge()(never, group, "k"))
    assert [v.score for v in verdicts] == [None, None]


# -- time ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("piece", [
    "- ", "{", "}", "(", "1,", "$1", "1/", "x 10^", "\\boxed{", "no ", "^2", "# ", "B, not A ",
    "[[1,2],", "one hundred ", "9", "1 m/s ", "\\frac{", "yes and "])
def test_no_repetition_makes_a_rule_slow(piece):
    """A rule that tries every opening, or peels one bracket a time, needs minutes here."""
    words = (piece * 20_000)[:20_000]
    began = time.monotonic()
    for rule, gold in ((exact, "a"), (number, "5"), (Quantity(), "5 cm"), (choice, "B"),
                       (yes_no, "no"), (Count(), 3), (AllAccepted(), ["a", "b"]),
                       (OneBox(), [0, 0, 1, 1])):
        assert rule(said(words), gold).score in (0.0, 1.0)
    assert time.monotonic() - began < 10


def test_long_reasoning_before_a_boxed_number_is_read():
    assert number(said("so it goes on. " * 3000 + "\\boxed{5}"), "5").score == R
