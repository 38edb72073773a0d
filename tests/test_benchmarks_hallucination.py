"""POPE, CHAIR, AMBER and HallusionBench: published layouts, marking rules, figures."""

from __future__ import annotations

import base64
import io
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from selfloop.data import load
from selfloop.evaluate.answers import Answer
from selfloop.evaluate.benchmark import words
from selfloop.evaluate.benchmarks import benchmark, yes_no
from selfloop.evaluate.objects import Lexicon, coco, coco_names, singular_forms
from selfloop.evaluate.scoring import How, mark, score
from selfloop.roles import SelfloopError

HOW = How("", "", "", "", "", "")


def picture(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (shade % 256, 40, 90)).save(path, "PNG")
    return path


def encoded(shade: int) -> str:
    held = io.BytesIO()
    Image.new("RGB", (16, 16), (shade % 256, 40, 90)).save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()


def samples_of(name, path, root=None, split=None):
    found = list(load(benchmark(name).rows(path, split), root=root))
    return {s.id: s for s in found}


def reached(name, samples, texts, rules="selfloop"):
    """The Score of these greedy answers, in the samples' order."""
    drawn = [Answer(sample=s.id, cluster=s.cluster, text=t, arm="greedy", tokens=3)
             for s, t in zip(samples.values(), texts, strict=True)]
    marked, errors = mark(benchmark(name).way(rules), samples, drawn)
    assert not errors
    return score(benchmark(name), samples, marked, HOW)


def values(found):
    return {name: figure.value for name, figure in found.figures.items()}


# -- yes or no ----------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "own", "tool", "exact", "loose"), [
    ("Yes", "yes", "yes", "yes", "yes"),
    ("No", "no", "no", "no", "no"),
    ("yes.", "yes", "yes", None, "yes"),
    ("No, there is none.", "no", "no", None, "no"),
    ("**Yes**", "yes", None, None, "yes"),
    ("yes,no", None, None, None, "yes"),
    ("yes,there", "yes", "yes", None, "yes"),
    ("Well,no , thanks", "no", None, None, "no"),
    ("Yes: it is", "yes", None, None, "yes"),
    ("There is nothing.", None, None, None, "no"),
    ("Hmm.\nAnswer: no", "no", "no", None, "no"),
    ("Yes at first, but the answer is no", "no", None, None, "yes"),
    ("I have no idea.", None, "no", None, "no"),
    ("Yes\n\nThe dog is on the left.", "yes", "yes", None, "yes"),
    ("", None, None, None, None),
])
def test_yes_or_no_by_four_rules(text, own, tool, exact, loose):
    assert (yes_no.in_final_answer(text), yes_no.among_words(text), yes_no.exactly(text),
            yes_no.anywhere(text)) == (own, tool, exact, loose)


# -- objects in captions ------------------------------------------------------------------------

def test_coco_has_its_eighty_categories():
    assert len(coco_names()) == 80 and {"tv", "hair drier", "sports ball"} <= coco_names()
    for name in coco_names():
        assert coco().mentions(f"a picture of two {name} there") == [name] or name in (
            "orange", "remote"), name


@pytest.mark.parametrize(("text", "named"), [
    ("Two men ride mountain bikes past a fire engine.", ["person", "bicycle", "truck"]),
    ("knives, wolves, buses and skis", ["knife", "bus", "skis"]),
    ("A baby elephant, a passenger train; a baby.", ["elephant", "train", "person"]),
    ("hot dogs for the dogs", ["hot dog", "dog"]),
    ("a teddy-bear on a toilet seat", ["teddy bear", "toilet"]),
    ("a train station with a bus stop and a street light", []),
    ("an orange cat and an orange on a plate, oranges too", ["cat", "orange", "orange"]),
    ("the cat's bowl in a remote area", ["cat", "bowl"]),
    ("a couple of dogs", ["dog"]),
    ("a hot. dog", ["dog"]),
    ("glasses of wine, a wine glass, wineglasses", ["wine glass", "wine glass"]),
    ("The category of scatter plots", []),
    ("", []),
])
def test_objects_are_found(text, named):
    assert coco().mentions(text) == named


