"""Two processes play one engine: the same draws, gradients, runs and errors as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clidata
import hf_models
import toyland
from fragile import Fragile, FragileModel
from selfloop.engines.hf import HFEngine, LoRA
from selfloop.engines.processes import Processes
from selfloop.engines.toy import ToyEngine
from selfloop.learning import _known, learn
from selfloop.optimize.losses.preference import DPO
from selfloop.optimize.losses.rl import GRPO
from selfloop.optimize.losses.sft import SFT
from selfloop.optimize.losses.unpaired import BCO
from selfloop.pictures import Library
from selfloop.roles import Optim, Request, Sampling, SelfloopError
from selfloop.store import read_table
from selfloop.types import Advantage, Branch, Demonstration, Pair, Rollout
from test_losses_in_the_learner import LOSSES, OPTIM, WORDS, N
from test_losses_in_the_learner import signal as toy_signal

TOY = {"contexts": 64, "seed": 3}
HERE = Path(__file__).parent
SFT_TOY = LOSSES["sft"][1]


@pytest.fixture(scope="module")
def pair():
    """A toy engine that two processes play; engines built later are played by the same two."""
    made = Processes(ToyEngine, WORDS, **TOY, processes=2)
    yield made
    made.close()


def toy_signals(kind: str) -> list:
    return [toy_signal(ToyEngine(WORDS, **TOY), kind, i) for i in range(N)]


def moved(engine: ToyEngine, by: float, folder: Path) -> None:
    with torch.no_grad():
        engine.table.mul_(by)
    engine.save_state(folder)


# -- learning -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_have_the_gradient_of_one(pair, name, tmp_path):
    kind, loss = LOSSES[name]
    alone, made = ToyEngine(WORDS, **TOY), toy_signals(kind)
    for folder, by in ((tmp_path / "a", 1.3), (tmp_path / "b", 1.1)):
        moved(alone, by, folder)
        pair.load_state(folder)
        if by == 1.3:
            known = _known(pair, made, loss, OPTIM)[0]
            assert known == _known(alone, made, loss, OPTIM)[0]
    for _ in range(2):  # a second pass is added to the first
        expected = alone.forward_backward(made, loss, known)
        found = pair.forward_backward(made, loss, known)
    assert torch.allclose(pair.table.grad, alone.table.grad, rtol=1e-9, atol=1e-12)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert pair.learner.states.keys() == alone.learner.states.keys()
    for described, state in alone.learner.states.items():
        assert pair.learner.states[described] == pytest.approx(state, rel=1e-9)
    pair.restart()


def test_a_step_leaves_the_same_weights(pair):
    alone, made = ToyEngine(WORDS, **TOY), toy_signals("pair")
    how = Optim(lr=0.1, updates=5, batch=3)
    expected, found = (learn(e, made, LOSSES["dpo"][1], how, "key") for e in (alone, pair))
    assert found == pytest.approx(expected, rel=1e-7)
    assert torch.allclose(pair.table, alone.table, rtol=1e-9, atol=1e-12)
    pair.restart()


def test_fewer_signals_than_processes(pair):
    alone, made = ToyEngine(WORDS, **TOY), toy_signals("demonstration")[:1]
    expected = alone.forward_backward(made, SFT_TOY, {})
    assert pair.forward_backward(made, SFT_TOY, {}) == pytest.approx(expected)
    assert torch.allclose(pair.table.grad, alone.table.grad)
    pair.restart()


# -- a real model, whole and cut ------------------------------------------------------------------

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny VLM's folder and five problems with pictures."""
    folder = tmp_path_factory.mktemp("world")
    return hf_models.llava(folder / "model"), toyland.samples(folder / "pictures", 5)


def requests(samples) -> list[Request]:
    return [Request(context=s.context, key=f"k{i}", n=3, sampling=Sampling(max_new_tokens=6))
            for i, s in enumerate(samples)]


