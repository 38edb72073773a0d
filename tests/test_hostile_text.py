"""Answers of a million characters, made to slow rules down: every rule stays linear."""

from __future__ import annotations

import re
import time

import pytest

from selfloop.organize.verify import rules
from selfloop.organize.verify.boxes import boxes_in
from selfloop.organize.verify.reflection import Reflection
from selfloop.organize.verify.repetition import CharacterCap
from selfloop.types import Context, Part, Rollout

M = 1_000_000
HOSTILE = {
    "opened": "<answer>" * (M // 8), "closed": "</answer>" * (M // 9),
    "boxed": "\\boxed{" * (M // 7), "announced": "answer:" * (M // 7),
    "announced, blank": "answer" + " " * M, "announced, empty": "answer:" + "\n" * M,
    "digits": "9" * M, "thousands": "1" + ",111" * (M // 4), "digits apart": "1 " * (M // 2),
    "signs": "-" * M, "equals": "=" * M, "letters": "A " * (M // 2), "blank": " " * M + "x",
}
RULES = {"exact": (rules.exact, "7"), "number": (rules.number, "7"), "choice": (rules.choice, "A"),
         "yes_no": (rules.yes_no, "yes"), "text": (rules.text, ["a"])}


def said(text: str) -> Rollout:
    return Rollout(id="r", sample="s", context=Context(prompt=()), turns=(),
                   output=(Part(text=text),))


@pytest.mark.parametrize("name", HOSTILE)
def test_rules_stay_linear(name):
    rollout = said(HOSTILE[name])
    start = time.process_time()
    for rule, gold in RULES.values():
        rule(rollout, gold)
    assert time.process_time() - start < 3, "a quadratic pattern takes minutes here"


def test_whatever_reads_the_tag_stays_linear():
    rollout = said(HOSTILE["opened"])
    start = time.process_time()
    assert boxes_in(rollout.text) == []
    CharacterCap()(rollout)
    assert Reflection()(rollout, answer="7").rationale == "0 answer blocks, not two"
    assert time.process_time() - start < 3


@pytest.mark.parametrize("text", [
    "", "<answer>", "</answer><answer>7</answer>", "<answer>a<answer>b</answer>c</answer>",
    "<answer></answer>", "<answer>1\n2</answer> and <answer>3</answer>", "<ANSWER>x</ANSWER>",
    "<answer>1</answer><answer>2", "< answer>x</answer>",
])
def test_tagged_reads_what_the_pattern_read(text):
    assert rules.tagged(text) == re.findall(r"<answer>(.*?)</answer>", text, re.S)


def test_the_last_whole_tag_is_the_answer():
    assert rules.final_answer("<answer>4</answer> no, <answer> 7 </answer> <answer>9") == "7"
    assert rules.tagged("<see>a</see>", "see") == ["a"]
