"""Monitors on hand-made groups and answers, with every figure worked out by hand."""

from __future__ import annotations

import math

import pytest

from selfloop.evaluate.answers import Answer
from selfloop.evaluate.monitors import entropy, monitors, of_answers
from selfloop.types import Context, Group, Message, Part, Rollout, Sample, Turn, Verdict


def group(name, said):
    """`said`: (text, tokens, score or None, finish reason) for each rollout."""
    prompt = (Message(content=(Part(text=name),)),)
    rollouts = tuple(
        Rollout(id=f"{name}/{i}", sample=name, context=Context(prompt=prompt),
                turns=(Turn(token_ids=(1,) * tokens, finish_reason=reason),),
                output=(Part(text=text),))
        for i, (text, tokens, _, reason) in enumerate(said))
    return Group(sample=Sample(prompt=prompt), rollouts=rollouts,
                 verdicts=tuple(Verdict(score=score) for _, _, score, _ in said))


def test_monitors_by_hand():
    mixed = group("a", [("3", 2, 1.0, "stop"), ("3", 4, 1.0, "stop"),
                        ("4", 6, 0.0, "length"), (" ", 0, None, "stop")])
    flat = group("b", [("7", 8, 0.0, "stop"), ("8", 8, 0.0, "stop"),
                       ("9", 8, 0.0, "stop"), ("7", 8, 0.0, "stop")])
    found = monitors([mixed, flat])
    assert found == pytest.approx({
        "drawn": 8.0, "unjudged": 1 / 8, "truncated": 1 / 8, "empty": 1 / 8,
        "mean_score": 2 / 7, "mean_tokens": 44 / 8, "tokens_right": 3.0,
        "tokens_wrong": 38 / 5, "zero_variance": 0.5, "distinct": (2 / 4 + 3 / 4) / 2,
        "vote_share": 0.5, "entropy": (entropy("334") + entropy("7897")) / 2,
        "pass@1": 0.0, "pass@2": 0.0, "pass@4": 0.0,  # of b: a has too few judged draws for k=4
    })


def test_pass_at_k_never_falls_in_k():
    few = group("a", [("1", 1, 1.0, "stop")] * 2)
    many = group("b", [("1", 1, 1.0, "stop")] + [("2", 1, 0.0, "stop")] * 7)
    found = monitors([few, many, many])
    curve = [found[f"pass@{k}"] for k in (1, 2, 4, 8)]
    assert curve == pytest.approx([1 / 8, 2 / 8, 4 / 8, 1.0])


def test_what_cannot_be_computed_is_absent():
    assert monitors([]) == {"drawn": 0.0}
    found = monitors([group("a", [("3", 1, None, "stop")])])
    assert not {"mean_score", "zero_variance", "pass@1", "tokens_right"} & set(found)
    assert found["unjudged"] == 1.0
    bare = group("a", [("3", 1, None, "stop")]).model_copy(update={"verdicts": ()})
    assert monitors([bare])["unjudged"] == 1.0
    assert all(math.isfinite(v) for v in found.values())


def test_one_judged_answer_says_nothing_about_variance():
    lone = group("a", [("3", 1, 1.0, "stop"), ("4", 1, None, "stop")])
    both = group("b", [("3", 1, 1.0, "stop"), ("4", 1, 0.0, "stop")])
    assert "zero_variance" not in monitors([lone])
    assert monitors([lone, both])["zero_variance"] == 0.0


def test_the_parser_can_be_chosen():
    one = group("a", [("x 1", 1, 1.0, "stop"), ("y 1", 1, 1.0, "stop")])
    assert monitors([one])["distinct"] == 1.0
    assert monitors([one], parse=lambda text: text[-1])["distinct"] == 0.5


def test_entropy():
    assert entropy("") == 0.0 and entropy("aaaa") == 0.0
    assert entropy("abcd") == pytest.approx(math.log(4))


def ask(i, arm="greedy", parsed="3", right=True, draw=0, **more):
    return Answer(sample=f"q{i}", cluster=f"q{i}", arm=arm, parsed=parsed, right=right, draw=draw,
                  text=parsed or "", **more)


