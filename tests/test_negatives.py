"""The negative factory: severity, determinism, swaps that change one thing, and the audit."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import toyland
from scripted import Scripted, asked, collect, picture
from selfloop.cli import main
from selfloop.collect.auditing import audit, dependence, words_apart
from selfloop.collect.lexicon import ENGLISH, Lexicon, plural, takes_an
from selfloop.collect.mentions import SWAPS
from selfloop.collect.mixed import MixedDecoding
from selfloop.collect.negatives import (
    BLIND,
    NEGATIVES,
    WORSE_SEEN,
    Negatives,
    without_blind,
    worse_media,
    worse_text,
)
from selfloop.collect.swapped_pictures import Pool, any_other, near_other, pool_of, reordered
from selfloop.collect.text_negatives import (
    ELICITING,
    eliciting,
    injecting,
    swapped,
    truncated,
)
from selfloop.corruptions import apply
from selfloop.data import load
from selfloop.engines.toy import ToyEngine
from selfloop.evaluate import objects as objects_of
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library, read
from selfloop.recipes.seva import seva
from selfloop.report.page import write_report
from selfloop.report.showing import describe_run
from selfloop.roles import SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Group, ImageOp, Media, Message, Part, Sample, Verdict

TEXT = ("Two dogs and a cat sit left of a red car. The large cow is behind the table, above 12 "
        "small cups and 3 blue plates.")
POOL = Pool(tuple(picture(i) for i in range(6)), tuple(2**bits - 1 for bits in (
    0, 7, 14, 21, 28, 35)))
"""Hashes in a row, each 7 bits from the next: just not alike."""


def scene(side: int = 64) -> Image.Image:
    """Mid-toned, so that symmetric noise is seldom clipped."""
    y, x = np.mgrid[:side, :side]
    bands = np.stack([x * 2 + 64, y * 2 + 64, (x + y) % 32 * 4 + 64], axis=-1)
    return Image.fromarray(bands.astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


# -- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", WORSE_SEEN)
def test_a_worse_picture_is_none_at_zero_and_repeats_and_gets_worse(cause):
    def seen(severity: float, key: str = "k") -> np.ndarray:
        (medium,) = worse_media((picture(),), cause, severity, key)
        image = scene()
        for op in medium.ops:
            image = apply(image, op)
        return pixels(image)

    clean = pixels(scene())
    assert (seen(0) == clean).all() and not worse_media((picture(),), cause, 0, "k")[0].ops
    assert (seen(0.7) == seen(0.7)).all()
    distances = [np.mean([abs(seen(s, f"k{i}") - clean).mean() for i in range(6)])
                 for s in (0, 0.2, 0.5, 1)]
    assert distances == sorted(distances) and distances[1] > 0


def test_noise_is_symmetric_and_never_wraps():
    def noised(image: Image.Image) -> np.ndarray:
        return pixels(apply(image, ImageOp(name=WORSE_SEEN["gaussian"], severity=0.1, key="k")))

    error = noised(scene()) - pixels(scene())
    assert 20 < error.std() < 27 and abs(error.mean()) < 0.7
    # In a uint8 that wraps, a white picture would have black pixels, and a black one white ones.
    assert noised(Image.new("RGB", (64, 64), (255, 255, 255))).min() > 255 * (1 - 6 * 0.1)
    assert noised(Image.new("RGB", (64, 64))).max() < 255 * 6 * 0.1


def test_swapped_pictures_are_others_and_more_of_them_with_severity():
    media = POOL.media
    shares = [sum(a != b for a, b in zip(media, any_other(media, POOL, s, "k"), strict=True))
              for s in (0, 0.3, 0.6, 1)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == len(media)
    few, many = (any_other(media, POOL, s, "k") for s in (0.5, 0.9))
    assert all(m == f for m, f, own in zip(many, few, media, strict=True) if f != own)
    with pytest.raises(SelfloopError, match="no picture besides"):
        any_other(media[:1], Pool(media[:1], (0,)), 1, "k")


def test_near_pictures_are_ordered_by_likeness():
    own = (POOL.media[0],)
    distance = [POOL.hashes[POOL.media.index(near_other(own, POOL, s)[0])].bit_count()
                for s in (0, 0.01, 0.3, 0.5, 0.7, 1)]
    assert distance == [0, 7, 14, 21, 28, 35]
    with pytest.raises(SelfloopError, match="not in the pool"):
        near_other((picture(99),), POOL, 1)


def frames(name: int, seconds: tuple[float, ...]) -> tuple[Media, ...]:
    """Frames of one video file: one sha256, told apart by their page."""
    return tuple(Media(sha256=f"{name:064x}", meta={"seconds": s, "frame": i},
                       ops=(ImageOp(name="page", key=str(i)),) if i else ())
                 for i, s in enumerate(seconds))


def test_a_copy_in_another_format_is_no_negative():
    copied = Pool(POOL.media[:4], (0, 0b111111, 0b1111111, 2**30 - 1))
    for s in (0.01, 0.5, 1):
        assert near_other(POOL.media[:1], copied, s)[0] in POOL.media[2:4]
        assert any_other(POOL.media[:1], copied, 1, f"k{s}")[0] in POOL.media[2:4]
    only_copies = Pool(POOL.media[:2], (0, 1))
    assert near_other(POOL.media[:1], only_copies, 1) == POOL.media[:1]
    assert any_other(POOL.media[:1], only_copies, 1, "k") == POOL.media[:1]
    made, _ = collect(Negatives(causes=("near", "swapped"), severity=1, n=1, pool=only_copies),
                      speaker)
    assert [r.sampling.get("skipped") for r in made] == [["near", "swapped"]]


def test_a_video_is_swapped_as_a_whole_for_frames_of_one_other():
    own, as_many = frames(1, (0, 1, 2)), frames(2, (0.5, 1.5, 2.5))
    longer, still = frames(3, (0, 0.4, 0.9, 2.1, 3)), (picture(9),)
    media = (*own, *as_many, *longer, *still)
    # Hashes: every frame of file 2 is nearer to the own ones than every frame of file 3.
    low, near, far = 0, 2**10 - 1, 2**20 - 1
    pool = Pool(media, (low,) * 3 + (near,) * 3 + (far,) * 5 + (2**30 - 1,))
    assert near_other(own, pool, 0.01) == as_many
    assert near_other(own, pool, 1) == (longer[0], longer[2], longer[3]), "nearest in time"
    made = {tuple(m.identity for m in any_other(own, pool, 1, f"k{i}")) for i in range(30)}
    assert made == {tuple(m.identity for m in one)
                    for one in (as_many, (longer[0], longer[2], longer[3]))}
    mixed = near_other((*own, *still), pool, 0.01)
    assert mixed[:3] == as_many and len(mixed) == 4
    assert any_other(own, Pool((*own, *still), (0, 0, 0, far)), 1, "k") == still * 3


def test_a_video_given_as_pictures_is_one_video(tmp_path):
    """Frames in files of their own: never mixed from several videos, nor taken from its own."""
    rng = np.random.default_rng(0)
    rows = []
    for v in range(3):
        names = [tmp_path / f"{v}-{k}.png" for k in range(4)]
        for name in names:
            Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(name)
        rows.append({"videos": [[str(n) for n in names]], "prompt": f"<video>what is in {v}?"})
    told, untold = load([row | {"fps": 2} for row in rows]), load(rows)
    for samples in (told, untold):
        own, *others = [s.media for s in samples]
        pool = pool_of([m for s in samples for m in s.media], Library())
        assert [m.meta["place"] for m in own] == [0, 1, 2, 3]
        assert all(near_other(own, pool, s) in others for s in (0.01, 0.5, 1))
        drawn = [any_other(own, pool, 1, f"k{i}") for i in range(20)]
        assert all(one in others for one in drawn) and all(one in drawn for one in others)


def test_frames_are_shuffled_among_themselves():
    """A picture beside a video keeps its place, and no frame goes over to another video."""
    still, one, other = (picture(9),), frames(1, (0, 1, 2, 3)), frames(2, (0, 1))
    for i in range(20):
        made = reordered((*still, *one, *other), 1, f"k{i}")
        assert made[0] == still[0] and made[5:] == other[::-1]
        assert set(map(str, made[1:5])) == set(map(str, one)) and made[1:5] != one
    apart = tuple(picture(i) for i in range(3))
    assert sorted(map(str, reordered(apart, 1, "k"))) == sorted(map(str, apart)) != list(
        map(str, reordered(apart, 1, "k")))


def test_each_frame_is_looked_up_by_itself_and_not_by_its_file():
    own, others = frames(1, (0, 1)), (picture(8), picture(9))
    # The second frame looks like picture 8, the first like picture 9.
    pool = Pool((*own, *others), (0, 2**40 - 1, 2**30 - 1, 2**10 - 1))
    assert near_other(own[:1], pool, 0.01) == (others[1],)
    assert near_other(own[1:], pool, 0.01) == (others[0],)
    changed = own[1].with_op("blur", 0.5, "k")
    assert near_other((changed,), pool, 0.01) == (others[0],), "as it is, without operations"


class Meaning:
    """Stands for a dual encoder: its vector is the picture's mean colour."""

    def embeddings(self, picture, text):
        return [float(x) for x in np.asarray(picture).mean((0, 1))], [1.0, 0.0, 0.0]