@pytest.mark.parametrize(("plural", "one"), [
    ("dogs", "dog"), ("people", "person"), ("firemen", "fireman"), ("knives", "knife"),
    ("calves", "calf"), ("ponies", "pony"), ("couches", "couch"), ("geese", "goose"),
    ("horses", "horse"), ("sandwiches", "sandwich"), ("buses", "bus"), ("scarves", "scarf")])
def test_plurals(plural, one):
    assert one in singular_forms(plural)


def test_words_that_end_in_s_are_not_cut():
    assert singular_forms("bus") == ["bus"] and singular_forms("grass") == ["grass"]


def test_a_list_written_as_it_is_not_looked_up_is_refused():
    with pytest.raises(SelfloopError, match=r"'Fire-truck'.*'fire truck'"):
        Lexicon({"Fire-truck": "truck"})


# -- CHAIR --------------------------------------------------------------------------------------

def coco_files(folder: Path) -> Path:
    """COCO's annotation layout with three pictures."""
    names = {1: "person", 18: "dog", 44: "bottle", 62: "chair"}
    inside = {9: [1, 18, 18], 25: [62], 30: []}
    for i in inside:
        picture(folder / "val2014" / f"COCO_val2014_{i:012d}.jpg", 3 * i)
    instances = {
        "info": {}, "licenses": [],
        "images": [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg", "width": 16, "height": 16}
                   for i in inside],
        "annotations": [{"id": 100 * i + n, "image_id": i, "category_id": c, "iscrowd": 0,
                         "bbox": [1, 1, 5, 5], "area": 25, "segmentation": []}
                        for i, cats in inside.items() for n, c in enumerate(cats)],
        "categories": [{"id": c, "name": n, "supercategory": "x"} for c, n in names.items()]}
    captions = {"images": instances["images"], "annotations": [
        {"id": 1, "image_id": 9, "caption": "A man throws a frisbee to his dogs."},
        {"id": 2, "image_id": 25, "caption": "An empty room."}]}
    place = folder / "annotations"
    place.mkdir()
    (place / "instances_val2014.json").write_text(json.dumps(instances))
    (place / "captions_val2014.json").write_text(json.dumps(captions))
    return place


def test_chair_reads_cocos_files(tmp_path):
    place = coco_files(tmp_path)
    for path in (place, place / "instances_val2014.json"):
        samples = samples_of("chair", path, tmp_path / "val2014")
        assert [s.answer for s in samples.values()] == [["dog", "frisbee", "person"], ["chair"], []]
    one = next(iter(samples.values()))
    assert words(one) == "Please describe this image in detail." and len(one.media) == 1
    assert one.cluster == "COCO_val2014_000000000009.jpg"


def test_chair_by_hand(tmp_path):
    samples = samples_of("chair", coco_files(tmp_path), tmp_path / "val2014")
    texts = ["A woman and two dogs near a bench. The dogs play.",  # person dog bench dog
             "A chair and a chair at a table",  # chair chair dining table
             "Nothing to see"]
    found = values(reached("chair", samples, texts))
    assert found == {"chair_i": pytest.approx(2 / 7), "chair_s": pytest.approx(2 / 3),
                     "recall": pytest.approx(3 / 4), "mean_length": pytest.approx(22 / 3)}
    quiet = values(reached("chair", samples, ["A dog", "", ""]))
    assert quiet["chair_i"] == 0 and quiet["recall"] == 0.25, "saying less: recall tells"


