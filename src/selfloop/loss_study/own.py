"""The study on one's own data: train, dev and test of a run.yaml, its model and its verifier."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from selfloop.collect.guided import structured
from selfloop.config import RunConfig, build_engine, load_data
from selfloop.data import load
from selfloop.evaluate.sealed import Sealed
from selfloop.loss_study.design import Asked, Bed, Budget, LossStudy
from selfloop.methods import verifier_named
from selfloop.roles import SelfloopError
from selfloop.types import Sample

LONGEST = 64
"""Tokens of an answer, where run.yaml's options name no max_new_tokens."""


def own_study(config: RunConfig, *, budget: Budget, seeds: Sequence[int] = (0, 1, 2),
              folder: Path | None = None) -> LossStudy:
    """The study of a run.yaml, whatever its method; its folder is the run's with "-losses".

    Loops draw for the rows of train that have an answer. Those with worked solutions are what the
    arms on labels train on; without any there are no such arms. Raises SelfloopError without dev,
    test or answers.
    """
    data, test = load_data(config), config.data.test
    if data.dev is None or test is None or not test.exists():
        raise SelfloopError("a study of losses needs data.dev and data.test in run.yaml: make the "
                            "splits with `selfloop init`")
    pool = [s for s in data.train if s.answer is not None]
    if not pool:
        raise SelfloopError(f"{config.data.train}: no row has an answer, which the verifier of a "
                            "study of losses reads: add `answer` to its rows")
    held = Sealed(test, partial(_test, prompt=config.prompt))
    longest = config.options.get("max_new_tokens", LONGEST)
    verifier = verifier_named(config.verifier, config.home)
    bed = Bed(
        name=config.folder.name, make_engine=partial(build_engine, config), pool=pool,
        labelled=[s for s in pool if s.rationale is not None], dev=data.dev,
        asked={"test": Asked(held), "no picture": Asked(held, blind=True)},
        verifier=verifier, metric=verifier,
        max_new_tokens=longest if isinstance(longest, int) else LONGEST)
    place = folder or config.folder.with_name(f"{config.folder.name}-losses")
    return LossStudy(folder=place / bed.name, bed=bed, budget=budget, seeds=tuple(seeds))


def _test(path: Path, prompt: str) -> Sequence[Sample]:
    return structured(load(path), prompt)
