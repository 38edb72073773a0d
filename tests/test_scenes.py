"""The scenes testbed: exact gold, exact hallucination measures, a prior that can be turned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from transformers import AutoModelForImageTextToText, AutoProcessor

from scenes_runs import SEED, dialled_run, hard_star, told
from selfloop.data import load
from selfloop.engines.hf import HFEngine
from selfloop.organize.verify.rules import exact
from selfloop.recipes.dpo import dpo
from selfloop.recipes.star import star
from selfloop.running import run
from selfloop.testbeds import digits, scenes, tiny_vlm
from selfloop.testbeds.scenes_drawing import PLAIN, SHIFTED
from selfloop.testbeds.scenes_measures import (
    Chair,
    Existence,
    chair,
    existence,
    stereotyped,
    usual_named,
)
from selfloop.testbeds.scenes_questions import POPULAR, common

SCENE = scenes.things_of([["red", "3", "upper left"], ["blue", "circle", "lower right"]])


# -- what is in the pictures ----------------------------------------------------------------------

def test_broken_and_shifted_differ_from_test_in_colours_and_in_the_domain_alone() -> None:
    test, broken, shifted = (scenes.items(s, 42, 3) for s in ("test", "broken", "shifted"))
    for a, b, c in zip(test, broken, shifted, strict=True):
        assert (a.cluster, a.task) == (b.cluster, b.task) == (c.cluster, c.task)
        assert a.things == c.things and (a.prompt, a.answer) == (c.prompt, c.answer)
        assert [t[1:] for t in a.things] == [t[1:] for t in b.things]
        assert all(t.colour != scenes.stereotype(t.kind) for t in b.things)
        assert a.domain == b.domain == PLAIN and c.domain == SHIFTED
        assert len({scenes.picture(i).tobytes() for i in (a, c)}) == 2
        assert len({i.id for i in (a, b, c)}) == 3


def test_the_dial_sets_the_share_of_usual_colours_and_nothing_else() -> None:
    dialled = {p: scenes.items("train", 400, 1, prior=p) for p in (0.0, scenes.CHANCE, 0.7, 1.0)}
    for prior, found in dialled.items():
        things = [t for item in found for t in item.things]
        share = np.mean([t.colour == scenes.stereotype(t.kind) for t in things])
        assert abs(share - prior) < 3 * np.sqrt(prior * (1 - prior) / len(things)) + 1e-9
        for item, other in zip(found, dialled[1.0], strict=True):
            assert [t[1:] for t in item.things] == [t[1:] for t in other.things]
    assert [i._replace(id="") for i in scenes.items("train", 50, 1)] == [
        i._replace(id="") for i in dialled[scenes.PRIOR][:50]]
    colours = [t.colour for item in dialled[1.0] for t in item.things]
    assert max(map(colours.count, scenes.COLOURS)) < 0.35 * len(colours)


@pytest.mark.parametrize("split", ["dev", "test", "broken", "shifted"])
def test_held_out_scenes_stay_inside_their_block(split: Any) -> None:
    source = "dev" if split == "dev" else "test"
    owner = {scan: f"{source}-{k:03d}"
             for k, block in enumerate(digits.blocks(source)) for scan in block}
    found = scenes.items(split, 300, 2)
    for item in found:
        scans = [t.scan for t in item.things if t.scan >= 0]
        assert scans and {owner[scan] for scan in scans} == {item.cluster}
        for thing in item.things:
            assert (thing.scan >= 0) == (thing.kind in scenes.DIGITS)
            if thing.scan >= 0:
                assert str(digits.load_scans().digits[thing.scan]) == thing.kind
        assert len({t.kind for t in item.things}) == len(item.things) <= scenes.MOST
    visits = np.unique([item.cluster for item in found], return_counts=True)[1]
    assert visits.max() - visits.min() <= 1


def test_train_scenes_use_train_scans_and_seed_scenes_stay_apart() -> None:
    train = set(digits.split_scans()["train"])
    pool, labelled = scenes.items("train", 200, 1), scenes.seed_items()
    assert all(t.scan in train for i in [*pool, *labelled] for t in i.things if t.scan >= 0)
    assert len({i.cluster for i in labelled}) == len(labelled) == scenes.SEED_LABELS
    assert [i.task for i in labelled].count("caption") == len(labelled) // 2
    # Pictures are functions of things, key and domain; two of a key would be one picture.
    assert not {i.key for i in labelled} & {i.key for i in pool}
    seen = {scenes.picture(i).tobytes() for i in labelled[:100]}
    assert len(seen | {scenes.picture(i).tobytes() for i in pool[:100]}) == 200


def test_pictures_show_each_object_in_its_cell_in_its_colour() -> None:
    """Of the three channels, those of the colour are the brightest where the ink is."""
    bright = {"red": {0}, "green": {1}, "blue": {2}, "yellow": {0, 1}}
    for item in scenes.items("train", 60, 4):
        pixels = np.asarray(scenes.picture(item), dtype=float)
        assert pixels.shape == (32, 32, 3)
        for place in range(4):
            top, left = 16 * np.array(divmod(place, 2))
            cell = pixels[top:top + 16, left:left + 16]
            ink = cell.max(axis=2) > np.median(cell) + 90
            thing = next((t for t in item.things if t.place == place), None)
            assert (ink.sum() > 4) == (thing is not None)
            if thing is not None:
                order = np.argsort(-cell[ink].mean(axis=0))
                wanted = bright[thing.colour]
                assert set(order[:len(wanted)].tolist()) == wanted


# -- questions and answers ------------------------------------------------------------------------

def answered(prompt: str, objects: list[list[str]]) -> str:
    """The answer, worked out again from the row's objects."""
    at = {tuple(place.split()): kind for _, kind, place in objects}
    colours = {kind: colour for colour, kind, _ in objects}
    words = prompt.split()
    if words[0] == "describe":
        return " and ".join(" ".join(["a", *thing]) for thing in objects)
    if words[:2] == ["is", "there"]:
        return "yes" if colours.get(words[4]) == words[3] else "no"
    if words[:2] == ["what", "colour"]:
        return colours[words[4]]
    if words[:2] == ["how", "many"]:
        fits = {"objects": lambda c, k: True, "digits": lambda c, k: k.isdigit(),
                "shapes": lambda c, k: not k.isdigit()}
        test = fits.get(words[2], lambda c, k: c == words[2])
        return str(sum(test(colour, kind) for kind, colour in colours.items()))
    row, column = next(place for place, kind in at.items() if kind == words[-2])
    seen = {"left": (row, "left"), "right": (row, "right"), "above": ("upper", column),
            "below": ("lower", column)}[words[2]]
    assert seen != (row, column)  # it never asks beyond the picture's edge
    return at.get(seen, "nothing")