def signals(engine, samples) -> dict[str, list]:
    """Every kind, from the engine's own draws; shares of two processes are of unlike sizes."""
    made: dict[str, list] = {"sft": [], "dpo": [], "grpo": [], "bco": []}
    for s, turns in zip(samples, engine.generate(requests(samples), 0), strict=True):
        drawn = [Branch.drawn(Rollout(id=f"{s.id}.{i}", sample=s.id, context=s.context,
                                      turns=(turn,), output=())) for i, turn in enumerate(turns)]
        made["sft"].append(Demonstration(branches={"target": drawn[0]}, sample=s.id))
        made["dpo"].append(Pair(branches={"chosen": drawn[0], "rejected": drawn[1]}, sample=s.id))
        made["grpo"] += [Advantage(branches={"answer": one}, advantage=i - 1.2, sample=s.id,
                                   group=s.id) for i, one in enumerate(drawn)]
    made["bco"] = made["grpo"]
    return made


HF_LOSSES = {"sft": SFT(), "dpo": DPO(), "grpo": GRPO(kl=0.1, entropy=0.01), "bco": BCO(1.0)}


def gradients(engine, folder: Path) -> dict[str, torch.Tensor]:
    """What is accumulated, read off the moments of a first step: whole where layers are cut."""
    engine.optim_step(Optim(clip=1e9), 0.0)
    engine.save_state(folder)
    moments = load_file(folder / "optimizer.safetensors")
    return {n: x / 0.1 for n, x in moments.items() if n.startswith("exp_avg/")}


def apart(ours, theirs) -> float:
    """Relative distance of two sets of tensors."""
    assert ours.keys() == theirs.keys()
    norm = sum(float(x.double().pow(2).sum()) for x in theirs.values())
    return (sum(float((ours[n] - x).double().pow(2).sum()) for n, x in theirs.items()) / norm) ** .5


@pytest.mark.parametrize(("dtype", "shard", "near"), [
    ("float64", False, 1e-6), pytest.param("float32", False, 1e-4, marks=pytest.mark.slow),
    ("float64", True, 1e-6), pytest.param("float32", True, 1e-4, marks=pytest.mark.slow)])
def test_a_model_draws_scores_and_learns_as_in_one_process(pair, world, tmp_path, dtype, shard,
                                                           near):
    model, samples = world
    # So few tokens a pass that the shares differ in their numbers of passes.
    both = Processes(HFEngine, str(model), dtype=dtype, processes=2, shard=shard,
                     max_batch_tokens=120)
    alone = HFEngine(str(model), dtype=dtype)
    for engine in (alone, both):
        engine.bind(Library().open)
    expected = alone.generate(requests(samples), 0)
    found = both.generate(requests(samples), 0)
    assert [[t.token_ids for t in turns] for turns in found] == \
        [[t.token_ids for t in turns] for turns in expected]
    made = signals(alone, samples)
    if shard:
        cut = [n for n, p in both.trainable().items() if hasattr(p, "to_local")]
        assert cut and all(".layers." in n for n in cut)
    for name, loss in HF_LOSSES.items():
        known = _known(alone, made[name], loss, OPTIM)[0]
        for what, table in _known(both, made[name], loss, OPTIM)[0].items():
            for at, logps in table.items():
                assert logps == pytest.approx(known[what][at], abs=near)
        for (_, branch), logps in known.get("reference", {}).items():  # no margin is 0
            logps[:] = [x - 0.01 * len(branch) for x in logps]
        terms = [e.forward_backward(made[name], loss, known) for e in (alone, both)]
        assert terms[1] == pytest.approx(terms[0], rel=near, abs=near * 1e-2)
        ours, theirs = (gradients(e, tmp_path / name / n) for e, n in ((both, "b"), (alone, "a")))
        assert apart(ours, theirs) < near
        for engine in (alone, both):
            engine.restart()
    one = [e.forward_backward(made["sft"][:1], SFT(), {}) for e in (alone, both)]
    assert one[1] == pytest.approx(one[0], rel=near), "one process has nothing to do"