def test_chair_equals_its_definition_on_random_captions(tmp_path):
    draw = random.Random(3)
    names = sorted(coco_names() - {"orange", "remote"})
    rows, texts, gold, said = [], [], [], []
    for i in range(40):
        there, named = draw.sample(names, 4), draw.choices(names, k=draw.randrange(6))
        picture(tmp_path / f"{i}.png", i)
        rows.append({"image": f"{i}.png", "objects": json.dumps(there)})
        texts.append(". ".join(f"there is a {n}" for n in named))
        gold.append(set(there))
        said.append(named)
    (tmp_path / "set.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    found = values(reached("chair", samples_of("chair", tmp_path / "set.jsonl"), texts))
    wrong = [[n for n in s if n not in g] for s, g in zip(said, gold, strict=True)]
    assert found["chair_i"] == pytest.approx(sum(map(len, wrong)) / sum(map(len, said)))
    assert found["chair_s"] == pytest.approx(sum(map(bool, wrong)) / 40)
    assert found["recall"] == pytest.approx(
        sum(len(g & set(s)) for s, g in zip(said, gold, strict=True)) / 160)


def test_chair_takes_the_tools_table(tmp_path):
    rows = [{"image": encoded(9), "question_id": 7, "gt_object": ["tv", "sofa"]}]
    (tmp_path / "chair.jsonl").write_text(json.dumps(rows[0]))
    samples = samples_of("chair", tmp_path / "chair.jsonl")
    assert next(iter(samples.values())).answer == ["couch", "tv"]
    assert benchmark("chair").way("lmms-eval").max_new_tokens == 2048


@pytest.mark.parametrize(("row", "says"), [
    ({"image": "0.png"}, "objects.*missing"),
    ({"objects": ["dog"]}, "image.*missing"),
    ({"image": "0.png", "objects": "dog"}, "expected JSON text"),
    ({"image": "0.png", "objects": ["unicorn"]}, "'unicorn' is none of COCO's 80"),
    ({"image": "0.png", "objects": 3}, "a int"),
])
def test_chair_names_a_broken_row(tmp_path, row, says):
    picture(tmp_path / "0.png", 1)
    (tmp_path / "set.jsonl").write_text(json.dumps(row))
    with pytest.raises(SelfloopError, match=f"row 1.*{says}") as error:
        samples_of("chair", tmp_path / "set.jsonl")
    assert "\n" not in str(error.value)


def test_chair_names_missing_and_doubtful_files(tmp_path):
    place = coco_files(tmp_path)
    (place / "captions_val2014.json").unlink()
    with pytest.raises(SelfloopError, match=r"captions_val2014.json: missing"):
        samples_of("chair", place, tmp_path / "val2014")
    (place / "instances_train2014.json").write_text("{}")
    with pytest.raises(SelfloopError, match="name one of the files, or its split"):
        samples_of("chair", place, tmp_path / "val2014")
    (place / "captions_train2014.json").write_text('{"annotations": []}')
    with pytest.raises(SelfloopError, match="not a COCO annotation file"):
        samples_of("chair", place, split="train2014")


# -- AMBER --------------------------------------------------------------------------------------

QUERIES = [(1, 1, "Describe this image."), (2, 2, "Describe this image."),
           (1005, 1, "Is the sky sunny in this image?"),
           (1006, 1, "Is there a dog in this image?"),
           (1007, 2, "Are there two ships in this image?"),
           (1008, 2, "Is there direct contact between the man and the ship?")]
ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["sky", "forest", "person"], "hallu": ["sun", "dog"]},
    {"id": 2, "type": "generative", "truth": ["man", "ship", "ship"],
     "hallu": ["bird", "woman"]},
    {"id": 1005, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 1006, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 1007, "type": "discriminative-attribute-number", "truth": "yes"},
    {"id": 1008, "type": "relation", "truth": "no"}]
RELATION = {"sky": [], "forest": ["tree", "bush"], "person": ["people", "man", "woman"],
            "sun": [], "dog": [], "man": ["person", "people"], "woman": ["person"],
            "ship": ["boat", "vessel"], "bird": ["bill"], "television": ["TV", "screen"],
            "can": [], "light": [], "sign": []}