def test_likeness_by_an_encoder_is_by_meaning(tmp_path):
    def stored(name, colour, turn=0):
        noise = np.random.default_rng(turn).integers(0, 40, (32, 32, 1))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
            tmp_path / name)
        return read(tmp_path / name)[0]

    own, red, blue = (stored("own.png", (200, 0, 0), 1), stored("red.png", (180, 10, 0), 2),
                      stored("blue.png", (0, 0, 200), 3))
    library = Library()
    pool = pool_of((own, red, blue), library, encoder=Meaning())
    assert near_other((own,), pool, 0.01) == (red,) and near_other((own,), pool, 1) == (blue,)
    assert all(abs(sum(x * x for x in v) - 1) < 1e-9 for v in pool.vectors)
    assert pool_of((own,), library).vectors == () and "vectors" not in str(pool)
    with pytest.raises(SelfloopError, match=r"no embeddings\(picture, text\)"):
        pool_of((own,), library, encoder=lambda picture, texts: [1.0])
    with pytest.raises(SelfloopError, match="1 vectors for 6 pictures"):
        replace(POOL, vectors=((1.0,),))


def test_a_pool_is_hashed_from_the_files(tmp_path):
    media = toyland.pictures(tmp_path, 3)
    pool = pool_of([*media, media[0]], Library())
    assert pool.media == tuple(media) and len(pool.hashes) == 3


