"""Sentences of hostile texts: split as ever, in time that grows with the text alone."""

from __future__ import annotations

import random
import re
import time

import pytest

from selfloop.organize.verify.similarity import sentences


def by_one_expression(text: str) -> list[str]:
    """What `sentences` says, as one regular expression (which is quadratic in white space)."""
    return [s for s in re.split(r"(?<=[.!?])\s+|\s*\n\s*", text.strip()) if re.search(r"\w", s)]


def test_the_same_sentences_as_one_expression_gives() -> None:
    rng = random.Random(0)
    for _ in range(5000):
        text = "".join(rng.choice("ab.!? \n\t\r") for _ in range(rng.randrange(30)))
        assert sentences(text) == by_one_expression(text), repr(text)


@pytest.mark.parametrize("filling", [" ", "\t", "\n", " \n", ". ", ".\n", "\r\n", "\u3000"])
def test_long_white_space_takes_no_time(filling: str) -> None:
    """A quadratic split takes many seconds of 200,000 blanks; this takes milliseconds."""
    text = "a" + filling * 200_000 + "b"
    began = time.process_time()
    found = sentences(text)
    assert time.process_time() - began < 2.0
    assert found[-1].endswith("b")