def test_rows_are_right_and_their_prefix_does_not_depend_on_n() -> None:
    rows = scenes.rows("train", 280, 5)
    assert rows[:40] == scenes.rows("train", 40, 5) != scenes.rows("train", 40, 6)
    assert [row["task"] for row in rows[:7]] == list(scenes.TASKS)
    assert json.loads(json.dumps(rows)) == rows
    for row in [*rows, *scenes.rows("broken", 140, 5)]:
        assert row["answer"] == row["chain"] == answered(row["prompt"], row["objects"])
        assert row["prompt"] in row["related"] and len(row["related"]) >= 8
    beside = [row["answer"] for row in rows if row["task"] == "beside"]
    assert 0.2 < beside.count("nothing") / len(beside) < 0.8


@pytest.mark.parametrize("split", ["train", "test", "broken"])
@pytest.mark.parametrize("how", scenes.EXISTENCE)
def test_existence_questions_are_balanced_and_absent_in_the_way_they_say(
        split: Any, how: str) -> None:
    found = scenes.items(split, 200, 0, tasks=(how,))
    assert [i.answer for i in found].count("yes") == 100
    for item in (i for i in found if i.answer == "no"):
        asked = scenes.mentioned(item.prompt)[0]
        there = {t.kind: t.colour for t in item.things}
        assert there.get(asked.kind) != asked.colour
        if how == "popular":
            left = [pair for pair in common() if there.get(pair[1]) != pair[0]]
            assert (asked.colour, asked.kind) in left[:POPULAR]
        if how == "adversarial":
            usual = scenes.stereotype(asked.kind)
            assert asked.kind in there and (asked.colour == usual or there[asked.kind] == usual)


