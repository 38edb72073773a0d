"""From pictures and labels to a run: nothing leaks, nothing is lost without a word."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import yaml
from PIL import Image

from selfloop.answer_types import infer
from selfloop.data import load
from selfloop.initialize import prepare, smallest_gain, write_run_yaml
from selfloop.pictures import near_duplicates, perceptual_hash
from selfloop.roles import SelfloopError
from selfloop.splitting import joined, split_groups

RULES = "selfloop.organize.verify.rules:"


def picture(seed):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize((40, 40), Image.Resampling.BICUBIC)


@pytest.fixture
def clinic(tmp_path):
    """40 labelled pictures, each with a near copy that is labelled, too; 6 are unlabelled."""
    folder = tmp_path / "scans"
    folder.mkdir()
    rows = []
    for i in range(40):
        picture(i).save(folder / f"{i:02d}a.png")
        picture(i).save(folder / f"{i:02d}b.jpg", quality=80)
        label = ("normal", "fracture", "unsure")[min(i % 4, 2)]
        rows += [{"file": f"{i:02d}a.png", "label": label},
                 {"file": f"{i:02d}b.jpg", "label": label}]
    for i in range(100, 106):
        picture(i).save(folder / f"{i}.png")
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def prepared(clinic, **options):
    return prepare(clinic / "scans", clinic / "labels.jsonl", task="What does the scan show?",
                   out=clinic / "out", **options)


def test_everything_is_prepared(clinic):
    found = prepared(clinic)
    assert found.answers.kind == "class" and found.verifier == RULES + "exact"
    assert found.answers.classes == ("fracture", "normal", "unsure")
    assert sum(found.counts[s] for s in ("train", "dev", "test")) == 86
    assert found.counts["unlabelled"] == 6 and found.clusters == 46 and not found.bad
    dev = load(found.dev)
    assert len(dev) == found.counts["dev"] and all(s.answer for s in dev)
    assert dev[0].context.text == ("What does the scan show?\n"
                                   "Answer with one of: fracture, normal, unsure.")
    assert "46 groups of look-alikes" in found.summary()


def test_look_alikes_never_cross_the_split(clinic):
    found = prepared(clinic)
    where = {}
    for path in (found.train, found.dev, found.test):
        for sample in load(path):
            number = sample.media[0].meta["uri"].rsplit("/", 1)[1][:2]
            where.setdefault((number, sample.answer is None), set()).add(path.stem)
            where.setdefault(sample.cluster, set()).add(path.stem)
    assert all(len(sets) == 1 for sets in where.values())


def test_the_split_is_balanced_and_follows_the_seed(clinic):
    found = prepared(clinic)
    for path, share in ((found.train, 0.7), (found.dev, 0.15), (found.test, 0.15)):
        labels = Counter(s.answer for s in load(path) if s.answer)
        assert abs(labels.total() - 80 * share) <= 4
        assert set(labels) == {"normal", "fracture", "unsure"}
    before = load(found.dev).fingerprint()
    assert load(prepared(clinic).dev).fingerprint() == before
    assert load(prepared(clinic, seed=1).dev).fingerprint() != before


def test_bad_files_and_rows_are_named_and_left_out(clinic):
    whole = (clinic / "scans" / "03b.jpg").read_bytes()
    (clinic / "scans" / "03b.jpg").write_bytes(whole[: len(whole) // 2])
    (clinic / "scans" / "04a.png").write_text("no picture")
    with open(clinic / "labels.jsonl", "a") as file:
        file.write(json.dumps({"file": "gone.png", "label": "normal"}) + "\n")
    found = prepared(clinic)
    assert len(found.bad) == 3
    for name in ("03b.jpg", "04a.png", "gone.png"):
        assert sum(name in str(problem) for problem in found.bad) == 1
        assert name in found.summary()
    assert sum(found.counts[s] for s in ("train", "dev", "test")) == 84


def test_unlabelled_look_alikes_of_dev_pictures_are_kept_out(clinic):
    rows = (clinic / "labels.jsonl").read_text().splitlines()
    (clinic / "labels.jsonl").write_text("\n".join(rows[::2]) + "\n")  # the near copies: no label
    found = prepared(clinic)
    measured = found.counts["dev"] + found.counts["test"]
    assert sum(found.counts[s] for s in ("train", "dev", "test")) == 86 - measured
    assert any(f"{measured} unlabelled pictures were left out" in note for note in found.notes)
    for path in (found.dev, found.test):
        assert all(s.answer is not None for s in load(path))


def test_pictures_without_a_question_are_not_lost_silently(clinic):
    rows = [json.loads(line) for line in (clinic / "labels.jsonl").read_text().splitlines()]
    (clinic / "labels.jsonl").write_text(
        "".join(json.dumps({**r, "question": f"What is in {r['file']}?"}) + "\n" for r in rows))
    found = prepare(clinic / "scans", clinic / "labels.jsonl", out=clinic / "out")
    assert found.counts["unlabelled"] == 0
    assert any("6 pictures have no label" in note for note in found.notes)


def test_what_cannot_be_prepared_says_why(clinic):
    with pytest.raises(SelfloopError, match="none of the 86 samples has a label"):
        prepare(clinic / "scans", task="What?", out=clinic / "out")
    (clinic / "few.jsonl").write_text('{"file": "00a.png", "label": "x"}\n')
    with pytest.raises(SelfloopError, match="1 groups of look-alike pictures have labels"):
        prepare(clinic / "scans", clinic / "few.jsonl", task="What?", out=clinic / "out")
    (clinic / "wrong.jsonl").write_text('{"scan": "00a.png", "lable": "x"}\n')
    with pytest.raises(SelfloopError, match=r"wrong\.jsonl.*row 1.*'lable'"):
        prepare(clinic / "scans", clinic / "wrong.jsonl", task="What?", out=clinic / "out")
    (clinic / "blind.jsonl").write_text('{"scan": "nowhere.png", "label": "x"}\n')
    with pytest.raises(SelfloopError, match="1 of 1 samples name no picture"):
        prepare(clinic / "scans", clinic / "blind.jsonl", task="What?", out=clinic / "out")
    with pytest.raises(SelfloopError, match="must be the folder"):
        prepare(clinic / "labels.jsonl", clinic / "labels.jsonl", out=clinic / "out")


def test_the_run_file_is_short_and_readable(clinic):
    found = prepared(clinic)
    path = write_run_yaml(found, clinic / "out" / "run.yaml", model="org/name: 2B")
    text = path.read_text()
    assert len(text.splitlines()) <= 30
    run = yaml.safe_load(text)
    assert run["model"] == "org/name: 2B" and run["verifier"] == RULES + "exact"
    assert run["data"] == {s: f"data/{s}.jsonl" for s in ("train", "dev", "test")}
    assert set(run) == {"model", "data", "verifier", "method", "iterations", "seed", "budget"}
    assert len(load(path.parent / run["data"]["train"])) == found.counts["train"]


@pytest.mark.parametrize(("labels", "kind", "rule"), [
    (["yes", "No", "yes"], "yes_no", "yes_no"),
    ([True, False], "yes_no", "yes_no"),
    (["A", "(b)", "C."], "choice", "choice"),
    (["1,200", "-3.5", 7, "12 %"], "number", "number"),
    (["1, 2", "3", "4;5"], "numbers", "exact"),
    ([[1, 2], [3]], "numbers", "exact"),
    (["cat", "dog", "cat", "dog", None], "class", "exact"),
    ([["sofa", "couch"], ["tv"]], "accepted", "text"),
    (["the red one", "a blue bus", "two"], "short_text", "exact"),
    (["a man who rides a brown horse along the beach", "sea"], "free_text", "text"),
])
def test_answer_types(labels, kind, rule):
    found = infer(labels)
    assert found.kind == kind and found.verifier == RULES + rule
    assert infer([None]).verifier == ""


def test_groups_share_units_in_chains():
    groups = joined([["a"], ["b"], ["a", "c"], ["d"], ["c", "e"], []])
    assert groups[0] == groups[2] == groups[4]
    assert len({groups[0], groups[1], groups[3], groups[5]}) == 4


def test_every_split_gets_a_group():
    for n in range(3, 12):
        assert set(split_groups(list(range(n)), ["x"] * n)) == {"train", "dev", "test"}
        assert set(split_groups(list(range(n)), [str(i) for i in range(n)])) == {
            "train", "dev", "test"}
    many = Counter(split_groups(list(range(1000)), [str(i % 300) for i in range(1000)]))
    assert abs(many["train"] - 700) < 60 and abs(many["dev"] - 150) < 40


def test_pictures_that_all_look_alike_are_still_split(tmp_path):
    blank = Image.new("L", (64, 64), 255)
    rng = np.random.default_rng(0)
    hashes = []
    for i in range(60):
        page = blank.copy()
        x, y = (int(v) for v in rng.integers(2, 50, 2))
        page.paste(0, (x, y, x + 12, y + 10))
        page.save(tmp_path / f"{i}.png")
        hashes.append(perceptual_hash(page))
    (tmp_path / "labels.csv").write_text(
        "file,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(60)))
    found = prepare(tmp_path, tmp_path / "labels.csv", task="Odd?", out=tmp_path / "out")
    assert found.counts["train"] > found.counts["dev"] > 0 and found.counts["test"] > 0
    largest = Counter(near_duplicates(hashes, 6)).most_common(1)[0][1]
    assert (largest > 18) == any("look so much alike" in note for note in found.notes)


def test_the_smallest_gain():
    assert 0.03 < smallest_gain(1000) < 0.06
    assert smallest_gain(4000) < smallest_gain(1000) < smallest_gain(1000, 250)
    assert math.isclose(smallest_gain(1000, 250), smallest_gain(250), rel_tol=1e-6)
    assert smallest_gain(0) == math.inf
