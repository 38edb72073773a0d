"""The toy world that contract tests share: samples with pictures, and one loop a contract."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from selfloop.collect.env import EnvSampler
from selfloop.collect.independent import Independent
from selfloop.engines.toy import ToyEngine
from selfloop.evaluate.gate import Gate
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.distill import ReverseKL
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.preference import DPO, MDPO
from selfloop.optimize.losses.rl import GRPO
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.refine.filters import Role
from selfloop.organize.signals import (
    BestWorst,
    Demonstrate,
    GroupAdvantage,
    Privileged,
    Views,
)
from selfloop.organize.verify.environment import EnvironmentReturn
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library, read
from selfloop.roles import Optim, Sampling
from selfloop.running import run
from selfloop.types import Context, Media, Message, Part, Rollout, Sample

SHORT = {"n": 6, "max_new_tokens": 4}
FAST = Optim(lr=0.1, updates=4, batch=32)


def pictures(folder: Path, n: int) -> list[Media]:
    """n one-colour PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(n):
        path = folder / f"{i}.png"
        if not path.exists():
            Image.new("RGB", (8, 8), (i * 7 % 256, i * 31 % 256, 90)).save(path)
        found += read(path)
    return found


def samples(folder: Path, n: int = 12, first: int = 0) -> list[Sample]:
    """Questions about one picture each, answered yes or no."""
    return [
        Sample(
            prompt=(Message(role="user", content=(Part(type="image"), Part(text="is it red ?"))),),
            media=(medium,), answer="yes" if i % 3 else "no", rationale="yes" if i % 3 else "no",
            meta={"task": "colour"},
        )
        for i, medium in enumerate(pictures(folder, first + n)[first:])
    ]


@dataclass
class TwoTurns:
    """Say anything, then see a second picture: `left` there is right."""

    def reset(self, sample: Sample, key: str) -> Context:
        self.sample, self.turn = sample, 0
        return sample.context

    def step(self, text: str):
        self.turn += 1
        if self.turn == 1:
            return ("now look", self.sample.media[0].with_op("blank")), 0.0, False
        return (), float(text.startswith("left")), True


@dataclass(frozen=True)
class ProposeAndSolve:
    """The proposer says how hard its question shall be; the solver answers it."""

    async def __call__(self, generate, sample: Sample) -> list[Rollout]:
        short = Sampling(max_new_tokens=2)
        asked = await generate(sample, n=4, role="proposer", sampling=short)
        solved: list[Rollout] = []
        for question in asked:
            solved += await generate(sample.context.said("user", question.text or "easy"), n=2,
                                     role="solver", sampling=short)
        return [*asked, *solved]


def propose_score(rollout: Rollout, answer):
    """Proposers are paid for `hard`, solvers for the gold answer; empty text abstains."""
    if not rollout.text:
        return None
    word = "hard" if rollout.role == "proposer" else answer
    return rollout.text.split()[0] == word


def paid(rollout: Rollout, answer):
    """First word right."""
    return rollout.text.split()[:1] == [answer]


def _learn(maker, loss, optim=FAST, **more) -> dict[str, Learn]:
    return {"solver": Learn(organizer=Chain(maker=maker, **more), loss=loss, optim=optim)}


def loops() -> dict[str, Loop]:
    """Every contract of design.md, section 2, as a loop of two or more steps."""
    dev = Evaluation(metric=exact, sampling=Sampling(temperature=0.0, max_new_tokens=4))
    episodes = Evaluation(metric=EnvironmentReturn(), sampler=EnvSampler(
        TwoTurns, n=1, max_turns=3, max_new_tokens=3, temperature=0.0))
    draw = Independent(**SHORT)
    shared = {"evaluation": dev, "gate": Gate(), "iterations": 2, "steps": 2, "samples": 8,
              "shard": 4}
    privileged = Learn(organizer=Chain(maker=Privileged()), loss=ReverseKL(), optim=FAST)
    return {
        "environment": Loop(name="environment", sampler=EnvSampler(TwoTurns, n=4, max_turns=3,
                            max_new_tokens=3), verifier=EnvironmentReturn(),
                            learn=_learn(GroupAdvantage(), GRPO(kl=0.01, entropy=0.001)),
                            **{**shared, "evaluation": episodes}),
        "mdpo": Loop(name="mdpo", sampler=draw, verifier=paid,
                     learn=_learn(BestWorst(corrupted="crop"), MDPO()), **shared),
        "proposer": Loop(name="proposer", sampler=ProposeAndSolve(), verifier=propose_score, learn={
            role: Learn(organizer=Chain(steps=(Role(role),), maker=GroupAdvantage()),
                        loss=GRPO(), optim=FAST) for role in ("solver", "proposer")}, **shared),
        "distill": Loop(name="distill", sampler=draw, verifier=paid, learn={"solver": privileged},
                        **shared),
        "mixture": Loop(name="mixture", sampler=draw, verifier=paid, learn=_learn(
            BestWorst(), Mix(((0.8, DPO()), (0.2, SFT("chosen"))))), **shared),
        "waves": Loop(name="waves", sampler=draw, verifier=paid, max_waves=3, learn=_learn(
            GroupAdvantage(), GRPO(), wave=8), **{**shared, "samples": 4}),
        "stale": Loop(name="stale", sampler=draw, verifier=paid, max_staleness=1, learn=_learn(
            GroupAdvantage(), GRPO()), **shared),
        "seldom": Loop(name="seldom", sampler=draw, verifier=paid, save_every=5, learn=_learn(
            Views(Demonstrate()), SFT()), **{**shared, "steps": 6}),
    }


def perform(name: str, folder: Path, data: Path) -> list:
    """Run one contract in `folder`, on pictures under `data`."""
    loop = loops()[name]
    words = ("yes", "no", "left", "right", "easy", "hard")
    engines = {"solver": ToyEngine(words, seed=1)}
    if name == "proposer":
        engines["proposer"] = ToyEngine(words, seed=2)
    train = samples(data, 12)
    dev = samples(data, 6, first=12)
    return run(loop, train, engines, folder, dev=dev, library=Library(folder / "images"))