def test_bad_arguments_are_refused_by_name() -> None:
    for given, why in (
            ({"split": "val"}, "no split 'val'"), ({"n": -1}, "must not be negative"),
            ({"prior": 1.5}, "share from 0 to 1"), ({"tasks": ("sum",)}, "no task 'sum'"),
            ({"tasks": ()}, "tasks is empty")):
        with pytest.raises(ValueError, match=why):
            scenes.items(**{"split": "train", "n": 1, "seed": 0, **given})
    with pytest.raises(ValueError, match="no level 'near'"):
        chair("a 3", SCENE, "near")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="yes or no, not 'maybe'"):
        existence("yes", "maybe")
    with pytest.raises(ValueError, match="expected 'colour'"):
        stereotyped("red", scenes.rows("train", 1, 0)[0])


def test_write_gives_the_same_bytes_each_time_and_loads(tmp_path: Path) -> None:
    first, second = (scenes.write(tmp_path / name, "shifted", 14, 0) for name in "ab")
    assert first.read_bytes() == second.read_bytes() and first.name == "shifted.jsonl"
    for image in (tmp_path / "a" / "images").iterdir():
        assert image.read_bytes() == (tmp_path / "b" / "images" / image.name).read_bytes()
    loaded = load(first)
    assert len(loaded) == 14 and loaded.merged == 0
    for sample, row in zip(loaded, scenes.rows("shifted", 14, 0), strict=True):
        assert (sample.answer, sample.cluster) == (row["answer"], row["cluster"])
        assert scenes.caption(scenes.things_of(sample.meta["objects"])) == answered(
            scenes.DESCRIBE, row["objects"])


def test_every_word_is_known_and_no_answer_is_longer_than_it_says() -> None:
    tok = tiny_vlm.make_tokenizer(scenes.WORDS)
    for row in scenes.rows("train", 210, 0):
        for text in [row["prompt"], row["answer"], *row["related"]]:
            ids = tok.encode(text, add_special_tokens=False)
            assert tok.decode(ids) == text and tok.unk_token_id not in ids
        assert len(tok.encode(row["answer"], add_special_tokens=False)) < scenes.TOKENS


# -- measures -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "expected"), [
    ("", []), ("nothing to see", []), ("a red 3 upper left", [("red", "3", "upper left")]),
    ("a 3 and a CIRCLE", [(None, "3", None), (None, "circle", None)]),
    ("red circles", [("red", "circle", None)]), ("two crosses", [(None, "cross", None)]),
    ("10 or 3.", [(None, "3", None)]), ("the red and the 3", [(None, "3", None)]),
    ("a red 3 upper", [("red", "3", None)]), ("circled red squarely", []),
    ("a blue 7 lower  right and a blue 7", [("blue", "7", "lower right"), ("blue", "7", None)]),
])
def test_mentioned(text: str, expected: list[tuple[Any, ...]]) -> None:
    assert scenes.mentioned(text) == expected


def test_a_caption_is_read_back_as_it_was_written() -> None:
    for item in scenes.items("train", 50, 0):
        said = scenes.mentioned(scenes.caption(item.things))
        assert said == [(t.colour, t.kind, scenes.PLACES[t.place]) for t in item.things]
        assert chair(scenes.caption(item.things), item.things, "placed").invented == 0


