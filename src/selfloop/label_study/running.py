"""Run a study: what is missing, seed by seed; then the figures from what is kept."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from selfloop.evaluate.answers import Answer, read, write
from selfloop.label_study.design import LabelStudy
from selfloop.label_study.points import finished, point
from selfloop.label_study.summary import write_summary
from selfloop.roles import SelfloopError
from selfloop.running import Watch
from selfloop.store import RunFolder, put_json


def study_labels(study: LabelStudy, *, workers: int = 1, watch: Watch | None = None,
                 tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Make the missing points, seed by seed, and write the summary; returns it.

    A killed study goes on inside the arm where it was. A seed counts when all its budgets are
    done, so a first summary stands after the first seed.
    """
    wanted = [(b, s) for s in study.seeds for b in study.budgets if not finished(study, b, s)]
    if workers < 2 or len(wanted) < 2:
        for budget, seed in wanted:
            point(study, budget, seed, watch)
            _tell(study, budget, seed, tell)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            tasks = {pool.submit(point, study, b, s): (b, s) for b, s in wanted}
            for task in as_completed(tasks):
                task.result()
                _tell(study, *tasks[task], tell)
    return collected(study, study.folder)


def _tell(study: LabelStudy, budget: int, seed: int, tell: Callable[[str], None]) -> None:
    where = RunFolder(study.place(budget, seed))
    said = ", ".join(f"{arm} {100 * (where.json(f'{arm}.json') or {})['accuracy']:.1f}"
                     for arm in study.arms(budget))
    tell(f"{budget} labels, seed {seed}: {said}")
    if all(finished(study, b, seed) for b in study.budgets):
        collected(study, study.folder)


def collected(study: LabelStudy, out: Path) -> dict[str, Any]:
    """Gather the finished seeds into answers.parquet and facts.json, and write the summary.

    Raises SelfloopError when no seed has all its budgets.
    """
    seeds = [s for s in study.seeds if all(finished(study, b, s) for b in study.budgets)]
    missing = [f"{b} labels, seed {s}" for s in study.seeds for b in study.budgets
               if not finished(study, b, s)]
    if not seeds:
        raise SelfloopError(f"{study.folder}: no seed has all its label budgets yet (missing: "
                            f"{missing[0]}): give the same command again to go on")
    answers: list[Answer] = []
    accounts = []
    for seed in seeds:
        for budget in study.budgets:
            where = RunFolder(study.place(budget, seed))
            for arm in study.arms(budget):
                accounts.append(where.json(f"{arm}.json"))
                answers += [_bare(a) for a in read(where.path / f"{arm}.parquet")]
    how = study.supervise
    vote = study.vote(0).sampler
    put_json(out / "facts.json", {
        "model": study.model, "budgets": list(study.budgets), "seeds": seeds, "missing": missing,
        "pool": len(study.pool), "bare": len(study.bare), "dev": len(study.dev),
        "test_sha256": study.test.commitment(),
        "loops": {arm: repr(make(0)) for arm, make in study.loops.items()},
        "reads": {arm: bool(make(0).labels_read) for arm, make in study.loops.items()},
        "vote": repr(vote), "supervision": {
            "updates": how.updates, "more": how.more, "batch": how.batch, "lr": how.lr,
            "more_lr": how.more_lr, "labels": how.labels, "views": how.views},
        "accounts": accounts})
    write(out / "answers.parquet", answers)
    return write_summary(out)


def _bare(answer: Answer) -> Answer:
    """What figures need and no more: the answers of every point stay in their own folders."""
    return answer.model_copy(update={"text": "", "gold": None, "parsed": None, "task": ""})