def amber_files(folder: Path, queries=QUERIES) -> Path:
    """The authors' data folder."""
    for i in (1, 2):
        picture(folder / "image" / f"AMBER_{i}.jpg", 60 * i)
    data = folder / "data"
    (data / "query").mkdir(parents=True)
    asked = [{"id": i, "image": f"AMBER_{p}.jpg", "query": q} for i, p, q in queries]
    (data / "query" / "query_all.json").write_text(json.dumps(asked, indent=4))
    (data / "query" / "query_generative.json").write_text(json.dumps(asked[:2], indent=4))
    (data / "annotations.json").write_text(json.dumps(ANNOTATIONS, indent=4))
    (data / "relation.json").write_text(json.dumps(RELATION, indent=4))
    (data / "safe_words.txt").write_text("light\nsign")
    return data


def test_amber_reads_the_authors_folder(tmp_path):
    data = amber_files(tmp_path)
    samples = list(samples_of("amber", data, tmp_path / "image").values())
    assert [s.meta["task"] for s in samples] == ["generative", "generative", "attribute",
                                                 "existence", "attribute", "relation"]
    assert samples[0].answer == {"truth": ["sky", "forest", "person"], "hallu": ["sun", "dog"]}
    assert samples[0].cluster == samples[3].cluster == "AMBER_1.jpg"
    for path, split in ((data, "generative"), (data / "query" / "query_generative.json", None)):
        assert len(samples_of("amber", path, tmp_path / "image", split)) == 2


