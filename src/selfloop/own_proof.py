"""The proof on one's own data: the arms of a run, asked about a test split no loop has read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from selfloop.casting import cast
from selfloop.collect.guided import structured
from selfloop.config import RunConfig, build_engine, build_loop, load_data
from selfloop.data import load
from selfloop.evaluate.sealed import Sealed
from selfloop.proof import Study
from selfloop.roles import SelfloopError
from selfloop.types import Sample

ARMS = ("loop", "control_steps", "control_flops", "shuffled")


def study_of(config: RunConfig) -> Study:
    """The study of a run.yaml whose method is settled.

    Its folder is the run's with "-proof" appended; a run that was already made there is copied
    and not repeated. With worked solutions among the labels there are two more arms: supervised
    on bare answers, and the skyline. Raises SelfloopError without dev, test or labels.
    """
    data = load_data(config)
    test = config.data.test
    if data.dev is None or test is None or not test.exists():
        raise SelfloopError("a proof needs data.dev and data.test in run.yaml: make the splits "
                            "with `selfloop init`")
    full = [s for s in data.train if s.rationale is not None]
    labelled: Sequence[Sample] = full or [
        s.model_copy(update={"rationale": str(s.answer)})
        for s in data.train if s.answer is not None]
    if not labelled:
        raise SelfloopError(f"{config.data.train} has no labels: the control that every gain is "
                            "measured against trains on labels only")
    folder = config.folder.with_name(f"{config.folder.name}-proof")
    _reuse(config.folder, folder / "loop")
    loop = build_loop(config)
    rate = max(how.optim.lr for how in loop.learn.values())
    options = {k: v for k, v in config.options.items() if k == "max_new_tokens"}
    learn_at = build_loop(config.model_copy(update={
        "method": "supervised", "options": options})).learn["solver"].optim.lr
    return Study(
        method=config.method, seed=config.seed, loop=loop, pool=data.train, dev=data.dev,
        labelled=labelled, test=Sealed(test, partial(_test, prompt=config.prompt)),
        make_engine=partial(build_engine, config), cast=partial(cast, config), folder=folder,
        lr=max(rate, learn_at), control_lr=max(rate, learn_at),
        arms=(*ARMS, "supervised_on_answers", "skyline") if full else ARMS)


def _test(path: Path, prompt: str) -> Sequence[Sample]:
    return structured(load(path), prompt)


def _reuse(made: Path, place: Path) -> None:
    """Take over a run that is already there; its own copy, so that both can go on."""
    if (made / "loop.json").exists() and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_name(".loop.part")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(made, aside)
        aside.rename(place)