def test_cut_layers_are_saved_whole_and_loaded_again(pair, world, tmp_path):
    model, samples = world
    both = Processes(HFEngine, str(model), processes=2, shard=True)
    alone = HFEngine(str(model))
    for engine in (alone, both):
        engine.bind(Library().open)
    made = signals(alone, samples)["sft"]
    how = Optim(lr=1e-3, updates=2, batch=3, ema=0.5)
    for engine in (alone, both):
        engine.publish(0, 1)
        learn(engine, made, SFT(), how, "key")
        engine.publish(1, 1)
    for name, engine in (("alone", alone), ("both", both)):
        engine.save_state(tmp_path / name)
        engine.save(tmp_path / f"{name}-hf")
    for file in ("trainable", "published-1", "average", "optimizer"):
        ours, theirs = (load_file(tmp_path / n / f"{file}.safetensors") for n in ("both", "alone"))
        assert apart(ours, theirs) < 1e-4
    loaded = HFEngine(str(tmp_path / "both-hf"))
    loaded.bind(Library().open)
    branches = [s.branches["target"] for s in made]
    for found, expected in zip(loaded.logprobs(branches), both.logprobs(branches), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    for version in ("seed", "ema"):
        for found, expected in zip(*(e.logprobs(branches, version) for e in (both, alone)),
                                   strict=True):
            assert found == pytest.approx(expected, abs=1e-5)
    both.restart()
    both.load_state(tmp_path / "alone")  # of one process
    assert both.version == 1
    for engine in (alone, both):
        learn(engine, made, SFT(), how, "more")
        engine.save_state(tmp_path / f"{engine is both}")
    assert apart(*(load_file(tmp_path / str(b) / "trainable.safetensors") for b in (True, False))
                 ) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("family", "more"), [
    ("llava", {"lora": LoRA(rank=4)}), ("llava", {"checkpointing": True}),
    ("llava", {"freeze": ("language",)}), ("gemma3", {}), ("idefics3", {})])
def test_layers_are_cut_in_other_families_and_ways_of_learning(tmp_path, family, more):
    """Adapters, recomputed layers, frozen layers, sliding windows, pictures in tiles."""
    model, samples = hf_models.FAMILIES[family](tmp_path / "model"), toyland.samples(tmp_path, 5)
    alone = HFEngine(str(model), dtype="float64", **more)
    both = Processes(HFEngine, str(model), dtype="float64", processes=2, shard=True,
                     max_batch_tokens=120, **more)
    for engine in (alone, both):
        engine.bind(Library().open)
    expected, found = (e.generate(requests(samples), 0) for e in (alone, both))
    assert [[t.token_ids for t in turns] for turns in found] == \
        [[t.token_ids for t in turns] for turns in expected]
    made, loss = signals(alone, samples)["grpo"], HF_LOSSES["grpo"]
    known = _known(alone, made, loss, OPTIM)[0]
    terms = [e.forward_backward(made, loss, known) for e in (alone, both)]
    assert terms[1] == pytest.approx(terms[0], rel=1e-6, abs=1e-8)
    assert apart(gradients(both, tmp_path / "b"), gradients(alone, tmp_path / "a")) < 1e-6
    both.save(tmp_path / "saved")
    both.load_state(tmp_path / "a")
    assert apart(gradients(both, tmp_path / "c"), gradients(alone, tmp_path / "d")) < 1e-6


# -- runs -----------------------------------------------------------------------------------------

def contents(folder: Path) -> dict[str, object]:
    """What a run has stored, JSON and tables as values; all but weights and the clock's log."""
    def read(path: Path) -> object:
        if path.suffix == ".parquet":
            columns = read_table(path)[0]
            return {name: [as_value(x) for x in column] for name, column in columns.items()}
        return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()

    return {str(p.relative_to(folder)): read(p) for p in sorted(folder.rglob("*"))
            if p.is_file() and p.suffix != ".safetensors" and p.name != "events.jsonl"}


def as_value(cell: object) -> object:
    return json.loads(cell) if isinstance(cell, str) and cell[:1] in ("{", "[") else cell


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {str(p.relative_to(folder)): load_file(p) for p in folder.rglob("*.safetensors")
            if p.name != "optimizer.safetensors"}


def same(value, other) -> bool:
    """Equal, numbers within 1e-9."""
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value[k], other[k]) for k in value)
    if isinstance(value, list):
        return len(value) == len(other) and all(map(same, value, other))
    return value == pytest.approx(other, rel=1e-9) if isinstance(value, float) else value == other


