"""A thing erased from a picture, another picture's answer: image-side negatives from labels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from scripted import asked, picture
from selfloop.corruptions import apply
from selfloop.organize.refine.erased import Thing, WithAndWithout
from selfloop.organize.refine.gold_pairs import GoldOfAnother
from selfloop.roles import SelfloopError, reads
from selfloop.testbeds import scenes
from selfloop.types import Group, ImageOp, Sample

LEFT = (0, 0, 500, 1000)


def erased(image: Image.Image, key: str, severity: float = 1.0) -> Image.Image:
    return apply(image, ImageOp(name="erase", severity=severity, key=key))


# -- the picture operation --------------------------------------------------------------------

def test_a_part_is_filled_with_the_ground_and_nothing_else_changes() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(225, 235, (20, 40, 3), dtype=np.uint8)
    paper = {tuple(pixel) for pixel in values.reshape(-1, 3).tolist()}
    values[5:15, 5:15] = (200, 0, 0)
    values[5:15, 25:35] = (0, 0, 200)
    found = np.asarray(erased(Image.fromarray(values), "0,0,500,1000"))
    assert (found[:, 20:] == values[:, 20:]).all(), "the blue square is where it was"
    assert {tuple(p) for p in found[:, :20].reshape(-1, 3).tolist()} <= paper, "the red one is gone"
    assert len({tuple(p) for p in found[5:15, 5:15].reshape(-1, 3).tolist()}) > 10, "with grain"
    again = np.asarray(erased(Image.fromarray(values), "0,0,500,1000"))
    assert (found == again).all() and values[10, 10, 0] == 200, "the same each time; a copy"


def test_severity_0_erases_nothing_and_a_wrong_place_is_named() -> None:
    image = Image.new("RGB", (10, 10), (9, 9, 9))
    assert erased(image, "0,0,500,500", 0.0) is image
    with pytest.raises(SelfloopError, match="'erase' has the key '0,0,0,500'"):
        erased(image, "0,0,0,500")


def test_an_object_of_a_scene_is_gone_to_the_eye_of_a_threshold() -> None:
    item = next(i for i in scenes.items("train", 40, 3) if len(i.things) == 2)
    before = scenes.picture(item)
    where = {"upper left": (0, 0), "upper right": (1, 0), "lower left": (0, 1),
             "lower right": (1, 1)}
    x, y = where[scenes.PLACES[item.things[0].place]]
    after = erased(before, f"{500 * x},{500 * y},{500 * (x + 1)},{500 * (y + 1)}")

    def spread(image: Image.Image, column: int, row: int) -> float:
        part = np.asarray(image, dtype=float)[16 * row:16 * row + 16, 16 * column:16 * column + 16]
        return float(part.std(axis=(0, 1)).max())

    empty = next((c, r) for place, (c, r) in where.items()
                 if place not in [scenes.PLACES[t.place] for t in item.things])
    assert spread(after, x, y) < 1.5 * spread(before, *empty) < spread(before, x, y)


# -- with and without --------------------------------------------------------------------------

def things(sample: Sample, gold: str) -> list[Thing]:
    return [Thing(LEFT, "a dog", (("is there a cat ?", "yes", "no"),
                                  ("is there a dog ?", "yes", None),
                                  ("how many ?", None, "1")))] if " and " in gold else []


def told(maker: WithAndWithout, sample: Sample, gold: object = "a cat and a dog") -> list[object]:
    answers = {} if gold is None else {sample.id: gold}
    return [{name: (b.context.text, [o.key for m in b.context.media for o in m.ops], b.text)
             for name, b in signal.branches.items()}
            for signal in maker([Group(sample=sample, rollouts=())], "k", answers)]


def test_what_is_right_of_the_erased_picture_is_shown_and_the_questions_of_both() -> None:
    place, cat, dog = ["0,0,500,1000"], "is there a cat ?", "is there a dog ?"
    assert told(WithAndWithout(things), asked()) == [
        {"target": ("what is it ?", place, "a dog")},
        {"target": (cat, [], "yes")}, {"target": (cat, place, "no")},
        {"target": (dog, [], "yes")}, {"target": ("how many ?", place, "1")}]


def test_pairs_prefer_the_right_answer_and_the_right_picture() -> None:
    place, gold = ["0,0,500,1000"], "a cat and a dog"
    found = told(WithAndWithout(things, pairs=True), asked())
    wrong = ("what is it ?", place, gold)
    assert [f for f in found if "chosen" in f][:2] == [
        {"chosen": ("what is it ?", place, "a dog"), "rejected": wrong},
        {"chosen": ("what is it ?", [], gold), "rejected": wrong}]
    assert len([f for f in found if "chosen" in f]) == 4, "none for what is asked of one alone"


def test_nothing_comes_of_no_label_nothing_to_erase_and_several_pictures() -> None:
    maker = WithAndWithout(things)
    assert told(maker, asked(), None) == told(maker, asked(), "a cat") == []
    assert told(maker, asked(n_pictures=2)) == told(maker, asked(n_pictures=0)) == []
    assert reads(maker) == {"answers"}, "it counts as labels"


# -- another picture's answer ------------------------------------------------------------------

def seen(n: int, question: str = "what is it ?") -> Sample:
    sample = asked(question, answer=f"answer {n}")
    return sample.model_copy(update={"media": (picture(n),)})


def test_the_same_question_about_another_picture_with_another_answer() -> None:
    samples = [seen(1), seen(2), seen(3), seen(4, "where ?"), seen(5)]
    gold = dict(zip([s.id for s in samples], ["a cat", "A  cat", "a dog", "there", None],
                    strict=True))
    found = GoldOfAnother()([Group(sample=s, rollouts=()) for s in samples], "k", gold)
    by = {s.id: s for s in samples}
    assert [p.sample for p in found] == [s.id for s in samples[:3]], "no lone or unlabelled one"
    for pair in found:
        mine = by[pair.sample]
        chosen, rejected, other = (pair.branches[n] for n in ("chosen", "rejected", "corrupted"))
        assert chosen.context == rejected.context == mine.context
        assert chosen.text == other.text == gold[mine.id] and rejected.text != chosen.text
        (theirs,) = [s for s in samples if s.context == other.context]
        assert rejected.text == gold[theirs.id]
    dog = samples[2].id
    assert {p.branches["rejected"].text for p in found if p.sample != dog} == {"a dog"}
    assert reads(GoldOfAnother()) == {"answers"}


def test_near_takes_the_answers_that_share_most_words() -> None:
    samples = [seen(n) for n in range(4)]
    gold = dict(zip([s.id for s in samples], ["a red 3 and a blue 4", "a red 3 and a blue 5",
                                              "two green circles", "nothing"], strict=True))
    for key in "abcdef":
        first = GoldOfAnother(near=1)([Group(sample=s, rollouts=()) for s in samples], key, gold)[0]
        assert first.branches["rejected"].text == "a red 3 and a blue 5"
    others = {GoldOfAnother()([Group(sample=s, rollouts=()) for s in samples], key, gold)[0]
              .branches["rejected"].text for key in "abcdefghij"}
    assert len(others) > 1, "any of them otherwise"
