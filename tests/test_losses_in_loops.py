"""New losses with their makers through the whole loop on the toy engine, stopped and gone on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

import toyland
from selfloop.collect.independent import Independent
from selfloop.data import load
from selfloop.engines.hf import HFEngine
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.distill import ReverseKL, TopK
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.perception import Perception
from selfloop.optimize.losses.preference import MDPO, rpo, vision_guided, wpo
from selfloop.optimize.losses.ranked import OwnNegative
from selfloop.optimize.losses.rl import GRPO, reinforce, reinforce_pp, rloo
from selfloop.optimize.losses.sft import SFT
from selfloop.optimize.losses.surrogates import Adaptive
from selfloop.optimize.losses.unpaired import BCO, KTO, mpo
from selfloop.organize.advantages import (
    AsScored,
    Desirability,
    LeaveOneOut,
    Marked,
    PassAtK,
    RunningBaseline,
    Together,
)
from selfloop.organize.beside import Beside
from selfloop.organize.chain import Chain
from selfloop.organize.signals import BestWorst, Demonstrate, GroupAdvantage, Privileged
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library
from selfloop.roles import Optim, Sampling, SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.testbeds import digits
from test_digits import SEED_FOLDER

FAST = Optim(lr=0.1, updates=3, batch=32)
BLIND = Beside(Beside(BestWorst(), "chosen_blind", "chosen"), "rejected_blind", "rejected")
MASKED = Beside(GroupAdvantage(), "masked", "answer", "mask", 0.6)
METHODS = {
    "kto": (Chain(maker=Desirability()), KTO()),
    "bco": (Chain(maker=Desirability()), BCO(1.0)),
    "mpo": (Chain(maker=BestWorst()), mpo()),
    "stic": (Chain(maker=BestWorst()), rpo(0.1, 1 / 1024, "sum")),
    "wpo": (Chain(maker=BestWorst()), wpo()),
    "vdpo": (Chain(maker=BLIND), vision_guided()),
    "povid": (Chain(maker=Beside(BestWorst(), "corrupted", "chosen", "diffusion", 0.5)),
              Mix(((0.5, OwnNegative()), (0.5, MDPO())))),
    "papo": (Chain(maker=MASKED), Mix(((1.0, GRPO()), (1.0, Perception())))),
    "rethink": (Chain(maker=Together((GroupAdvantage(), Marked(Demonstrate(), "key")))),
                Mix(((1.0, GRPO()), (0.05, SFT())))),
    "rloo": (Chain(maker=LeaveOneOut()), rloo(0.05)),
    "reinforce": (Chain(steps=(RunningBaseline(),), maker=AsScored()),
                  reinforce(Adaptive(target=0.01))),
    "reinforce++": (Chain(maker=AsScored()), reinforce_pp()),
    "pass@k": (Chain(maker=PassAtK(3)), GRPO(truncate=2.0)),
    "sdft": (Chain(maker=Privileged()), ReverseKL(teacher="ema", ema=0.9)),
    "topk": (Chain(maker=Privileged()), TopK(4, teacher="seed")),
}


def loop(name: str, iterations: int) -> Loop:
    organizer, loss = METHODS[name]
    return Loop(
        name="losses", sampler=Independent(**toyland.SHORT), verifier=toyland.paid, samples=8,
        shard=8, iterations=iterations, gate=None, learn={"solver": Learn(
            organizer=organizer, loss=loss, optim=FAST)},
        evaluation=Evaluation(metric=exact, sampling=Sampling(temperature=0.0, max_new_tokens=4)))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


def perform(name: str, iterations: int, folder: Path, data: Path) -> None:
    engine = ToyEngine(("yes", "no", "left", "right"), seed=1)
    run(loop(name, iterations), toyland.samples(data, 12), {"solver": engine}, folder,
        dev=toyland.samples(data, 4, first=12), library=Library(folder / "images"))


def learnt(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for part in ("steps", "checkpoints")
            for p in sorted((folder / part).rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", METHODS)
def test_two_steps_in_one_go_or_in_two(name, tmp_path, data):
    """What losses carry from step to step (coefficients, averages, baselines) is stored."""
    perform(name, 2, tmp_path / "whole", data)
    for iterations in (1, 2):
        perform(name, iterations, tmp_path / "parts", data)
    whole, parts = learnt(tmp_path / "whole"), learnt(tmp_path / "parts")
    assert whole.keys() == parts.keys() and any("checkpoints" in f for f in whole)
    different = [f for f in whole if whole[f] != parts[f]]
    assert not different
    found = RunFolder(tmp_path / "whole").json("steps", "000001", "learned.json")["solver"]
    assert found["updates"] == 3 and found["grad_norm"] > 0


def test_a_maker_without_the_branch_is_refused_when_the_loop_is_built():
    for maker, loss in ((BestWorst(), vision_guided()), (GroupAdvantage(), Perception()),
                        (GroupAdvantage(), KTO())):
        with pytest.raises(SelfloopError, match=f"which loss {type(loss).__name__} cannot read"):
            replace(loop("mpo", 1), learn={"solver": Learn(
                organizer=Chain(maker=maker), loss=loss, optim=FAST)})


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_steps_on_the_embedded_model(name, tmp_path):
    """The same methods, unchanged, on real pictures and a real vision-language model."""
    digits.write(tmp_path / "data", "train", 24, seed=0)
    samples = load(tmp_path / "data" / "train.jsonl").filter(lambda s: s.meta["task"] == "even")
    engine = HFEngine(SEED_FOLDER, device="cpu")
    organizer, loss = METHODS[name]
    how = Learn(organizer=organizer, loss=loss, optim=Optim(lr=1e-4, updates=2, batch=16))
    made = replace(loop(name, 1), steps=2, samples=4, verifier=exact, evaluation=None,
                   sampler=Independent(n=6, temperature=1.5, max_new_tokens=8),
                   learn={"solver": how})
    before = {n: p.detach().clone() for n, p in engine.trainable().items()}
    run(made, samples, engine, tmp_path / "run", library=Library(tmp_path / "run" / "images"))
    steps = [RunFolder(tmp_path / "run").json("steps", f"{i:06d}", "learned.json")["solver"]
             for i in range(2)]
    assert max(s["updates"] for s in steps) == 2, "no signal in two steps"
    assert any(not before[n].equal(p) for n, p in engine.trainable().items())
    assert all(math.isfinite(x) for s in steps for x in s.values())
    assert engine.training_path == "shared prefix"
