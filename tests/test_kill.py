"""kill -9 at every write boundary, and at a random moment of real learning: the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import toyland
from killing import DONE, KILLED, contents, perform


@pytest.fixture(scope="module")
def reference(request, tmp_path_factory):
    """(contract, its data, everything an uninterrupted run leaves, its write boundaries)."""
    data, folder = (tmp_path_factory.mktemp(request.param) / n for n in ("data", "whole"))
    toyland.samples(data, 18)  # so that no run writes pictures
    assert perform(data, [(request.param, folder, None)]) == [DONE]
    return request.param, data, contents(folder), Path(f"{folder}.trace").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["mixture", "stale"], indirect=True)
def test_killed_at_every_write_boundary_and_resumed(reference, tmp_path):
    name, data, whole, found = reference
    assert len(found) > 60
    moments = {k: tmp_path / f"killed-{k}" for k in range(1, len(found) + 1)}
    ends = perform(data, [(name, f, m) for k, f in moments.items() for m in (k, None)])
    assert ends == [KILLED, DONE] * len(found)
    wrong = [found[k - 1] for k, folder in moments.items() if contents(folder) != whole]
    assert not wrong, f"another end after a kill at {wrong}"


@pytest.mark.parametrize("reference", ["stale"], indirect=True)
def test_killed_again_and_again_in_one_folder(reference, tmp_path):
    """What the default run can afford of the above: one kill at every kind of write."""
    name, data, whole, found = reference
    kinds = ("within loop.json", "within rollouts-0001.parquet", "after verdicts-0000.parquet",
             "within manifest.json", "within 000002/", "after learned.json",
             "before iteration.json")
    assert set(kinds) <= set(found), "a run no longer writes what this test kills it at"
    often = tmp_path / "often"
    ends = perform(data, [*((name, often, kind) for kind in kinds), (name, often, None)])
    assert ends.count(KILLED) >= 5 and ends[-1] == DONE
    assert contents(often) == whole


@pytest.mark.parametrize("reference", ["stale"], indirect=True)
def test_killed_after_the_last_word_nothing_is_left_over(reference, tmp_path):
    """The old checkpoints go only after iteration.json: a kill in between must not keep them."""
    name, data, whole, found = reference
    last = max(i for i, kind in enumerate(found, 1) if kind == "after iteration.json")
    cut = tmp_path / "cut"
    copy = tmp_path / "copy"
    jobs = [(name, cut, last), (name, copy, last), (name, cut, None)]
    assert perform(data, jobs) == [KILLED, KILLED, DONE]
    assert contents(copy) != whole, "or this tests nothing"
    assert contents(cut) == whole


# -- the Hugging Face engine with the shipped seed weights ---------------------------------------

LEARN = """
import sys
from pathlib import Path
from selfloop.data import load
from selfloop.demo import CHECKED, make_engine
from selfloop.organize.verify.rules import exact
from selfloop.recipes.star import star
from selfloop.running import run
data, folder = Path(sys.argv[1]), Path(sys.argv[2])
loop = star(CHECKED, exact, n=4, updates=4, iterations=2, batch=16, lr=5e-4, max_new_tokens=12)
run(loop, load(data / "train.jsonl"), make_engine(), folder, dev=load(data / "dev.jsonl"))
"""


def start(data: Path, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", LEARN, str(data), str(folder)],
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def events(folder: Path) -> list[dict]:
    try:
        lines = (folder / "events.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def count(folder: Path, kind: str) -> int:
    return sum(e["event"] == kind for e in events(folder))


def test_killed_in_the_middle_of_learning_the_shipped_model_ends_in_the_same_weights(tmp_path):
    from selfloop.testbeds import digits

    digits.write(tmp_path / "data", "train", 24, 1)
    digits.write(tmp_path / "data", "dev", 12, 1)
    assert start(tmp_path / "data", tmp_path / "whole").wait(120) == 0
    learned = [e for e in events(tmp_path / "whole") if e["event"] == "learned"]
    assert len(learned) == 2 and all(e["metrics"]["solver"]["updates"] == 4 for e in learned)
    draw = random.Random("middle of learning")
    which, share = draw.randrange(2), draw.uniform(0.1, 0.9)
    run = start(tmp_path / "data", tmp_path / "cut")
    deadline = time.monotonic() + 120
    while count(tmp_path / "cut", "gathered") <= which:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(share * learned[which]["seconds"])
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert count(tmp_path / "cut", "finished") == 0
    assert start(tmp_path / "data", tmp_path / "cut").wait(120) == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    weights = contents(tmp_path / "whole")
    assert weights["checkpoints/000002/solver/trainable.safetensors"] \
        != weights["checkpoints/000000/solver/trainable.safetensors"]