def test_reordering_moves_a_share_and_keeps_every_picture():
    media = tuple(picture(i) for i in range(8))
    moved = [sum(a != b for a, b in zip(media, reordered(media, s, "k"), strict=True))
             for s in (0, 0.1, 0.25, 0.5, 1)]
    assert moved == [0, 2, 2, 4, 8], "one alone cannot move"
    two = [sum(a != b for a, b in zip(media, reordered(media[:2], s, "k"), strict=False))
           for s in (0, 0.01, 0.5, 1)]
    assert two == [0, 2, 2, 2]
    for few, many in ((0.1, 0.5), (0.5, 0.9)):
        stays, goes = ([a == b for a, b in zip(media, reordered(media, s, "k"), strict=True)]
                       for s in (many, few))
        assert all(g for s, g in zip(stays, goes, strict=True) if s), "what moves goes on moving"
    assert {m.sha256 for m in reordered(media, 0.7, "k")} == {m.sha256 for m in media}
    with pytest.raises(SelfloopError, match="several pictures"):
        reordered(media[:1], 1, "k")


# -- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SWAPS)
def test_swaps_change_what_is_named_and_nothing_else(kind):
    named = {"entity": 7, "attribute": 4, "number": 3, "relation": 3}[kind]
    for i in range(40):
        changed = swapped(TEXT, kind, 1, f"k{i}")
        assert changed == swapped(TEXT, kind, 1, f"k{i}")
        mentions = SWAPS[kind](TEXT)
        assert len(mentions) == named
        pattern, at = "", 0
        for start, end, choices in mentions:
            either = "|".join(re.escape(c) for c in choices)
            pattern += re.escape(TEXT[at:start]) + f"(?:{either})"
            at = end
        assert re.fullmatch(pattern + re.escape(TEXT[at:]), changed, re.I), changed
        assert all(TEXT[s:e].lower() not in choices for s, e, choices in mentions)
        assert changed[0].isupper(), "the case is kept"


@pytest.mark.parametrize("kind", SWAPS)
def test_severity_decides_how_many_swaps_and_never_undoes_one(kind):
    words = TEXT.split()
    total = len(SWAPS[kind](TEXT))
    before: set[int] = set()
    for part in range(total + 1):
        now = swapped(TEXT, kind, part / total, "k").split()
        if kind != "relation":  # a relation is of several words
            changed = {i for i, (a, b) in enumerate(zip(words, now, strict=True)) if a != b}
            assert len(changed) == part and before <= changed
            before = changed
    assert swapped(TEXT, kind, 0, "k") == TEXT != swapped(TEXT, kind, 0.01, "k")


FEW = Lexicon(
    entities=("man|guy, woman, boy, girl", "sheep, dog, owl, elephant", "orange, apple, pear, egg",
              "circle, square", "couch|sofa, bed", "hot dog, cake", "tv, lamp", "person, robot"),
    attributes=("red, blue, orange, grey", "small|little, large", "old, young", "hot, cold",
                "wooden, metal"),
    relations=("above, below", "left of, right of", "on, under", "in, outside"),
    numbers=("two", "three", "four"))