@pytest.mark.parametrize(("text", "level", "counts"), [
    # (hallucinating, mentions, invented, found)
    ("a red 3 upper left and a blue circle lower right", "placed", (0, 2, 0, 2)),
    ("a red 3 and a red 8", "kind", (1, 2, 1, 1)),
    ("a green 3", "kind", (0, 1, 0, 1)), ("a green 3", "coloured", (1, 1, 1, 0)),
    ("a 3", "placed", (0, 1, 0, 1)), ("a red 3 lower left", "coloured", (0, 1, 0, 1)),
    ("a red 3 lower left", "placed", (1, 1, 1, 0)),
    ("a 3 and a 3 and a 3", "kind", (0, 3, 0, 1)), ("", "kind", (0, 0, 0, 0)),
    ("a cross and a cross and a square", "kind", (1, 3, 3, 0)),
    ("a red 3 and a green 3", "coloured", (1, 2, 1, 1)),
])
def test_chair_counts(text: str, level: Any, counts: tuple[int, ...]) -> None:
    found = chair(text, SCENE, level)
    assert (found.hallucinating, found.mentions, found.invented, found.found) == counts
    assert (found.captions, found.objects, found.words) == (1, 2, len(text.split()))


def test_tallies_pool_and_unknown_is_not_zero() -> None:
    one, two = chair("a red 3 and a red 8", SCENE), chair("", SCENE)
    pooled = one + two
    assert (pooled.chair_i, pooled.chair_s, pooled.recall) == (0.5, 0.5, 0.25)
    assert pooled.length == 3.5 and two.chair_i is None and two.recall == 0.0
    assert Chair().chair_s is Chair().length is Existence().accuracy is Existence().f1 is None
    assert isinstance(pooled, Chair) and pooled + Chair() == pooled


def test_existence_equals_sklearn() -> None:
    rng = np.random.default_rng(0)
    gold, said = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    tally = Existence()
    for g, s in zip(gold, said, strict=True):
        tally += existence(("No.", "Yes, it is")[s], ("no", "yes")[g])
    precision, recall, f1, _ = precision_recall_fscore_support(gold, said, average="binary")
    assert tally.accuracy == pytest.approx(accuracy_score(gold, said))
    assert (tally.precision, tally.recall, tally.f1) == pytest.approx((precision, recall, f1))
    assert tally.yes_rate == pytest.approx(said.mean()) and tally.asked == 200


@pytest.mark.parametrize("text", ["", "maybe", "yes and no", "nobody", "yesterday"])
def test_answers_that_cannot_be_read_are_wrong_and_no_guess(text: str) -> None:
    tally = existence(text, "yes") + existence(text, "no") + existence("yes", "yes")
    assert (tally.unread, tally.asked, tally.yes_rate) == (2, 3, pytest.approx(1 / 3))
    assert tally.accuracy == pytest.approx(1 / 3)
    assert (tally.precision, tally.recall) == (1.0, 0.5)


@pytest.mark.parametrize(("text", "gold", "counts"), [
    # (right, usual, unusual, misled); 3s are red
    ("red", "red", (1, 1, 0, 0)), ("red", "blue", (0, 1, 1, 1)), ("Blue ", "blue", (1, 0, 1, 0)),
    ("green", "blue", (0, 0, 1, 0)), ("", "red", (0, 0, 0, 0)),
])
def test_stereotyped_answers(text: str, gold: str, counts: tuple[int, ...]) -> None:
    row = {"id": "x", "task": "colour", "prompt": "what colour is the 3 ?", "answer": gold}
    found = stereotyped(text, row)
    assert (found.right, found.usual, found.unusual, found.misled) == counts


@pytest.mark.parametrize(("text", "counts"), [
    ("", (0, 0)), ("a red 3 and a 3", (1, 1)), ("a red 3 and a blue 3", (2, 1)),
    ("a blue circle and a yellow circle and red", (2, 1)),
])
def test_usual_colours_in_free_text(text: str, counts: tuple[int, int]) -> None:
    assert usual_named(text) == counts


# -- the shipped seed ------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, Any]]]:
    """(sample, answer) of the seed, with the picture and without it."""
    samples = load(scenes.write(tmp_path_factory.mktemp("scenes"), "test", 210, 0))
    engine = HFEngine(str(SEED), threads=1)
    return {arm: list(zip(samples, told(engine, samples, arm), strict=True))
            for arm in ("greedy", "no_image")}


