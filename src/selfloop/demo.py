"""The embedded default: digits, the shipped seed and the methods as they are proven on it.

`demo` is one method at one seed with the arms that fit in minutes; `study` is any of the four
methods with every arm, for `make proof`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfloop.data import load
from selfloop.evaluate.sealed import Sealed
from selfloop.loop import Loop
from selfloop.organize.verify.combine import AllOf
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.vote import Agreement
from selfloop.proof import QUICK, TRAINED, Study, prove
from selfloop.recipes.agreement import agreement
from selfloop.recipes.dpo import dpo
from selfloop.recipes.grpo import grpo
from selfloop.recipes.star import star
from selfloop.roles import Engine
from selfloop.running import Watch
from selfloop.testbeds import digits
from selfloop.types import Rollout

SEED = Path(__file__).parent / "testbeds" / "seed"
"""The shipped seed model: an ordinary from_pretrained folder."""
TOKENS = 16
"""Longest answer: four digits, "=", two digits of a sum, end of turn, and room to be wrong."""


@dataclass(frozen=True)
class Scale:
    """How many questions of each kind a study uses."""

    pool: int
    dev: int
    test: int
    bare: int = 0
    """Pictures that nobody has labelled, beside the pool, for loops that read no labels."""
    key: int = 1
    """What the test pictures are drawn under: another key draws others of the same test scans."""


DEMO = Scale(pool=1000, dev=800, test=1192)
PROOF = Scale(pool=1000, dev=800, test=1192, bare=2000)


def digits_read(text: str) -> str | None:
    """What an answer claims to have seen: the evidence that questions and views vote on."""
    found = digits.parse(text)
    return found[0] if found else None


def follows(text: str, question: str) -> bool | None:
    """Whether an answer's conclusion follows from the digits that it read itself."""
    task = next((t for t, q in digits.prompts.items() if q == question), None)
    return None if task is None else digits.chain_ok(text, task)


def concludes(evidence: str, question: str) -> str | None:
    """The answer to a question when the picture shows these digits."""
    task = next((t for t, q in digits.prompts.items() if q == question), None)
    return None if task is None else digits.answer_to(task, evidence)


def chain_follows(rollout: Rollout) -> bool | None:
    """Rule check of a chain of thought: the conclusion follows from the digits read. No gold."""
    task = next((t for t, q in digits.prompts.items() if q == rollout.context.text), None)
    return None if task is None else bool(digits.chain_ok(rollout.text, task))


CHECKED = AllOf((exact, chain_follows))
"""Right by the gold answer, and for the reason that it gives."""


CHAIN_VOTE = Agreement(digits_read, follows, share=0.0, least=1, concludes=concludes)
"""The seed's vote at test time for methods that read answers: on the digits of the chains that
hold, concluded by the rule. Stronger than the majority of final answers."""


def recipes(seed: int) -> dict[str, Loop]:
    """The four methods at the settings at which they are proven on digits."""
    common: dict[str, Any] = {"max_new_tokens": TOKENS, "seed": seed}
    tuned: dict[str, Any] = {**common, "iterations": 3, "updates": 100, "batch": 64}
    return {
        "star": star(CHECKED, exact, n=8, lr=5e-4, views=0.5, copies=3, per_sample=1, **tuned),
        "dpo": dpo(CHECKED, exact, n=8, lr=5e-5, beta=0.1, anchor=0.5, views=0.5, copies=2,
                   **{**tuned, "batch": 32}),
        "grpo": grpo(CHECKED, exact, n=8, samples=32, iterations=3, steps=40, save_every=20,
                     lr=1e-4, view_share=0.5, **common),
        "agreement": agreement(Agreement(digits_read, follows, concludes=concludes), exact,
                               lr=5e-4, views=0.5, copies=4, questions=3, seen=2, samples=1000,
                               **{**tuned, "iterations": 10, "updates": 150}),
    }


def make_engine() -> Engine:
    """The embedded seed model in the Hugging Face engine, on one thread."""
    from selfloop.engines.hf import HFEngine

    engine = HFEngine(str(SEED), threads=1)
    engine.name = "embedded"
    return engine


def data(folder: Path, scale: Scale) -> dict[str, Path]:
    """Write the pictures and questions of every split, once; returns their files."""
    found = {}
    for name, split, n, seed in (("pool", "train", scale.pool, 1), ("bare", "train", scale.bare, 2),
                                 ("dev", "dev", scale.dev, 1),
                                 ("test", "test", scale.test, scale.key)):
        fresh = name == "test" and seed != 1
        place = folder / (f"test-{seed}-{n}" if fresh else name)
        path = place / f"{split}.jsonl"
        if n and not path.exists():
            digits.write(place, split, n, seed)  # type: ignore[arg-type]
        found[name] = path
    place = folder / "labelled"
    path = place / "train.jsonl"
    if not path.exists():
        digits.write(place, "train", digits.SEED_LABELS, -1)
    found["labelled"] = path
    return found


def study(method: str, seed: int, folder: Path, *, scale: Scale = PROOF,
          arms: tuple[str, ...] = TRAINED, shared: Path | None = None) -> Study:
    """One method at one seed on digits, ready to be proven in `folder`."""
    files = data((shared or folder) / "data", scale)
    return Study(
        method=method, seed=seed, loop=recipes(seed)[method], pool=load(files["pool"]),
        dev=load(files["dev"]), labelled=load(files["labelled"]),
        test=Sealed(files["test"], load), make_engine=make_engine, folder=folder,
        lr=5e-4, control_lr=1e-4, arms=arms, bare=load(files["bare"]) if scale.bare else (),
        vote=None if method == "agreement" else CHAIN_VOTE,
        shared=shared / f"seed{seed}" if shared else None)


def demo(folder: str | Path = "runs/demo", *, watch: Watch | None = None,
         scale: Scale = DEMO) -> Mapping[str, Any]:
    """The main job on the embedded default; writes summary.json, answers and the report."""
    from selfloop.report.page import write_report

    chosen = study("star", 0, Path(folder), scale=scale, arms=QUICK)
    summary = prove(chosen, watch=watch)
    write_report(Path(folder))
    return summary