@pytest.mark.parametrize(("text", "kind", "allowed"), [
    ("An apple.", "entity", {"An orange.", "An egg."}),
    ("an apple, an orange and an egg", "entity", {"a pear, a pear and a pear"}),
    ("A red ball", "attribute", {"A blue ball", "A grey ball"}),
    ("An old man", "attribute", {"A young man"}),
    ("It has 0 doors", "number", {"It has 1 doors", "It has 2 doors", "It has 3 doors"}),
    ("owls, a dog and elephants", "entity", {"sheep, a sheep and sheep"}),
    ("three sheep", "entity", {"three dogs", "three owls", "three elephants"}),
    ("the sheep", "entity", {"the dog", "the owl", "the elephant"}),
    ("small or large", "attribute", {"large or small"}),
    ("MEN", "entity", {"WOMEN", "BOYS", "GIRLS"}),
    ("Two guys and a man", "entity", {f"Two {a} and a {b}" for a in ("women", "boys", "girls")
                                      for b in ("woman", "boy", "girl")}),
    ("people", "entity", {"robots"}),
    ("a sofa", "entity", {"a bed"}),
    ("a TV", "entity", {"a lamp"}),
    ("the cup is above it", "relation", {"the cup is below it"}),
    ("1. A dog\n2. A cat\n3. A bird", "number", {"1. A dog\n2. A cat\n3. A bird"}),
    ("**1.** A dog\n- 2) A cat", "number", {"**1.** A dog\n- 2) A cat"}),
    ("Step 1: a dog. Step 2: a cat.", "number", {"Step 1: a dog. Step 2: a cat."}),
    ("1) 0 cats", "number", {f"1) {n} cats" for n in (1, 2, 3)}),
    ("0. That is the sum.", "number", {f"{n}. That is the sum." for n in (1, 2, 3)}),
    ("0.", "number", {"1.", "2.", "3."}), ("It is (0).", "number", {
        "It is (1).", "It is (2).", "It is (3)."}),
    ("it costs 3.5 or 1,234 on the 2nd", "number", {"it costs 3.5 or 1,234 on the 2nd"}),
    ("he left, right?", "relation", {"he left, right?"}),
    ("a hotdogger", "entity", {"a hotdogger"}),
    ("a hot dog", "entity", {"a cake"}), ("a hot dog", "attribute", {"a hot dog"}),
    ("", "entity", {""}),
    # a word of two senses
    ("an orange dog", "entity", {f"an orange {x}" for x in ("sheep", "owl", "elephant")}),
    ("an orange dog", "attribute", {"a red dog", "a blue dog", "a grey dog"}),
    ("an orange small dog", "entity", {"an orange small owl", "an orange small elephant",
                                       "an orange small sheep"}),
    ("an orange shirt", "entity", {"an orange shirt"}),
    ("it is orange", "entity", {"it is orange"}),
    ("it is orange.", "attribute", {"it is red.", "it is blue.", "it is grey."}),
    ("the orange and red dog", "entity", {f"the orange and red {x}" for x in (
        "sheep", "owl", "elephant")}),
    ("an orange on a plate", "entity", {"an apple on a plate", "an egg on a plate"}),
    ("an orange on a plate", "attribute", {"an orange on a plate"}),
    ("a red square", "entity", {"a red circle"}), ("a square", "attribute", {"a square"}),
    ("a metal bed", "attribute", {"a wooden bed"}), ("made of metal", "attribute",
                                                     {"made of metal"}),
    ("a man dog", "entity", {f"a man {x}" for x in ("sheep", "owl", "elephant")}),
    # loose relations, and numbers that others have to follow
    ("on the small bed", "relation", {"under the small bed"}),
    ("on Monday", "relation", {"on Monday"}), ("turned on", "relation", {"turned on"}),
    ("on fire, a bed", "relation", {"on fire, a bed"}),
    ("one dog", "number", {"two dogs", "three dogs", "four dogs"}),
    ("One red dog is here", "number", {f"{n} red dogs are here" for n in (
        "Two", "Three", "Four")}),
    ("one dog sits", "number", {"one dog sits"}), ("no one", "number", {"no one"}),
    ("a dozen eggs", "number", {"three eggs", "four eggs"}),
    ("a pair of scissors", "number", {"a pair of scissors"}),
])
def test_swaps_truth_table(text, kind, allowed):
    made = {swapped(text, kind, 1, f"{i}", lexicon=FEW) for i in range(80)}
    assert made == allowed