def test_amber_by_hand(tmp_path):
    samples = samples_of("amber", amber_files(tmp_path), tmp_path / "image")
    texts = ["The sky can shine on trees, a dog and a TV under a light.",  # sky tree dog! TV! light
             "A person on two boats.", "Yes.", "Yes", "no", "No"]
    found = values(reached("amber", samples, texts))
    assert found["chair"] == pytest.approx(2 / 7) and found["hal"] == 0.5
    assert found["cover"] == pytest.approx((2 + 2) / 6), "the second ship is not named twice"
    assert found["cog"] == 1 / 4, "the person is the man and no imagined woman"
    assert found["accuracy"] == 0.5
    assert (found["precision"], found["recall"], found["f1"]) == (0.5, 0.5, 0.5)
    assert found["amber"] == pytest.approx((1 - 2 / 7 + 0.5) / 2)
    assert found["mean_accuracy"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert found["right"] == pytest.approx(3 / 6)
    assert set(reached("amber", samples, texts).by["task"]) == {
        "generative", "attribute", "existence", "relation"}


def test_amber_f1_is_that_of_no(tmp_path):
    """Against the authors' counts: precision over answered no, recall over gold no."""
    draw = random.Random(0)
    queries = [*QUERIES[:2], *((1005 + i, 1 + i % 2, f"Is it {i}?") for i in range(60))]
    data = amber_files(tmp_path, queries)
    gold = [draw.choice(["yes", "no"]) for _ in range(60)]
    (data / "annotations.json").write_text(json.dumps([*ANNOTATIONS[:2], *(
        {"id": 1005 + i, "type": "discriminative-hallucination", "truth": g}
        for i, g in enumerate(gold))]))
    samples = samples_of("amber", data, tmp_path / "image")
    said = [draw.choice(["Yes", "No", "maybe"]) for _ in gold]
    found = values(reached("amber", samples, ["", "", *said], "authors"))
    pairs = list(zip(gold, said, strict=True))
    right_no = sum(g == "no" and s == "No" for g, s in pairs)
    precision = right_no / sum(s == "No" for _, s in pairs)
    recall = right_no / sum(g == "no" for g, _ in pairs)
    assert found["precision"] == pytest.approx(precision)
    assert found["recall"] == pytest.approx(recall)
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["accuracy"] == pytest.approx(
        sum(s.lower() == g for s, g in zip(said, gold, strict=True)) / 60)


def test_amber_ways_differ_where_the_tools_do(tmp_path):
    samples = list(samples_of("amber", amber_files(tmp_path), tmp_path / "image").values())
    caption, question = samples[0], samples[3]
    got = {rules: [benchmark("amber").way(rules).mark(t, question).score
                   for t in ("No", "no.", "I know", "perhaps")]
           for rules in ("selfloop", "authors", "lmms-eval", "vlmevalkit")}
    assert got == {"selfloop": [1, 1, 0, 0], "authors": [1, 0, 0, 0], "lmms-eval": [1, 1, 1, 0],
                   "vlmevalkit": [1, 1, None, None]}
    asked = {rules: (benchmark("amber").way(rules).ask(caption).text,
                     benchmark("amber").way(rules).ask(question).text) for rules in got}
    assert asked["lmms-eval"] == ("Describe this image", "Is there a dog in this image?")
    assert asked["vlmevalkit"][1].endswith("image?\nPlease answer yes or no.")
    assert asked["authors"][0] == "Describe this image."


def test_amber_takes_the_tools_table_and_the_captions_half(tmp_path):
    lines = ["index\timage\timage_path\tquestion\tanswer\tcategory",
             f"1\t{encoded(5)}\tAMBER_1.jpg\tIs it red?\tyes\tdiscriminative-attribute-state",
             "2\t1\tAMBER_1.jpg\tIs there a cat?\tno\tdiscriminative-hallucination"]
    (tmp_path / "AMBER.tsv").write_text("\n".join(lines) + "\n")
    samples = list(samples_of("amber", tmp_path / "AMBER.tsv").values())
    assert [s.meta["task"] for s in samples] == ["attribute", "existence"]
    assert samples[0].media[0].sha256 == samples[1].media[0].sha256
    assert samples[0].cluster == "AMBER_1.jpg"
    hub = {"image": encoded(6), "question_id": 1, "task_type": "generative",
           "truth": ["sky"], "hallu": ["sun"]}
    (tmp_path / "hub.jsonl").write_text(json.dumps(hub))
    with pytest.raises(SelfloopError, match=r"relation.json was not found"):
        samples_of("amber", tmp_path / "hub.jsonl")
    (tmp_path / "relation.json").write_text(json.dumps(RELATION))
    assert next(iter(samples_of("amber", tmp_path / "hub.jsonl").values())).meta["task"] == \
        "generative"


@pytest.mark.parametrize(("change", "says"), [
    ({"type": "discriminative-smell"}, "row 3: field 'type'.*discriminative-smell"),
    ({"truth": "perhaps"}, "row 3: field 'truth'.*expected \"yes\" or \"no\""),
    ({"id": 7}, "row 3: field 'id'.*1005 is not among the annotations"),
])
def test_amber_names_a_broken_row(tmp_path, change, says):
    data = amber_files(tmp_path)
    annotations = [dict(a) for a in ANNOTATIONS]
    annotations[2] |= change
    (data / "annotations.json").write_text(json.dumps(annotations))
    with pytest.raises(SelfloopError, match=says) as error:
        samples_of("amber", data, tmp_path / "image")
    assert "\n" not in str(error.value)


def test_amber_names_a_missing_file(tmp_path):
    data = amber_files(tmp_path)
    (data / "relation.json").unlink()
    with pytest.raises(SelfloopError, match=r"relation.json is missing"):
        samples_of("amber", data, tmp_path / "image")
    with pytest.raises(SelfloopError, match=r"no query_nonsense.json"):
        samples_of("amber", data, split="nonsense")


# -- HallusionBench -----------------------------------------------------------------------------

def hallusion_rows(folder: Path) -> list[dict]:
    """One VD set (two pictures, two questions) and one VS set (no picture, then one)."""
    rows = []
    for figure in ("0", "1"):
        for question, gold in (("0", "1" if figure == "0" else "0"), ("1", "0")):
            name = f"./hallusion_bench/VD/illusion/4_{figure}.png"
            picture(folder / name, 50 + int(figure))
            rows.append({"category": "VD", "subcategory": "illusion", "visual_input": "1",
                         "set_id": "4", "figure_id": figure, "sample_note": "circle",
                         "question_id": question, "question": f"Is it circle {question}?",
                         "gt_answer_details": "It is.", "gt_answer": gold, "filename": name})
    for figure in ("0", "1"):
        row = {"category": "VS", "subcategory": "chart", "visual_input": figure, "set_id": "4",
               "figure_id": figure, "sample_note": "export", "question_id": "0",
               "question": "Did they export most?", "gt_answer_details": "no", "gt_answer": "0"}
        name = "./hallusion_bench/VS/chart/4_1.png"
        picture(folder / name, 99)
        rows.append(row if figure == "0" else {**row, "filename": name})
    return rows


def hallusion(folder: Path, rows=None):
    (folder / "HallusionBench.json").write_text(json.dumps(rows or hallusion_rows(folder)))
    return samples_of("hallusionbench", folder / "HallusionBench.json", folder)


def test_hallusionbench_reads_the_authors_file(tmp_path):
    samples = list(hallusion(tmp_path).values())
    assert [s.answer for s in samples] == ["yes", "no", "no", "no", "no", "no"]
    assert [len(s.media) for s in samples] == [1, 1, 1, 1, 0, 1]
    assert {s.cluster for s in samples} == {"VD/illusion/4", "VS/chart/4"}


def test_hallusionbench_by_hand(tmp_path):
    samples = hallusion(tmp_path)
    # VD: figure 0 both right; figure 1 one wrong. VS: unsure without a picture; right with one.
    found = values(reached("hallusionbench", samples, [
        "Yes", "No.", "yes", "no", "I cannot tell: no chart is given.", "No"]))
    assert found["aAcc"] == pytest.approx(5 / 6)
    assert found["fAcc"] == pytest.approx(2 / 3), "the question without a picture has no figure"
    assert found["qAcc"] == pytest.approx(2 / 3), "question 0 is wrong on the changed picture"
    assert found["easy"] == 1 and found["hard"] == pytest.approx(2 / 3)
    assert found["overall"] == pytest.approx((5 / 6 + 2 / 3 + 2 / 3) / 3)


def hallusion_as_published(rows, correct):
    """The authors' grouping, written out: rows and whether each was right."""
    def groups(kept, *names):
        found: dict[tuple, list[bool]] = {}
        for row, right in kept:
            key = tuple(row[n] for n in ("category", "subcategory", "set_id", *names))
            found.setdefault(key, []).append(right)
        return sum(all(g) for g in found.values()) / len(found)

    both = list(zip(rows, correct, strict=True))
    seen = [(r, c) for r, c in both if not (r["category"] == "VS" and r["figure_id"] == "0")]
    return {"aAcc": sum(correct) / len(correct), "fAcc": groups(seen, "figure_id"),
            "qAcc": groups(both, "question_id"),
            "easy": groups([(r, c) for r, c in both if r["figure_id"] == "0"], "question_id"),
            "hard": groups([(r, c) for r, c in both if r["figure_id"] != "0"], "question_id")}


def test_hallusionbench_equals_the_authors_grouping(tmp_path):
    draw, rows = random.Random(1), []
    for category, sub in (("VD", "illusion"), ("VD", "ocr"), ("VS", "ocr"), ("VS", "map")):
        for s, f, q in ((s, f, q) for s in range(5) for f in range(3) for q in range(2)):
            name = f"./hallusion_bench/{category}/{sub}/{s}_{f}.png"
            picture(tmp_path / name, len(rows))
            bare = category == "VS" and f == 0
            rows.append({"category": category, "subcategory": sub,
                         "visual_input": "0" if bare else "1", "set_id": str(s),
                         "figure_id": str(f), "question_id": str(q),
                         "question": f"{sub} set {s}, question {q}?",
                         "gt_answer": draw.choice("01"), "filename": None if bare else name})
    samples = hallusion(tmp_path, rows)
    assert len(samples) == len(rows)
    correct = [draw.random() < 0.8 for _ in rows]
    texts = ["yes" if (s.answer == "yes") == c else "no"
             for s, c in zip(samples.values(), correct, strict=True)]
    found = values(reached("hallusionbench", samples, texts))
    assert {k: found[k] for k in ("aAcc", "fAcc", "qAcc", "easy", "hard")} == pytest.approx(
        hallusion_as_published(rows, correct))


def test_hallusionbench_ways(tmp_path):
    samples = list(hallusion(tmp_path).values())
    pictured, bare = samples[1], samples[4]
    texts = ["No", "**No**", "They are equal.", "Yes and no", "I am not sure."]
    got = {rules: [[benchmark("hallusionbench").way(rules).mark(t, s).score for t in texts]
                   for s in (pictured, bare)]
           for rules in ("selfloop", "lmms-eval", "vlmevalkit")}
    assert got["selfloop"] == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 1]]
    assert got["lmms-eval"] == [[1, 1, None, None, None]] * 2
    assert got["vlmevalkit"] == [[1, None, None, None, None]] * 2
    ask = benchmark("hallusionbench").way("vlmevalkit").ask
    assert ask(pictured).text == "Is it circle 1?"


