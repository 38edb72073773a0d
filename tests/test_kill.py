"""kill -9 at every write boundary, and at a random moment of real learning: same bits either way."""

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
from test_contracts import contents, process

HERE = Path(__file__).parent


def boundaries(name: str, folder: Path, data: Path) -> list[str]:
    """What an uninterrupted run writes, in order, one line a boundary."""
    trace = folder.with_name(f"{folder.name}.trace")
    code = ("import toyland, sys; from pathlib import Path; "
            "toyland.perform(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))")
    subprocess.run([sys.executable, "-c", code, name, str(folder), str(data)], check=True, cwd=HERE,
                   env={**os.environ, "OMP_NUM_THREADS": "1", "SELFLOOP_TRACE_WRITES": str(trace)})
    return trace.read_text().splitlines()


@pytest.fixture
def reference(request, tmp_path):
    toyland.samples(tmp_path / "data", 18)  # so that no run writes pictures
    found = boundaries(request.param, tmp_path / "whole", tmp_path / "data")
    return request.param, contents(tmp_path / "whole"), found


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["mixture", "stale"], indirect=True)
def test_killed_at_every_write_boundary_and_resumed(reference, tmp_path):
    name, whole, found = reference
    assert len(found) > 60
    for moment in range(1, len(found) + 1):
        folder = tmp_path / f"killed-{moment}"
        assert process(name, folder, tmp_path / "data", moment) == -signal.SIGKILL
        assert process(name, folder, tmp_path / "data") == 0
        assert contents(folder) == whole, f"killed at {found[moment - 1]!r}"


# What the default run can afford of the above: the kills of one run, each resumed into the next.
@pytest.mark.parametrize("reference", ["stale"], indirect=True)
def test_killed_again_and_again_in_one_folder(reference, tmp_path):
    name, whole, found = reference
    interesting = ("within loop.json", "within rollouts-0001.parquet", "before verdicts-0000.parquet",
                   "after signals-solver-0000.parquet", "within manifest.json", "within 000002/",
                   "after learned.json", "before iteration.json", "after iteration.json")
    lines = [line.split(" ", 1)[1] for line in found]
    folder, killed = tmp_path / "often", 0
    for kind in interesting:
        assert kind in lines, f"no run writes {kind!r} any more"
        killed += kill_when(name, folder, tmp_path / "data", kind)
    assert killed >= 6
    assert process(name, folder, tmp_path / "data") == 0
    assert contents(folder) == whole


def test_killed_after_the_last_word_nothing_is_left_over(tmp_path):
    """The old checkpoints go only after iteration.json: a kill in between must not keep them."""
    toyland.samples(tmp_path / "data", 18)
    found = boundaries("stale", tmp_path / "whole", tmp_path / "data")
    last = max(i for i, line in enumerate(found, 1) if line.endswith("after iteration.json"))
    assert process("stale", tmp_path / "cut", tmp_path / "data", last) == -signal.SIGKILL
    assert contents(tmp_path / "cut") != contents(tmp_path / "whole"), "or this tests nothing"
    assert process("stale", tmp_path / "cut", tmp_path / "data") == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


KILLER = """
import os, signal, sys
from pathlib import Path
import toyland
from selfloop import store
whole = store.boundary
def boundary(name):
    whole(name)
    if name == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGKILL)
store.boundary = boundary
toyland.perform(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
"""


def kill_when(name: str, folder: Path, data: Path, kind: str) -> bool:
    """Kill the run the next time it comes to such a boundary; whether it came to one."""
    return subprocess.run(
        [sys.executable, "-c", KILLER, name, str(folder), str(data), kind], cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode == -signal.SIGKILL


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