def test_of_answers_by_hand():
    greedy = [ask(0, tokens=2, gold="3"), ask(1, parsed="4", right=False, tokens=6, gold="5"),
              ask(2, parsed=None, right=False, tokens=0, gold="6"),
              ask(3, right=None, tokens=4, gold="3")]
    blind = [ask(i, arm="no_image", right=i == 0) for i in range(4)]
    draws = [ask(i, arm="draws", parsed=p, right=p == "3", draw=d)
             for i in range(2) for d, p in enumerate(["3", "3", "4", "5"] if i else "4443")]
    found = of_answers([*greedy, *blind, *draws])
    spread = [entropy("4443"), entropy("3345")]
    assert found == pytest.approx({
        "entropy_gold": entropy("3563"), "draw_entropy": sum(spread) / 2,
        "draw_entropy_se": abs(spread[0] - spread[1]) / 2,
        "entropy_se": math.sqrt((2 / 3 * math.log(2 / 3) ** 2 + 1 / 3 * math.log(1 / 3) ** 2
                                 - entropy("343") ** 2) / 3),
        "questions": 4.0, "accuracy": 1 / 3, "unjudged": 0.25, "parsed": 0.75, "empty": 0.25,
        "mean_tokens": 3.0, "tokens_right": 2.0, "tokens_wrong": 3.0, "distinct": 0.5,
        "distinct_gold": 0.75, "entropy": entropy("343"), "no_image": 0.25,
        "visual_gain": 1 / 3 - 1 / 4, "pass@1": 3 / 8, "pass@2": (1 / 2 + 5 / 6) / 2,
        "pass@4": 1.0, "maj@4": 0.5, "vote_share": (3 / 4 + 2 / 4) / 2,
    })


def test_a_metric_that_does_not_parse_has_no_parse_rate():
    judged = [ask(0, parsed=None, right=True), ask(1, parsed=None, right=False)]
    assert "parsed" not in of_answers(judged)
    collapsed = [ask(i, parsed=None, right=False) for i in range(2)]
    assert of_answers(collapsed)["parsed"] == 0.0


def test_answers_without_the_greedy_arm_and_no_answers():
    assert of_answers([]) == {}
    assert of_answers([ask(0, arm="")])["accuracy"] == 1.0
    assert "accuracy" not in of_answers([ask(0, arm="draws")])
    assert "gold" not in "".join(of_answers([ask(0)]))


def test_the_share_of_yes_is_of_yes_no_questions_that_were_answered():
    said = [("yes", "yes"), ("Yes, it is", "no"), ("no", "no"), ("perhaps", "yes"), (None, "no"),
            ("yes", "7")]
    found = of_answers([ask(i, parsed=p, gold=g) for i, (p, g) in enumerate(said)])
    assert found["yes_questions"] == 3.0
    assert found["yes_share"] == pytest.approx(2 / 3) and found["yes_gold"] == pytest.approx(1 / 3)
    assert "yes_share" not in of_answers([ask(0, gold="7")])


def test_the_reward_beside_the_metric_on_the_same_answers():
    greedy = [ask(0, right=True), ask(1, right=False), ask(2, right=None), ask(3, right=True)]
    paid = [ask(i, arm="reward", right=r, score=s) for i, (r, s) in enumerate(
        [(True, 1.0), (True, 0.75), (True, 1.0), (None, None)])]
    found = of_answers([*greedy, *paid])
    assert found["reward"] == pytest.approx(2.75 / 3), "unknown is not zero"
    assert found["disagreement"] == 0.5, "of those that both could judge"
    assert found["accuracy"] == of_answers(greedy)["accuracy"]
    assert not {"reward", "disagreement"} & set(of_answers(greedy))


def test_suites_are_no_part_of_the_main_figures():
    suite = [ask(i, arm="suite/refusal", right=False, parsed=None) for i in range(3)]
    assert of_answers([ask(0), *suite]) == of_answers([ask(0)])
    assert of_answers(suite) == {}


def test_judges_of_a_combined_verdict_disagree():
    one = group("a", [("3", 1, 1.0, "stop")] * 4)
    parts = ({"rule": 1.0, "judge": 0.2}, {"rule": 1.0, "judge": 0.7}, {"rule": 1.0},
             {"vote_share": 0.2, "rule": 1.0})
    split = one.model_copy(update={"verdicts": tuple(
        v.model_copy(update={"parts": p}) for v, p in zip(one.verdicts, parts, strict=True))})
    assert monitors([split])["disagreement"] == 0.5
    assert "disagreement" not in monitors([one])
