"""What was made faster decides as its plain definition does."""

from __future__ import annotations

import re
import time
import unicodedata
from collections import Counter
from itertools import groupby
from statistics import fmean

import numpy as np
import pytest

from selfloop import keys
from selfloop.organize.refine import degenerate
from selfloop.organize.refine.degenerate import Degenerate
from selfloop.organize.refine.gold_pairs import GoldOfAnother
from selfloop.organize.refine.near import near_texts, near_vectors
from selfloop.organize.refine.pair_filters import Fluent, LengthBalance
from selfloop.organize.refine.wording import _is_mark, normal, units, visible
from selfloop.types import Group, Media, Message, Part, Sample
from test_refine_more import pair

WORDS = ("the", "cat", "sat on", "a", "mat", "7", "12.5", "x^2", "$y$", "**so**", "it's", "Yes,",
         "no", ".", "!", "...", "---", "|", "| 1 | 2 |", '{"a": 1}', "```x x```", "\n",
         "\n\n\n\n\n\n",
         "\u7ea2\u8272", "\u043a\u043e\u0442", "\u3068\u3066", "\u00b5m", "\u200b", "\U0001f600",
         "\uff21", "ha", "aaaaaaaaaaaa", "==")


def texts() -> list[str]:
    """Runs of words, runs that repeat, and sentences that come again."""
    rng = keys.generator("texts")

    def run(most: int) -> str:
        return rng.choice(["", " "]).join(rng.choice(WORDS, int(rng.integers(1, most))).tolist())

    found = [run(40) for _ in range(150)]
    found += [run(4) + f"{run(5)} " * int(rng.integers(2, 9)) + run(4) for _ in range(150)]
    found += [str(rng.choice([". ", "\n"])).join(
        "The cat sat." if rng.random() < .7 else run(6) for _ in range(9)) for _ in range(100)]
    return found


def shown(text: str) -> str:
    return "".join(c for c in text if unicodedata.category(c) != "Cf").strip()


def bare(text: str) -> str:
    folded = shown(unicodedata.normalize("NFKC", text).casefold())
    plain = re.sub(r"(?<!\d)[*#]{2,}|[*#]{2,}(?!\d)", " ", re.sub(
        "['\u2018\u2019\u02bc`\u00b4]", "", unicodedata.normalize("NFKC", folded)))
    kept = "".join(" " if unicodedata.category(c)[0] == "P" and _is_mark(plain, i) else c
                   for i, c in enumerate(plain))
    return " ".join(kept.split()) or " ".join(folded.split())


def most_said(prose: str) -> int:
    said = Counter(bare(s) for s in re.split("[.!?\u3002\uff01\uff1f\n]+", prose))
    return max((n for s, n in said.items() if n > 1 and len(units(s)) > 2), default=0)


def symbols(text: str) -> float:
    seen = [c for c, run in groupby(c for c in text if not c.isspace())
            for _ in (run if c not in degenerate.RULES else c)]
    return sum(not c.isalnum() for c in seen) / max(1, len(seen))


def phrase_run(words: list[str], times: int) -> bool:
    """All phrases of up to five words, everywhere."""
    return any(
        words[i:i + size] * n == words[i:i + size * n] and (
            any(map(str.isalpha, "".join(words[i:i + size]))) or n >= 20 * times)
        for size in range(1, 6) for i in range(len(words)) for n in (times, 20 * times)
        if i + size * n <= len(words))


def test_texts_are_read_as_their_definitions_say():
    for text in texts():
        assert (visible(text), normal(text)) == (shown(text), bare(text))
        words = degenerate._prose(visible(text)).lower().split()
        assert degenerate._a_phrase_follows_itself(words, 6) == phrase_run(words, 6), text
        for times in (2, 6, 7):
            assert degenerate._is_said(text, times, 0) == (most_said(text) >= times), text
        for most in (.1, .3, .5):
            assert degenerate._is_mostly_symbols(text, most) == (symbols(text) > most), text


