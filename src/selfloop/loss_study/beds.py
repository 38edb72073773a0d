"""The two testbeds of the study, from the shipped seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from selfloop.data import load
from selfloop.demo import CHAIN_VOTE, CHECKED, SEED, TOKENS, make_engine
from selfloop.evaluate.sealed import Sealed
from selfloop.evaluate.testbed_figures import count
from selfloop.loss_study.design import Asked, Bed, Budget, LossStudy
from selfloop.organize.verify.rules import exact
from selfloop.roles import Engine, SelfloopError
from selfloop.testbeds import digits, scenes

DEV, TEST = 298, 1043
"""Questions; those of test go seven times round the 149 blocks of test scans."""


def digits_bed(folder: Path, *, pool: int = 1024, dev: int = DEV, test: int = TEST) -> Bed:
    """Digits: right answers whose chain holds are rewarded; the vote is on the digits read."""
    files = {name: _written(digits.write, folder / name, split, n, key) for name, split, n, key in (
        ("pool", "train", pool, 1), ("labelled", "train", digits.SEED_LABELS, -1),
        ("dev", "dev", dev, 1), ("test", "test", test, 1))}
    held = Sealed(files["test"], load, look_alike=False)  # other scans by construction
    return Bed(
        name="digits", make_engine=make_engine, pool=load(files["pool"]),
        labelled=load(files["labelled"]), dev=load(files["dev"]),
        asked={"test": Asked(held), "no picture": Asked(held, blind=True)},
        verifier=CHECKED, metric=exact, vote=CHAIN_VOTE, max_new_tokens=TOKENS)


def scenes_bed(folder: Path, *, pool: int = 1024, dev: int = DEV, test: int = TEST) -> Bed:
    """Scenes: exact answers are rewarded; asked on the test split and on the shifted one."""
    files = {name: _written(scenes.write, folder / name, split, n, key) for name, split, n, key in (
        ("pool", "train", pool, 1), ("dev", "dev", dev, 1), ("test", "test", test, 1),
        ("shifted", "shifted", test, 1))}
    held = Sealed(files["test"], load, look_alike=False)
    shifted = Sealed(files["shifted"], load, look_alike=False)
    return Bed(
        name="scenes", make_engine=scenes_engine, pool=load(files["pool"]),
        labelled=load(_labelled(folder / "labelled")), dev=load(files["dev"]),
        asked={"test": Asked(held), "shifted": Asked(shifted),
               "no picture": Asked(held, blind=True)},
        verifier=exact, metric=exact, max_new_tokens=scenes.TOKENS, count=count)


BEDS: dict[str, Callable[..., Bed]] = {"digits": digits_bed, "scenes": scenes_bed}


def scenes_engine() -> Engine:
    """The shipped seed of the scenes, on one thread."""
    from selfloop.engines.hf import HFEngine

    engine = HFEngine(str(SEED.parent / "scenes_seed"), threads=1)
    engine.name = "embedded, scenes"
    return engine


def bed_study(name: str, folder: Path, *, seeds: tuple[int, ...] = (0, 1, 2),
              budget: Budget | None = None) -> LossStudy:
    """The study that docs/loss-study.md reports on one testbed, kept in `folder`/`name`.

    Raises SelfloopError for a testbed that does not exist.
    """
    if name not in BEDS:
        raise SelfloopError(f"no testbed {name!r}: expected one of {', '.join(BEDS)}")
    place, budget = folder / name, budget or Budget()
    pool = budget.steps * budget.samples
    return LossStudy(folder=place, bed=BEDS[name](place / "data", pool=pool), budget=budget,
                     seeds=seeds)


def _written(write: Callable[..., Path], folder: Path, split: str, n: int, key: int) -> Path:
    path = folder / f"{split}.jsonl"
    return path if path.exists() else write(folder, split, n, key)


def _labelled(folder: Path) -> Path:
    """The labels that the shipped scenes seed has seen: every other one is a caption."""
    path = folder / "train.jsonl"
    if path.exists():
        return path
    others = [task for task in scenes.TASKS if task != "caption"]
    return scenes.write(folder, "train", scenes.SEED_LABELS, -1,
                        tasks=[t for o in others for t in ("caption", o)])