CAPTIONS = (
    "A man riding a brown horse on a sandy beach.",
    "Two small dogs are sleeping on an old couch next to a window.",
    "A woman in a red dress is holding an umbrella.",
    "Three yellow buses are parked in front of a tall building.",
    "A plate with two slices of pizza and a green salad sits on a wooden table.",
    "A young boy is flying a blue kite over a grassy field.",
    "Five white sheep are grazing near a long fence.",
    "A black cat is sitting inside an open suitcase on the bed.",
    "One large elephant is walking behind a dirty truck.",
    "A person on a red surfboard with two little dogs.",
    "A clean white bathroom with a round sink below two mirrors.",
    "An orange cat is looking at 3 birds through a wet window.",
    "A group of ten people are standing around a big table.",
    "A dozen fresh donuts in a box beside a cup of hot coffee.",
    "A couple of giraffes are eating from a tall tree on a sunny day.",
    "A boy wearing a striped shirt is sitting on one side of 2 girls.",
    "A silver laptop, a keyboard and four books are on top of a metal desk.",
)


@pytest.mark.parametrize("kind", SWAPS)
def test_captions_name_something_of_every_kind(kind):
    """At least 15 of 17 captions give a negative, of which each differs in what was named alone."""
    made = {text: swapped(text, kind, 1, "a key") for text in CAPTIONS}
    same = [text for text, new in made.items() if text == new]
    assert len(same) <= {"entity": 0, "attribute": 0, "number": 5, "relation": 0}[kind], same
    for new in made.values():
        assert not re.search(r"(?i)\ba [aeio]|\ban [^aeiouh]", new), new


def test_every_coco_name_has_a_swap_in_singular_and_plural():
    objects = json.loads((Path(objects_of.__file__).parent / "coco_objects.json").read_text())
    for name in objects["objects"]:
        found = {swapped(f"There it has the {form}.", "entity", 1, "k") != f"There it has the "
                 f"{form}." for form in (name, plural(name))}
        assert found == {True}, name
    assert len(objects["objects"]) == 80


@pytest.mark.parametrize(("word", "many"), [
    ("bus", "buses"), ("box", "boxes"), ("toy", "toys"), ("lady", "ladies"), ("knife", "knives"),
    ("teddy bear", "teddy bears"), ("wine glass", "wine glasses"), ("mouse", "mice"),
    ("policeman", "policemen"), ("sheep", "sheep"), ("skis", "skis"), ("bench", "benches"),
])
def test_plurals(word, many):
    assert plural(word) == many


@pytest.mark.parametrize(("word", "an"), [
    ("owl", True), ("dog", False), ("umbrella", True), ("unripe", True), ("uniform", False),
    ("urinal", False), ("hour", True), ("one", False), ("onion", True), ("Apple", True),
    ("", False),
])
def test_articles_go_by_sound(word, an):
    assert takes_an(word) is an


def test_a_lexicon_of_ones_own():
    own = replace(ENGLISH, entities=("resistor, capacitor|condenser, inductor",))
    sampler = Negatives(causes=("entity",), severity=1, n=1, lexicon=own)
    made, _ = collect(sampler, lambda r, i: "" if r.sampling.prefix else "a condenser, a dog")
    assert made[1].text in ("a resistor, a dog", "an inductor, a dog")
    assert made[1].text == swapped("a condenser, a dog", "entity", 1, "s/" + asked().id + "/0",
                                   lexicon=own)
    for bad in ("dog", "dog, ", "dog|, cat"):
        with pytest.raises(SelfloopError, match="needs two things or more"):
            Lexicon(entities=(bad,))


def test_swaps_keep_to_a_closed_vocabulary():
    words = frozenset({"cat", "blue", "1", "2"})
    made = {swapped("a dog and 3 red cars", kind, 1, f"{i}", words)
            for kind in SWAPS for i in range(40)}
    assert made == {"a cat and 3 red cars", "a dog and 3 blue cars", "a dog and 1 red cars",
                    "a dog and 2 red cars", "a dog and 3 red cars"}


def test_truncation_cuts_from_the_end():
    assert [truncated("one  two three four", s) for s in (0, 0.25, 0.5, 0.99, 1)] == [
        "one  two three four", "one  two three", "one  two", "one", ""]
    assert truncated("  padded ", 0) == "  padded " and truncated("", 1) == ""