def test_a_group_with_an_unjudged_answer_is_left_out_unless_another_is_wrong(tmp_path):
    samples = hallusion(tmp_path)
    found = reached("hallusionbench", samples,
                    ["Yes", "Hm", "Yes", "Hm", "No", "No"], "vlmevalkit")
    assert found.unjudged == 2
    assert (found.figures["aAcc"].n, found.figures["fAcc"].n, found.figures["qAcc"].n) == (4, 2, 2)
    assert found.figures["fAcc"].value == 0.5 and found.figures["qAcc"].value == 0.5


def test_hallusionbench_takes_the_tools_table(tmp_path):
    lines = ["index\timage\tquestion\tanswer\tcategory\tl2-category",
             f"VD_illusion_1_4_0_0\t{encoded(1)}\tIs it?\tYes\tVD\tillusion",
             "VD_illusion_1_4_0_1\tVD_illusion_1_4_0_0\tIs it not?\tNo\tVD\tillusion"]
    path = tmp_path / "HallusionBench.tsv"
    path.write_text("\n".join(lines) + "\n")
    samples = list(samples_of("hallusionbench", path).values())
    assert [(s.answer, s.cluster, s.meta["question_id"]) for s in samples] == [
        ("yes", "VD/illusion/4", "0"), ("no", "VD/illusion/4", "1")]
    assert samples[0].media[0].sha256 == samples[1].media[0].sha256
    path.write_text("\n".join([lines[0], lines[1].replace("VD_illusion_1_4_0_0", "12")]) + "\n")
    with pytest.raises(SelfloopError, match=r"row 1: field 'index'.*VD_illusion_1_0_0_2"):
        samples_of("hallusionbench", path)