@pytest.mark.parametrize("contract", [
    "mdpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("environment", "stale"))])
def test_a_run_by_two_is_the_run_by_one(pair, contract, tmp_path):
    words = ("yes", "no", "left", "right", "easy", "hard")
    loop, data = toyland.loops()[contract], tmp_path / "data"
    train, dev = toyland.samples(data, 12), toyland.samples(data, 6, first=12)
    for name, engine in (("one", ToyEngine(words, seed=1)),
                         ("two", Processes(ToyEngine, words, seed=1, processes=2))):
        library = Library(tmp_path / name / "images")
        toyland.run(loop, train, engine, tmp_path / name, dev=dev, library=library)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    differing = [n for n in one if not same(one[n], two[n])]
    assert not [n for n in differing if not n.endswith("toy.json")], differing
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert ours.keys() == theirs.keys() and len(ours) >= 2
    assert max(apart(ours[n], theirs[n]) for n in ours) < 1e-5


# -- errors ---------------------------------------------------------------------------------------

def test_what_one_process_runs_into_is_one_line_of_the_leader(pair):
    made, pairs = toy_signals("demonstration"), toy_signals("pair")
    known = _known(pair, pairs, DPO(), OPTIM)[0]
    known["reference"][(N - 1, "chosen")] = [float("nan")] * len(
        known["reference"][(N - 1, "chosen")])
    with pytest.raises(SelfloopError, match=r"became nan on sample s6.*\(in process 1 of 2\)"):
        pair.forward_backward(pairs, DPO(), known)
    assert pair.table.grad is None, "nothing is left of half an update"
    assert pair.forward_backward(made, SFT_TOY, {})["tokens_trained"] > 0, "and all go on"
    pair.restart()
    ill = Processes(Fragile, WORDS, **TOY, ill="bug", processes=2)
    with pytest.raises(SelfloopError, match=r"^KeyError: 'no such thing' \(in process 1 of 2\)$"):
        ill.forward_backward(made, SFT_TOY, {})
    with pytest.raises(SelfloopError, match=r"no such thing.*\(in process 1 of 2\)"):
        ill.logprobs([s.branches["target"] for s in made])


def test_a_loss_that_the_others_do_not_know_is_named(pair):
    class Local(SFT):
        pass

    with pytest.raises(SelfloopError, match=r"Local.*module"):
        pair.forward_backward(toy_signals("demonstration"), Local(), {})
    assert pair.forward_backward(toy_signals("demonstration"), SFT_TOY, {})["tokens_trained"] > 0
    pair.restart()


def test_out_of_memory_in_one_process_halves_micro_batches_in_all(pair):
    made = toy_signals("demonstration")
    ill, alone = Processes(Fragile, WORDS, **TOY, ill="memory", processes=2), \
        ToyEngine(WORDS, **TOY)
    with pytest.warns(UserWarning, match="micro-batches are cut from 16384 to"):
        found = ill.forward_backward(made, SFT_TOY, {})
    assert found == pytest.approx(alone.forward_backward(made, SFT_TOY, {}))
    assert torch.allclose(ill.table.grad, alone.table.grad)
    assert ill.learner.tokens_per_batch < 16384
    assert ill.logprobs([s.branches["target"] for s in made]) == alone.logprobs(
        [s.branches["target"] for s in made])


def test_an_error_beside_a_pass_through_cut_layers_is_told_to_all(pair, world):
    model, samples = world
    ill = Processes(FragileModel, str(model), ill="before", processes=2, shard=True)
    ill.bind(Library().open)
    made = signals(ill, samples)["sft"]
    with pytest.raises(SelfloopError, match=r"no such thing.*\(in process 1 of 2\)"):
        ill.forward_backward(made, SFT(), {})
    assert len(ill.logprobs([s.branches["target"] for s in made])) == len(made), "and all go on"


def test_a_process_that_dies_is_named_and_nobody_waits(pair):
    ill = Processes(Fragile, WORDS, **TOY, ill="killed", processes=2)
    began = time.monotonic()
    with pytest.raises(SelfloopError, match=r"process 1 of 2 has ended \(signal SIGKILL\).*again"):
        ill.forward_backward(toy_signals("demonstration"), SFT_TOY, {})
    assert time.monotonic() - began < 20
    with pytest.raises(SelfloopError, match="build the engine again"):
        pair.forward_backward(toy_signals("demonstration"), SFT_TOY, {})


# -- from outside ---------------------------------------------------------------------------------

BY_TWO = """
import sys, toyland
from pathlib import Path
from selfloop.engines.processes import Processes
from selfloop.engines.toy import ToyEngine

folder, data = Path(sys.argv[1]), Path(sys.argv[2])
engine = Processes(ToyEngine, ("yes", "no", "left", "right", "easy", "hard"), seed=1, processes=2)
Path(str(folder) + ".pid").write_text(str(engine._crew.started[0][0].pid))

def watch(event, facts):
    if event == sys.argv[3]:
        import os, signal
        os.kill(os.getpid(), int(sys.argv[4]))

toyland.run(toyland.loops()["mdpo"], toyland.samples(data, 12), engine, folder,
            dev=toyland.samples(data, 6, first=12), watch=watch,
            library=toyland.Library(folder / "images"))
"""


def by_two(folder: Path, data: Path, stop: str = "never", how: int = 0) -> int:
    found = subprocess.run([sys.executable, "-c", BY_TWO, str(folder), str(data), stop, str(how)],
                           cwd=HERE, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
                           stderr=subprocess.DEVNULL, check=False)
    return found.returncode


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether a process ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "how"), [("learned", signal.SIGKILL), ("drawn", signal.SIGINT)])
def test_a_leader_that_ends_takes_the_others_along_and_its_run_goes_on(tmp_path, stop, how):
    data = tmp_path / "data"
    assert by_two(tmp_path / "whole", data) == 0
    assert gone(int((tmp_path / "whole.pid").read_text()))
    assert by_two(tmp_path / "cut", data, stop, how) != 0
    assert gone(int((tmp_path / "cut.pid").read_text())), "the other process waits for nobody"
    assert by_two(tmp_path / "cut", data) == 0
    whole, cut = ({str(p.relative_to(f)): p.read_bytes() for p in sorted(f.rglob("*"))
                   if p.is_file() and p.name != "events.jsonl"}
                  for f in (tmp_path / "whole", tmp_path / "cut"))
    assert cut == whole, "bit for bit: equal numbers of processes add up in equal order"