@pytest.mark.parametrize("severity", [-0.1, 1.1, float("nan")])
def test_a_severity_outside_is_refused(severity):
    for use in (lambda: truncated("a b", severity), lambda: swapped("2", "number", severity, ""),
                lambda: worse_media((picture(),), "blur", severity, "k"),
                lambda: Negatives(severity=severity)):
        with pytest.raises(SelfloopError, match="severity"):
            use()


def test_eliciting_prompts_ask_for_more_with_severity():
    context = asked().context
    assert eliciting(context, 0, "k") == context
    said = [eliciting(context, s, "k").text for s in (0.2, 0.5, 1)]
    assert [("one" in t, "a few" in t, "many" in t) for t in said] == [
        (True, False, False), (False, True, False), (False, False, True)]
    assert len({eliciting(context, 1, f"{i}").text for i in range(200)}) == len(ELICITING) == 8


def test_injection_asks_for_a_share_of_the_sentences():
    context = asked().context
    text = "One. Two. Three. Four."
    assert injecting(context, text, 0) == context
    assert [re.search(r"with (\d+) of", injecting(context, text, s).text)[1]
            for s in (0.1, 0.5, 1)] == ["1", "2", "4"]
    assert [m.role for m in injecting(context, text, 1).prompt] == ["user", "assistant", "user"]


# -- the factory ----------------------------------------------------------------------------------


def speaker(request, index: int) -> str:
    """Says what it sees: two good answers differ, each astray request has an answer of its own."""
    if not request.context.media:
        return "a dog, I guess"
    if request.context.media[0].ops or request.context.media[0] != picture(0):
        return "a dog in a red car"
    if "wrong" in request.context.text:
        return "three dogs"
    return "two cats in a red car." if "Answer" not in request.context.text else "x"


def test_every_cause_makes_a_negative_under_the_plain_context():
    causes = tuple(c for c in NEGATIVES if c != "shuffle")
    sampler = Negatives(causes=causes, pool=POOL, n=2, severity=1, blind=True)
    rollouts, _ = collect(sampler, speaker)
    made = Counter(r.sampling.get("negative") for r in rollouts)
    assert made == {None: 2, BLIND: 2, **dict.fromkeys(causes, 2)}
    for r in rollouts:
        if r.sampling.get("negative") not in (None, BLIND):
            assert r.context == asked().context and r.turns[0].logprobs is None
    entity = next(r for r in rollouts if r.sampling.get("negative") == "entity")
    assert entity.text != "two cats in a red car." and entity.text.startswith("two ")
    assert sum(entity.turns[0].mask) == len(entity.text), "all of it is trained"
    again, _ = collect(sampler, speaker)
    assert again == rollouts


def test_severity_zero_makes_no_negative_and_shuffle_needs_several_pictures():
    assert {r.sampling.get("negative") for r in collect(
        Negatives(causes=("blur", "entity"), severity=0), speaker)[0]} == {None}
    for n, expected in ((1, 0), (3, 2)):
        made, _ = collect(Negatives(causes=("shuffle",), severity=1), speaker,
                          asked(n_pictures=n))
        assert sum(r.sampling.get("negative") == "shuffle" for r in made) == expected


def test_a_sound_is_no_picture_to_shuffle():
    sound = Media(kind="audio", sha256="a" * 64)
    sample = asked()
    heard = Sample(prompt=(Message(content=(Part(type="image"), Part(type="audio"),
                                            *sample.prompt[0].content[1:])),),
                   media=(*sample.media, sound))
    made, _ = collect(Negatives(causes=("shuffle", "blur"), n=1, severity=1), speaker, heard)
    assert [(r.sampling.get("negative"), r.sampling.get("skipped")) for r in made] == [
        (None, ["shuffle"]), ("blur", None)]
    alone = heard.model_copy(update={"media": (sound,), "prompt": (Message(content=(
        Part(type="audio"), *sample.prompt[0].content[1:])),)})
    made, _ = collect(Negatives(causes=("shuffle", "blur"), n=1), lambda r, i: "a", alone)
    assert [r.sampling.get("skipped") for r in made] == [["shuffle", "blur"]]


def test_two_pictures_are_shuffled_at_any_severity():
    for severity in (0.01, 0.5, 1.0):
        made, engine = collect(Negatives(causes=("shuffle",), n=1, severity=severity), speaker,
                               asked(n_pictures=2))
        assert len(made) == 2
        assert engine.asked[1].context.media == asked(n_pictures=2).media[::-1]


