"""The study on one's own data: train, dev and test of a run.yaml, its model and its method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from selfloop.collect.guided import structured
from selfloop.config import RunConfig, build_engine, build_loop, load_data
from selfloop.data import load
from selfloop.evaluate.sealed import Sealed
from selfloop.label_study.design import SHARES, LabelStudy, Supervision, budgets_of
from selfloop.loop import Learn, Loop
from selfloop.roles import Engine, SelfloopError
from selfloop.types import Sample

UPDATES = 50
"""Of an iteration, where run.yaml's options name none: arms are matched by updates."""


def own_study(config: RunConfig, *, shares: Sequence[float] = SHARES,
              seeds: Sequence[int] = (0, 1, 2), folder: Path | None = None) -> LabelStudy:
    """The study of a run.yaml whose method is settled; its folder is the run's with "-labels".

    The pool is every labelled row of train: those with worked solutions if there are any, else
    those with an answer; a label-free loop draws from the other rows as well. Raises
    SelfloopError without dev, test or labels, or when the method is supervised training itself.
    """
    data = load_data(config)
    test = config.data.test
    if data.dev is None or test is None or not test.exists():
        raise SelfloopError("a study of labels needs data.dev and data.test in run.yaml: make the "
                            "splits with `selfloop init`")
    if config.method == "supervised":
        raise SelfloopError("method: supervised is what a study of labels compares with: name the "
                            "loop to study, such as method=star or method=agreement")
    pool = _labelled(data.train, config.data.train)
    make_loop = partial(loop_at, config)
    loop = make_loop(config.seed)
    assert loop.evaluation is not None
    return LabelStudy(
        folder=folder or config.folder.with_name(f"{config.folder.name}-labels"), pool=pool,
        dev=data.dev, test=Sealed(test, partial(_test, prompt=config.prompt)),
        make_engine=partial(_engine, config), supervise=_supervision(config, loop),
        loops={config.method: make_loop}, vote=make_loop,
        budgets=budgets_of(shares, len(pool)), seeds=tuple(seeds), model=config.model,
        bare=_others(data.train, pool))


def loop_at(config: RunConfig, seed: int) -> Loop:
    """The configured loop at a seed, with a fixed number of updates an iteration."""
    loop = build_loop(config.model_copy(update={"seed": seed}))

    def fixed(how: Learn) -> Learn:
        return replace(how, optim=replace(how.optim, updates=how.optim.updates or UPDATES))

    return replace(loop, learn={role: fixed(how) for role, how in loop.learn.items()})


def _supervision(config: RunConfig, loop: Loop) -> Supervision:
    """Twice the loop's updates to start with, as many again beside the loop; the higher of the
    loop's rate and the one that supervised training would choose."""
    own = next(iter(loop.learn.values())).optim
    given = {k: v for k, v in config.options.items() if k == "max_new_tokens"}
    alone = build_loop(config.model_copy(update={"method": "supervised", "options": given}))
    more = loop.iterations * loop.steps * (own.updates or UPDATES)
    rate = max(own.lr, alone.learn["solver"].optim.lr)
    assert loop.evaluation is not None
    views = config.options.get("views", 0.5)
    return Supervision(
        metric=loop.evaluation.metric, updates=2 * more, more=more, batch=own.batch, lr=rate,
        more_lr=rate, views=float(views) if isinstance(views, int | float) else 0.5,
        max_new_tokens=loop.evaluation.sampling.max_new_tokens)


def _labelled(train: Sequence[Sample], path: Path) -> list[Sample]:
    full = [s for s in train if s.rationale is not None]
    found = full or [s.model_copy(update={"rationale": str(s.answer)})
                     for s in train if s.answer is not None]
    if len(found) < 2:
        raise SelfloopError(f"{path}: {len(found)} rows have a label, and a study of labels needs "
                            "a pool of them: add `answer` (or `chain`) to its rows")
    return found


def _others(train: Sequence[Sample], pool: Sequence[Sample]) -> list[Sample]:
    """The rows of train outside the pool, which the study reads no label of."""
    labelled = {s.id for s in pool}
    return [s for s in train if s.id not in labelled]


def _engine(config: RunConfig, weights: Path | None) -> Engine:
    return build_engine(config if weights is None
                        else config.model_copy(update={"model": str(weights)}))


def _test(path: Path, prompt: str) -> Sequence[Sample]:
    return structured(load(path), prompt)
