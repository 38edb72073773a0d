"""The study on the embedded digits, from a model that has read text and has seen no label."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from selfloop.data import load
from selfloop.demo import CHECKED, TOKENS, concludes, digits_read, follows
from selfloop.evaluate.sealed import Sealed
from selfloop.label_study.design import SHARES, LabelStudy, Supervision, budgets_of
from selfloop.loop import Loop
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.vote import Agreement
from selfloop.recipes.agreement import agreement
from selfloop.recipes.star import star
from selfloop.roles import Engine
from selfloop.store import put_folder
from selfloop.testbeds import digits

POOL, DEV, TEST = 2000, 400, 596
BARE = 3000
"""Pictures of train scans beyond the pool that nobody has labelled: they cost nothing."""
ITERATIONS, UPDATES = 8, 200
"""Of each loop; their product is what the supervised arm goes on for."""
RATE = 2e-3
"""Of the supervised stage, the better of two on dev at 300 labels; half of it in all that follows.
"""
A_STEP = 900
"""Questions that a loop draws for in an iteration."""
VOTE = Agreement(digits_read, follows, concludes=concludes)
"""The label-free check: agreement of what answers claim to see, over questions and views."""


def supervision(updates: int = 800, more: int = ITERATIONS * UPDATES) -> Supervision:
    """The supervised stage, in which every arm starts."""
    return Supervision(metric=exact, updates=updates, more=more, lr=RATE, more_lr=RATE / 2,
                       max_new_tokens=TOKENS)


def label_free(seed: int) -> Loop:
    """The loop that reads no label."""
    return agreement(VOTE, exact, questions=3, seen=2, max_new_tokens=TOKENS, samples=A_STEP,
                     iterations=ITERATIONS, updates=UPDATES, batch=32, lr=RATE / 2, per_sample=2,
                     copies=4, views=0.5, seed=seed)


def rule_checked(seed: int) -> Loop:
    """The loop that checks answers against the gold answer, and the chain against itself."""
    return star(CHECKED, exact, n=8, max_new_tokens=TOKENS, samples=A_STEP,
                iterations=ITERATIONS, updates=UPDATES, batch=32, lr=RATE / 2, per_sample=1,
                copies=8, views=0.5, seed=seed)


def engine(start: Path, weights: Path | None) -> Engine:
    """The embedded model with the given weights, on one thread, its language part frozen.

    With the language part learning, the supervised stage was fragile: at one rate, 300 labels
    ended at 31 or at 53 % of dev, depending on which they were (docs/label-efficiency.md).
    """
    from selfloop.engines.hf import HFEngine

    made = HFEngine(str(weights or start), threads=1, freeze=("language",))
    made.name = "embedded, text only" if weights is None else "embedded"
    return made


def text_only(folder: Path, updates: int | None = None) -> Path:
    """The start model's folder, made on the first call (one to two minutes)."""
    from selfloop.testbeds.text_start import UPDATES as MOST
    from selfloop.testbeds.text_start import text_start

    if not folder.exists():
        put_folder(folder, lambda aside: text_start(aside, updates=updates or MOST))
    return folder


def digits_study(folder: Path, *, shares: tuple[float, ...] = SHARES,
                 seeds: tuple[int, ...] = (0, 1, 2), pool: int = POOL, dev: int = DEV,
                 test: int = TEST, bare: int = BARE, text_updates: int | None = None,
                 supervise: Supervision | None = None) -> LabelStudy:
    """The study that docs/label-efficiency.md reports, kept in `folder`."""
    files = {}
    for name, split, n, key in (("train", "train", pool, 1), ("bare", "train", bare, 2),
                                ("dev", "dev", dev, 1), ("test", "test", test, 1)):
        files[name] = folder / "data" / name / f"{split}.jsonl"
        if not files[name].exists():
            digits.write(files[name].parent, split, n, key)  # type: ignore[arg-type]
    start = text_only(folder / "text-only", text_updates)
    return LabelStudy(
        folder=folder, pool=load(files["train"]), dev=load(files["dev"]),
        test=Sealed(files["test"], load), make_engine=partial(engine, start),
        supervise=supervise or supervision(),
        loops={"agreement": label_free, "star": rule_checked}, vote=label_free,
        budgets=budgets_of(shares, pool), seeds=seeds, model="embedded, text only",
        bare=load(files["bare"]) if bare else ())