@pytest.mark.parametrize(("change", "says"), [
    ({"gt_answer": "2"}, "field 'gt_answer': '2'; expected 1 or 0"),
    ({"category": "VX"}, "field 'category': 'VX'; expected VD or VS"),
    ({"set_id": None}, "field 'set_id': missing"),
    ({"filename": None}, "field 'filename': missing, though"),
])
def test_hallusionbench_names_a_broken_row(tmp_path, change, says):
    rows = hallusion_rows(tmp_path)
    rows[2] |= change
    with pytest.raises(SelfloopError, match=f"row 3.*{says}") as error:
        hallusion(tmp_path, rows)
    assert "\n" not in str(error.value)


# -- POPE ---------------------------------------------------------------------------------------

@pytest.fixture
def real_pope(tmp_path):
    """The published random split, with a small picture for each of its 500 names."""
    shared = os.environ.get("SELFLOOP_SHARED_DATA")
    path = Path(shared or "nowhere") / "pope" / "coco_pope_random.json"
    if not shared or not path.is_file():
        pytest.skip("SELFLOOP_SHARED_DATA does not hold pope/coco_pope_random.json")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, name in enumerate(sorted({r["image"] for r in rows})):
        Image.new("RGB", (8, 8), (i % 256, i // 256, 7)).save(tmp_path / name, "PNG")
    return rows, samples_of("pope", path, tmp_path)


def pope_as_published(gold, said):
    """AoiDragon/POPE, evaluate.py: counts of yes as the positive answer."""
    tp = sum(g == s == "yes" for g, s in zip(gold, said, strict=True))
    fp = sum(g == "no" and s == "yes" for g, s in zip(gold, said, strict=True))
    tn = sum(g == s == "no" for g, s in zip(gold, said, strict=True))
    fn = sum(g == "yes" and s == "no" for g, s in zip(gold, said, strict=True))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {"precision": precision, "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
            "accuracy": (tp + tn) / (tp + fp + tn + fn), "yes_rate": (tp + fp) / len(gold)}


def test_the_published_pope_file(real_pope):
    rows, samples = real_pope
    assert len(samples) == 3000 and sum(s.answer == "yes" for s in samples.values()) == 1500
    assert len({s.cluster for s in samples.values()}) == 500
    assert {s.meta["task"] for s in samples.values()} == {"random"}
    assert [words(s) for s in samples.values()] == [r["text"] for r in rows]
    draw = random.Random(5)
    texts = [draw.choice(["Yes, there is one.", "No.", "no", "There is not one", "Yes", "A dog."])
             for _ in rows]
    found = values(reached("pope", samples, texts, "authors"))
    said = ["no" if {"No", "not", "no"} & set(t.split(".")[0].replace(",", "").split(" "))
            else "yes" for t in texts]
    want = pope_as_published([r["label"] for r in rows], said)
    assert {k: found[k] for k in want} == pytest.approx(want)


def test_pope_unparsed_answers_are_wrong_and_no_yes(tmp_path):
    picture(tmp_path / "a.jpg", 1)
    rows = [{"question_id": i, "image": "a.jpg", "text": f"Is there a thing {i}?",
             "label": "yes" if i % 2 else "no"} for i in range(6)]
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    samples = samples_of("pope", tmp_path / "coco_pope_random.json")
    found = values(reached("pope", samples, ["no", "yes", "a dog", "a dog", "yes", "no"]))
    assert found["accuracy"] == pytest.approx(2 / 6)
    assert found["unparsed"] == pytest.approx(2 / 6)
    assert found["precision"] == 0.5 and found["recall"] == pytest.approx(1 / 3)


# -- all of them --------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["amber", "chair", "hallusionbench", "pope"])
def test_every_way_says_what_it_is(name):
    found = benchmark(name)
    assert found.name == name and "arXiv" in found.source and found.layout
    for way in found.ways.values():
        assert way.extractor and way.fallback and way.judge and way.max_new_tokens > 0
    with pytest.raises(SelfloopError, match="no rules as"):
        found.way("nobody")


def test_marking_again_gives_the_same_figures(tmp_path):
    samples = hallusion(tmp_path)
    texts = ["Yes", "no", "no", "no", "no", "no"]
    drawn = [Answer(sample=s.id, cluster=s.cluster, text=t, arm="greedy")
             for s, t in zip(samples.values(), texts, strict=True)]
    way = benchmark("hallusionbench").way()
    once, _ = mark(way, samples, drawn)
    twice, _ = mark(way, samples, once)
    assert once == twice

    def broken(text, sample):
        raise ValueError("cannot read this")

    failed, errors = mark(replace(way, mark=broken), samples, drawn)
    assert len(errors) == 6
    assert score(benchmark("hallusionbench"), samples, failed, HOW).figures == {}