@pytest.mark.parametrize("times", [2, 6, 9])
def test_a_period_is_never_overlooked_for_being_looked_for_fast(times, monkeypatch):
    slow = [degenerate._periodic(text, times) for text in texts()
            if monkeypatch.setattr(degenerate, "_overlap", lambda times: 0) is None]
    monkeypatch.undo()
    fast = [degenerate._periodic(text, times) for text in texts()]
    assert fast == slow and True in fast and False in fast


def test_length_balance_searches_the_whole_grid():
    rng = keys.generator("grid")

    def off(kept):
        rejected = fmean(c.rejected.tokens for c in kept)
        return abs(fmean(c.chosen.tokens for c in kept) - rejected) / rejected

    for _ in range(40):
        pairs = [pair(lengths=(int(a), int(b))) for a, b in rng.integers(1, 12, (7, 2))]
        best, kept = float("inf"), []
        for i in range(50):
            some = [c for c in pairs if 1 - c.chosen.tokens / c.rejected.tokens <= i * .02 + 1e-9]
            if some and off(some) <= best:
                best, kept = off(some), some
        assert LengthBalance()(pairs) == kept


def test_an_answer_in_several_pairs_is_read_once():
    read = []

    class Counting(Degenerate):
        def reason(self, text, about=frozenset()):
            read.append(text)
            return super().reason(text, about)

    first = pair("a cat", "a dog")
    assert len(Fluent(Counting())([first, first, first])) == 3
    assert sorted(read) == ["a cat", "a dog"]


def test_questions_of_one_template_and_pictures_that_look_alike_cost_no_square():
    asked = [f"In the figure there is a triangle with the sides {i} and {i * 7 % 500} cm, find its "
             "area and give your answer in square centimetres with two decimals please"
             for i in range(2000)]
    start = time.process_time()
    assert len(set(near_texts(asked))) == 2000  # it was 9 s
    rng = keys.generator("alike")
    vectors = np.ones((2000, 16)) + .05 * rng.standard_normal((2000, 16))
    assert set(near_vectors(vectors)) == {0}   # and 24 s
    assert time.process_time() - start < 4



def asked_alike(n: int) -> list[Group]:
    """Groups of n pictures that were asked the same."""
    return [Group(sample=Sample(
        prompt=(Message(content=(Part(type="image"), Part(text="what is there ?"))),),
        media=(Media(sha256=f"{i:064x}"),)), rollouts=()) for i in range(n)]


@pytest.mark.parametrize("near", [0, 1, 3, 50])
def test_the_gold_of_another_is_drawn_from_all_that_differ_or_the_nearest(near):
    rng, groups = keys.generator(f"gold {near}"), asked_alike(30)
    words = np.array(["red", "Red", "car", "cat", "a", "a"])
    golds = {g.sample.id: " ".join(rng.choice(words, int(rng.integers(0, 4)))) for g in groups}
    ids = list(golds)

    def shared(a: str, b: str) -> float:
        mine, theirs = Counter(a.lower().split()), Counter(b.lower().split())
        return (mine & theirs).total() / max(1, (mine | theirs).total())

    for pair_ in GoldOfAnother(near)(groups, "k", golds):
        own = golds[pair_.sample]
        others = [i for i in ids if golds[i].lower().split() != own.lower().split()]
        if near:
            others = sorted(others, key=lambda i: -shared(own, golds[i]))[:near]
        u = float(keys.uniforms(f"k/{pair_.sample}", 1)[0])
        assert pair_.why == f"gold against that of {others[int(u * len(others))]}"


def test_the_gold_of_another_costs_no_square():
    groups = asked_alike(1000)
    start = time.process_time()
    found = GoldOfAnother(near=4)(groups, "k", {
        g.sample.id: f"a cat {i % 50}" for i, g in enumerate(groups)})
    assert len(found) == 1000 and time.process_time() - start < 3  # it was 13 s
