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
from selfloop.organize.refine.clean_data import cleaned
from selfloop.organize.refine.decontaminate import COMMON, leaks, prints_of
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