@pytest.mark.slow
def test_an_error_in_the_middle_of_a_cut_layer_ends_all_with_one_line(world):
    model, samples = world
    ill = Processes(FragileModel, str(model), ill="inside", processes=2, shard=True)
    ill.bind(Library().open)
    made = signals(ill, samples)["sft"]
    with pytest.raises(SelfloopError, match=r"process 1 of 2 has ended.*80 GiB.*max_batch_tokens"):
        ill.forward_backward(made, SFT(), {})


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up():
    ill = Processes(Fragile, WORDS, **TOY, ill="asleep", processes=2, timeout=8)
    began = time.monotonic()
    with pytest.raises(SelfloopError, match="has ended or does not answer"):
        ill.forward_backward(toy_signals("demonstration"), SFT_TOY, {})
    assert time.monotonic() - began < 60
    assert gone(ill._crew.started[0][0].pid)


@pytest.mark.slow
def test_the_command_line_runs_by_two_as_by_one(tmp_path):
    path = clidata.with_splits(tmp_path, str(clidata.quick_model(tmp_path)), method="grpo")
    path.write_text(path.read_text().partition("options:")[0] + "audit: off\noptions: "
                    "{n: 4, max_new_tokens: 6, steps: 2, samples: 6, lr: 1e-4}\n")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                "2", "-m", "selfloop"]
    plain = [sys.executable, "-m", "selfloop"]
    for name, command, more in (("one", plain, []), ("two", plain, ["processes=2"]),
                                ("cut", plain, ["processes=2", "shard=true"]),
                                ("launched", launcher, [])):
        subprocess.run([*command, "run", str(path), f"out=runs/{name}", *more], check=True,
                       cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600)
    expected = weights(tmp_path / "runs" / "one")
    for name in ("two", "cut", "launched"):
        found = weights(tmp_path / "runs" / name)
        assert found.keys() == expected.keys()
        assert max(apart(found[n], expected[n]) for n in found) < 1e-4


@pytest.mark.slow
def test_a_launched_follower_leaves_without_a_word_where_nothing_is_built(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "selfloop", "version"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    assert len(found.stdout.strip().splitlines()) == 1


def test_wrong_numbers_of_processes_are_refused_at_once(tmp_path, monkeypatch):
    from selfloop.config import build_engine, load_config

    path = clidata.with_splits(tmp_path)
    with pytest.raises(SelfloopError, match="processes: 2"):
        build_engine(load_config(path, ["shard=true"]))
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0"),
                        ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SelfloopError, match="processes: 2, but 4 were launched"):
        build_engine(load_config(path, ["processes=2"]))