def test_mixed_decoding_leaves_what_it_cannot_change_to_plain_draws():
    for against, n, kinds in (("shuffle", 1, {None: 2}), ("shuffle", 2, {None: 2, "mixed": 2}),
                              ("blur", 1, {None: 2, "mixed": 2}), ("blur", 0, {None: 2})):
        made, engine = collect(MixedDecoding(n=2, against=against), lambda r, i: "a",
                               asked(n_pictures=n))
        assert Counter(r.sampling.get("negative") for r in made) == kinds
        assert (engine.asked[-1].sampling.contrast is None) == ("mixed" not in kinds)


def test_truncation_leaves_the_first_word():
    assert [worse_text("  one two three", "truncated", s, "k") for s in (0.3, 0.7, 1)] == [
        "  one two three", "  one", "  one"]
    assert worse_text("one", "truncated", 1, "k") == "one"
    assert worse_text("", "truncated", 1, "k") == ""


def test_only_rewriting_causes_ask_for_a_forced_prefix():
    assert Negatives(causes=("blur", "eliciting", "injected", "shuffle")).asks == frozenset()
    for cause in (*SWAPS, "truncated"):
        assert Negatives(causes=("blur", cause)).asks == {"forced_prefix"}


def test_a_text_that_ends_itself_keeps_its_end():
    def quiet(request, index):
        return "" if request.sampling.prefix else "two cats"

    rollouts, engine = collect(Negatives(causes=("number",), severity=1, n=1), quiet)
    bad = rollouts[-1]
    assert bad.turns[0].token_ids[-1] == 0 and bad.finish_reason == "stop"
    assert engine.decode(bad.turns[0].token_ids) == bad.text == engine.asked[-1].sampling.prefix


def test_bad_names_and_missing_pools_are_said_when_built():
    with pytest.raises(SelfloopError, match=r"no negative 'blurr'; there are: diffusion"):
        Negatives(causes=("blurr",))
    with pytest.raises(SelfloopError, match="pool_of"):
        Negatives(causes=("near",))
    with pytest.raises(SelfloopError, match="no image negative 'eliciting'"):
        worse_media((picture(),), "eliciting", 1, "k")
    with pytest.raises(SelfloopError, match="no text swap 'colour'"):
        worse_text("red", "colour", 1, "k")


def judged_group(*, seen: str, blind: str | tuple[str, str]) -> Group:
    def says(request, index):
        if not request.context.media:
            return blind if isinstance(blind, str) else blind[index]
        return seen if request.context.media[0].ops else "a cat"

    rollouts, _ = collect(Negatives(causes=("blur",), blind=True), Scripted(says))
    verdicts = tuple(Verdict(score=None if r.text == "?" else float(r.text == "a cat"))
                     for r in rollouts)
    return Group(sample=asked(), rollouts=tuple(rollouts), verdicts=verdicts)


def test_audit_counts_what_the_groups_say():
    looking = audit([judged_group(seen="one big dog", blind="a cow")])["blur"]
    assert (looking.drawn, looking.judged, looking.wrong, looking.good_wrong) == (2, 2, 1.0, 0.0)
    assert looking.length_ratio == 12 / 6 and looking.longer == 1.0  # the end token counts
    assert (looking.depends, looking.good_depends) == (1.0, 0.5) and looking.empty == 0.0
    guessing = audit([judged_group(seen="a dog", blind="A  dog")])["blur"]
    assert guessing.depends == 0.0 and guessing.longer == 0.5
    accidental = audit([judged_group(seen="a cat", blind="a cat")])["blur"]
    assert accidental.wrong == 0.0
    unknown = audit([judged_group(seen="?", blind="a dog")])["blur"]
    assert unknown.judged == 0 and unknown.wrong is None and "wrong unknown" in str(unknown)
    empty = audit([judged_group(seen="  ", blind="a dog")])["blur"]
    assert (empty.empty, empty.wrong, empty.depends) == (1.0, 1.0, None)
    blind = audit([judged_group(seen="a dog", blind="a dog")])[BLIND]
    assert blind.drawn == 2 and blind.depends is blind.good_depends is None
    assert audit([]) == {}


def test_answers_that_did_not_look_depend_on_nothing_however_much_draws_differ():
    """What differs by chance is what blind answers have among each other, not good ones."""
    hot = audit([judged_group(seen="a dog", blind=("a dog", "a cow"))])["blur"]
    assert hot.depends == 0.0, "no further from blind answers than those from each other"
    assert audit([judged_group(seen="a dog", blind=("x", "y"))])["blur"].depends is None


