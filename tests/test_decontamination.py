"""What dev or test know is left out before a run draws anything: by default, and in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import clidata
from selfloop.cli import main
from selfloop.config import load_config, load_data
from selfloop.data import Samples, load
from selfloop.evaluate.sealed import seal
from selfloop.organize.refine.clean_data import cleaned
from selfloop.organize.refine.decontaminate import COMMON, EvaluationPrints, leaks, prints_of
from selfloop.pictures import Library
from selfloop.roles import SelfloopError
from selfloop.types import Message, Sample


def row(folder: Path, split: str, index: int) -> dict:
    found = json.loads((folder / split / f"{split}.jsonl").read_text().splitlines()[index])
    return {**found, "images": [str(folder / split / p) for p in found["images"]]}


def leaking(folder: Path, *, jpeg: bool = False) -> Path:
    """A run.yaml whose train set also holds one dev row and, under other words, a test picture."""
    path = clidata.with_splits(folder)
    mine = row(folder, "dev", 2)
    theirs = {**row(folder, "test", 1), "prompt": "something else ?"}
    if jpeg:
        Image.open(mine["images"][0]).convert("RGB").save(folder / "copy.jpg", quality=90)
        mine = {**mine, "images": [str(folder / "copy.jpg")]}
        theirs = row(folder, "train", 0)
    with open(folder / "train" / "train.jsonl", "a") as file:
        file.write(json.dumps(mine) + "\n" + json.dumps(theirs) + "\n")
    return path


def asked(samples: Samples) -> set[str]:
    return {s.context.identity for s in samples}


def test_known_rows_are_left_out_by_default_and_counted(tmp_path):
    config = load_config(leaking(tmp_path))
    data = load_data(config)
    assert len(load(config.data.train)) == 14 and len(data.train) == 12
    assert not asked(data.train) & asked(data.dev)
    dev, test = data.notes
    assert "1 of 14 training rows are known from the dev set: row 13" in dev
    assert "the same question and pictures" in dev and "row 14" in test and "same picture" in test
    clean = load_data(load_config(clidata.with_splits(tmp_path / "clean")))
    assert len(clean.train) == 12 and clean.notes == ()


def test_look_alikes_go_when_asked_and_nothing_goes_when_off(tmp_path):
    path = leaking(tmp_path, jpeg=True)
    assert len(load_data(load_config(path)).train) == 13, "other bytes, and a row that was merged"
    looked = load_data(load_config(path, ["data.decontaminate=looks"]))
    assert len(looked.train) <= 12 and "looks like" in " ".join(looked.notes)
    off = load_data(load_config(leaking(tmp_path / "off"), ["data.decontaminate=none"]))
    assert len(off.train) == 14 and off.notes == ()


@pytest.mark.slow
def test_the_command_says_what_it_left_out_and_learns_without_it(tmp_path):
    path = leaking(tmp_path)
    model = clidata.quick_model(tmp_path)
    done = CliRunner().invoke(main, ["run", str(path), f"model={model}", "--name", "clean",
                                     "suites=none"])
    assert "1 of 14 training rows are known from the dev set" in done.output, done.output
    known = row(tmp_path, "dev", 2)["prompt"], row(tmp_path, "test", 1)["images"][0]
    drawn = [json.loads(p.read_text()) for p in tmp_path.rglob("steps/*/manifest.json")]
    ids = {i for manifest in drawn for i in manifest["samples"]}
    leaked = list(load(tmp_path / "train" / "train.jsonl"))[-2:]
    assert ids and not ids & {s.id for s in leaked}, known


def test_nothing_left_is_refused_with_the_mend(tmp_path):
    path = clidata.with_splits(tmp_path)
    shutil.rmtree(tmp_path / "train")
    shutil.copytree(tmp_path / "dev", tmp_path / "train")
    (tmp_path / "train" / "dev.jsonl").rename(tmp_path / "train" / "train.jsonl")
    with pytest.raises(SelfloopError, match=r"8 of 8 training rows .*data\.decontaminate: none"):
        load_data(load_config(path))


def plain(text: str) -> Sample:
    return Sample(prompt=(Message(role="user", content=text),), answer="a")  # type: ignore[arg-type]


def test_raising_names_count_and_examples():
    words = " ".join(f"w{i}" for i in range(20))
    train = Samples.of([plain("short"), plain(f"so {words}"), plain(f"{words} then")])
    held = {"dev": [plain(words)]}
    with pytest.raises(SelfloopError, match=r"2 of 3 training rows .* dev set: row 2 .*; row 3 "):
        cleaned(train, held, on_found="raise")
    found = cleaned(train, held)
    assert found.dropped == (1, 2) and [s.context.text for s in found.samples] == ["short"]


def test_wording_that_many_questions_share_is_no_leak():
    wording = "answer the question below with one word and nothing else please : what is the"
    for others, known in ((COMMON - 1, 1), (COMMON, 0)):
        held = [plain(f"{wording} thing {i}") for i in range(others + 1)]
        prints = prints_of(held, Library().open)
        assert len(leaks([plain(f"{wording} other")], prints)) == known


# -- whatever is evaluated on --------------------------------------------------------------------

def suited(folder: Path) -> Path:
    """A run.yaml whose suite holds a training row."""
    path = clidata.with_splits(folder)
    (folder / "suite.jsonl").write_text(json.dumps(row(folder, "train", 3)) + "\n")
    path.write_text(path.read_text() + "suites:\n  - {path: suite.jsonl, verifier: exact}\n")
    return path


def test_suites_are_evaluated_on_too(tmp_path):
    data = load_data(load_config(suited(tmp_path)))
    assert len(data.train) == 11
    assert "1 of 12 training rows are known from the suites[0] (suite.jsonl) set: row 4" in \
        " ".join(data.notes)


def test_a_test_file_that_is_not_there_is_refused_like_the_others(tmp_path):
    path = clidata.with_splits(tmp_path)
    with pytest.raises(SelfloopError, match=r"data\.test: .*tset\.jsonl: no such file"):
        load_data(load_config(path, ["data.test=tset.jsonl"]))


def test_a_sealed_test_is_said_not_to_have_been_compared(tmp_path):
    path = leaking(tmp_path)
    sealed, _ = seal(tmp_path / "test" / "test.jsonl")
    data = load_data(load_config(path, [f"data.test={sealed}"]))
    assert len(data.train) == 13, "what only the sealed file knows stays"
    assert "test.jsonl.sealed is sealed, so training rows were not compared" in data.notes[-1]
    off = load_data(load_config(path, [f"data.test={sealed}", "data.decontaminate=none"]))
    assert off.notes == ()


def test_rows_of_the_test_that_cannot_be_read_are_named(tmp_path):
    path = clidata.with_splits(tmp_path)
    with open(tmp_path / "test" / "test.jsonl", "a") as file:
        file.write('{"prompt": "broken\n')
    (note,) = load_data(load_config(path)).notes
    assert "the test set was compared without what cannot be read" in note
    assert "row 5" in note or ":5" in note or "line 5" in note


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_the_same_pixels_in_another_file_are_known_by_default(tmp_path, form):
    path = clidata.with_splits(tmp_path)
    mine = row(tmp_path, "dev", 2)
    copy = tmp_path / f"copy.{form.lower()}"
    Image.open(mine["images"][0]).convert("RGB").save(
        copy, form, **({"lossless": True} if form == "WEBP" else
                       {"compress_level": 1} if form == "PNG" else {}))
    assert copy.read_bytes() != Path(mine["images"][0]).read_bytes()
    with open(tmp_path / "train" / "train.jsonl", "a") as file:
        file.write(json.dumps({**mine, "prompt": "what else ?", "images": [str(copy)]}) + "\n")
    data = load_data(load_config(path))
    assert len(data.train) == 12
    assert "row 13" in data.notes[0] and "pixel by pixel, in another file" in data.notes[0]


def test_raise_refuses_the_run_and_names_the_rows(tmp_path):
    path = leaking(tmp_path)
    with pytest.raises(SelfloopError, match=r"1 of 14 training rows are known from the dev set: "
                       r"row 13 .*data\.decontaminate: exact, which drops them, or none"):
        load_data(load_config(path, ["data.decontaminate=raise"]))
    clean = clidata.with_splits(tmp_path / "clean")
    assert len(load_data(load_config(clean, ["data.decontaminate=raise"])).train) == 12


def test_prints_keep_pixels_and_read_files_that_have_none(tmp_path):
    config = load_config(clidata.with_splits(tmp_path))
    held = load(config.data.dev)
    prints = prints_of(held, Library().open)
    assert len(prints.pixels) == len({m.identity for s in held for m in s.media})
    assert EvaluationPrints.from_json(prints.to_json()) == prints
    old = {k: v for k, v in json.loads(prints.to_json()).items() if k != "pixels"}
    assert EvaluationPrints.from_json(json.dumps(old)).pixels == frozenset()