def test_seed_is_what_the_testbed_is_for(asked: dict[str, list[tuple[Any, Any]]]) -> None:
    facts = json.loads((SEED / "seed.json").read_text())
    right = [a.right is True for _, a in asked["greedy"]]
    blind = [a.right is True for _, a in asked["no_image"]]
    # Three standard errors of 210 questions.
    assert abs(np.mean(right) - facts["test_accuracy"]) < 0.11
    assert np.mean(right) > np.mean(blind) + 0.1
    answers = [(s, a) for s, a in asked["greedy"] if s.meta["task"] in scenes.EXISTENCE]
    tally = sum((existence(a.text, s.answer) for s, a in answers), Existence())
    assert tally.unread == 0 and 0.6 < tally.accuracy < 0.97
    captions = [(s, a) for s, a in asked["greedy"] if s.meta["task"] == "caption"]
    counts = sum((chair(a.text, scenes.things_of(s.meta["objects"])) for s, a in captions),
                 Chair())
    assert 0.05 < counts.chair_i < 0.5 and counts.recall > 0.4


def test_seed_loads_with_plain_transformers_and_is_small() -> None:
    model = AutoModelForImageTextToText.from_pretrained(SEED)
    processor = AutoProcessor.from_pretrained(SEED)
    assert (SEED / "model.safetensors").stat().st_size < 7e6
    item = scenes.items("test", 2, 0)[1]
    text = processor.apply_chat_template([{"role": "user", "content": [
        {"type": "image"}, {"type": "text", "text": item.prompt}]}], add_generation_prompt=True)
    inputs = processor(images=[[scenes.picture(item)]], text=text, return_tensors="pt")
    out = model.generate(**inputs)[0, inputs["input_ids"].shape[1]:]
    assert processor.decode(out, skip_special_tokens=True) in ("yes", "no")


# -- runs ------------------------------------------------------------------------------------------

SMALL = {"n": 3, "max_new_tokens": scenes.TOKENS, "iterations": 2, "updates": 3, "batch": 8}


@pytest.mark.parametrize("recipe", [star, dpo], ids=["star", "dpo"])
def test_recipes_run_two_iterations(recipe: Any, tmp_path: Path) -> None:
    train = load(scenes.write(tmp_path / "pool", "train", 28, 1))
    dev = load(scenes.write(tmp_path / "dev", "dev", 14, 1))
    done = run(recipe(exact, **SMALL), train, HFEngine(str(SEED), threads=1), tmp_path / "run",
               dev=dev)
    assert [i.index for i in done] == [0, 1] and done[-1].version == 2
    assert all(i.tokens["learn_trained"] > 0 and i.labels_full == 0 for i in done)
    assert {"greedy", "no_image"} <= done[-1].dev.keys()


@pytest.mark.slow
def test_a_prior_of_one_is_learned_as_a_shortcut_and_the_gate_sees_it(tmp_path: Path) -> None:
    made = dialled_run(tmp_path, prior=1.0)
    assert "Blind" in made.guards and made.iterations[0].decision.action == "roll back"
    assert made.accuracy("no_image", 0) > made.accuracy("no_image", "seed") + 0.2


@pytest.mark.slow
def test_without_a_prior_the_same_run_keeps_looking(tmp_path: Path) -> None:
    made = dialled_run(tmp_path, prior=scenes.CHANCE)
    assert "Blind" not in made.guards
    assert made.accuracy("greedy", 0) >= made.accuracy("greedy", "seed") - 0.03


@pytest.mark.slow
def test_a_prior_of_one_makes_unusual_colours_be_called_usual(tmp_path: Path) -> None:
    """Asked about scenes that break the prior, before and after training on prior=1."""
    broken = scenes.write(tmp_path / "broken", "broken", 200, 1, tasks=("colour",))
    samples = load(broken)

    def misled(engine: HFEngine) -> float:
        return np.mean([a.text == scenes.stereotype(scenes.mentioned(s.context.text)[0].kind)
                        for s, a in zip(samples, told(engine, samples), strict=True)])

    before = misled(HFEngine(str(SEED), threads=1))
    made = dialled_run(tmp_path, prior=1.0, loop=replace(hard_star(), gate=None))
    assert misled(made.engine) > before + 0.4