@pytest.mark.parametrize(("families", "value"), [
    ([], None),
    ([(["a"], ["b"])], None),  # one blind answer says nothing of chance
    ([([], ["b", "b"])], None),
    ([(["a"], ["b", "c"])], None),  # blind answers share nothing: no room above chance
    ([(["a"], ["b", "b"])], 1.0),
    ([(["a"], ["a", "a"])], 0.0),
    ([(["a", "b"], ["a", "a"])], 0.5),
    ([(["b"], ["a", "a", "b"])], 0.0),  # D 2/3, B 2/3
    ([(["c"], ["a", "a", "b"])], 1.0),
    ([(["a"], ["a", "a", "b"])], 0.0),  # nearer than chance is no dependence
    ([(["a"], ["b", "b"]), (["a"], ["a", "a"])], 0.5),
    ([(["a"], ["b", "b"]), (["a"], ["b"])], 1.0),  # the second cannot be counted
    ([(["a c"], ["a b", "a b"])], 0.5),
    ([(["x c"], ["a b", "a c"])], 0.5),  # D 3/4, B 1/2
])
def test_dependence_truth_table(families, value):
    assert dependence(families) == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize(("a", "b", "apart"), [
    ("", "", 0), ("a", "", 1), ("A  b", "b a", 0), ("a", "b", 1), ("a a", "a", 1 / 3),
    ("a red cat", "a blue cat", 1 / 3),
])
def test_words_apart_truth_table(a, b, apart):
    assert words_apart(a, b) == pytest.approx(apart) == words_apart(b, a)


def test_the_audit_counts_good_answers_that_a_cause_left_alone():
    def says(request, index):
        return ("two cats", "hello", "a red cat")[index] if request.n == 3 else ""

    rollouts, _ = collect(Negatives(causes=("number", "relation"), severity=1, n=3), says)
    found = audit([Group(sample=asked(), rollouts=tuple(rollouts))])
    assert {c: (a.drawn, a.skipped) for c, a in found.items()} == {
        "number": (1, 2), "relation": (0, 3)}
    assert found["relation"].empty is None and found["relation"].length_ratio is None
    picked, _ = collect(Negatives(causes=("relation",), severity=1, n=3, pick_one=True), says)
    assert audit([Group(sample=asked(), rollouts=tuple(picked))])["relation"].skipped == 3


def test_blind_answers_can_be_taken_out_again():
    group = judged_group(seen="a dog", blind="a cow")
    (bare,) = without_blind([group])
    assert len(bare.rollouts) == len(bare.verdicts) == 4 == len(group.rollouts) - 2
    assert all(r.text != "a cow" for r in bare.rollouts)
    (unjudged,) = without_blind([group.model_copy(update={"verdicts": ()})])
    assert unjudged.verdicts == ()


# -- where it is shown ----------------------------------------------------------------------------


def test_a_runs_negatives_are_audited_on_its_page_and_in_the_terminal(tmp_path):
    """End to end: a tiny SeVa run, and `selfloop show` and `selfloop report` of its folder."""
    loop = seva(exact, causes=("blur", "entity"), n=2, max_new_tokens=4, lr=0.1, updates=2,
                samples=6)
    loop = replace(loop, verifier=exact, gate=None, evaluation=None,
                   sampler=replace(loop.sampler, blind=True))
    (role,) = loop.learn
    learn = loop.learn[role]
    loop = replace(loop, learn={role: replace(learn, organizer=replace(
        learn.organizer, steps=(without_blind,)))})
    samples = toyland.samples(tmp_path / "data", 8)
    folder = tmp_path / "run"
    run(loop, samples, ToyEngine(("dog", "cat", "left", "right"), seed=1), folder,
        library=Library(folder / "images"))
    groups = RunFolder(folder).groups(0)
    said = CliRunner().invoke(main, ["show", str(folder), "--json"])
    told = json.loads(said.stdout)["negatives"]
    assert told == {c: asdict(a) for c, a in audit(groups).items()}
    assert set(told) == {"blur", "entity", BLIND} and told["blur"]["drawn"] == 12
    assert told["blur"]["judged"] > 0 and told["blur"]["depends"] is not None
    assert told["entity"]["drawn"] + told["entity"]["skipped"] == 12
    shown = CliRunner().invoke(main, ["show", str(folder)]).stdout
    assert "depends on picture" in shown and re.search(r"(?m)^blur +12 ", shown)
    page = write_report(folder).read_text()
    assert "The answers that are worse on purpose" in page and ">blur</th>" in page


def test_a_run_without_negatives_shows_none(tmp_path):
    toyland.perform("mixture", tmp_path / "run", tmp_path / "data")
    assert describe_run(tmp_path / "run")["negatives"] == {}
    assert "worse on purpose" not in write_report(tmp_path / "run").read_text()
