"""One point of the study: one budget at one seed, every arm a run of its own and kept when done."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfloop.evaluate.answers import accuracy, read, write
from selfloop.evaluate.arms import final_answers, votes
from selfloop.label_study.design import LabelStudy, asked_plainly
from selfloop.loop import Loop
from selfloop.pictures import Library
from selfloop.roles import Engine, SelfloopError
from selfloop.running import Watch, run
from selfloop.store import RunFolder, put_folder, put_json
from selfloop.types import Sample

STAGES = ("gathered", "learned", "evaluated", "decided")


def point(study: LabelStudy, budget: int, seed: int, watch: Watch | None = None) -> None:
    """Make every arm of a point that is not there; a finished point costs nothing."""
    place = study.place(budget, seed)
    for arm in study.arms(budget):
        if not (place / f"{arm}.json").exists():
            _arm(study, arm, budget, seed, watch)


def finished(study: LabelStudy, budget: int, seed: int) -> bool:
    """Whether every arm of a point has been asked."""
    place = study.place(budget, seed)
    return all((place / f"{arm}.json").exists() for arm in study.arms(budget))


def _arm(study: LabelStudy, arm: str, budget: int, seed: int, watch: Watch | None) -> None:
    """Train, choose on dev, ask the test questions, keep answers and account, drop weights."""
    place = study.place(budget, seed)
    labelled, rest = study.split(budget, seed)
    start = _start(study, labelled, place, seed, watch)
    runs = [place / "start"]
    if arm == "vote":
        runs.append(place / "supervised")
        loop, given = asked_plainly(study.vote(seed)), []
    elif arm == "supervised":
        loop, given = study.supervise(budget, seed, again=True), labelled
    else:
        loop = asked_plainly(study.loops[arm](seed))
        given = shown_to(loop, rest, study.bare)
    if arm != "vote":
        _run(study, loop, given, start, place / arm, watch)
        runs.append(place / arm)
    engine, kept = _chosen(study, start, [RunFolder(r) for r in runs])
    engine.bind(Library(place / "images").open)
    engine.publish(0, 0)
    test = study.test.open([RunFolder(r) for r in runs], [*study.pool, *study.dev])
    found = votes(loop, test, {"solver": engine}) if arm == "vote" else final_answers(
        loop, test, {"solver": engine}, 0, arm)
    named = f"{arm}@{budget}"
    write(place / f"{arm}.parquet",
          [a.model_copy(update={"seed": seed, "arm": named}) for a in found])
    put_json(place / f"{arm}.json", {
        "arm": arm, "labels": budget, "seed": seed, "kept": kept,
        "accuracy": accuracy(found), **account([RunFolder(r) for r in runs]),
        "labels_answer_only": 0 if arm not in study.loops else
        RunFolder(runs[-1]).iterations()[-1].labels_answer_only})
    if finished(study, budget, seed):  # the answers stand for the weights from here on
        for folder in (place / "model", *place.glob("*/checkpoints")):
            shutil.rmtree(folder, ignore_errors=True)


def shown_to(loop: Loop, rest: Sequence[Sample], bare: Sequence[Sample] = ()) -> list[Sample]:
    """The rest of the pool as a loop may see it: with answers where it reads labels, else bare,
    and what was never labelled beside it."""
    if not loop.labels_read:
        return [s.unlabelled() for s in (*rest, *bare)]
    given = [s.model_copy(update={"rationale": None}) for s in rest if s.answer is not None]
    if not given:
        raise SelfloopError(f"loop {loop.name!r} reads answers, and no question outside the "
                            "labelled ones has one: use a loop that reads no labels")
    return given


def _start(study: LabelStudy, labelled: Sequence[Sample], place: Path, seed: int,
           watch: Watch | None) -> Path:
    """The model of the first updates on the budget's labels, from which all arms go on."""
    loop = study.supervise(len(labelled), seed)
    folder = place / "model"
    if not folder.exists():
        engine = _run(study, loop, labelled, None, place / "start", watch)
        version = RunFolder(place / "start").iterations()[-1].version
        engine.load_state(RunFolder(place / "start").checkpoint(version) / "solver")
        put_folder(folder, getattr(engine, "save_merged", engine.save))
    return folder


def _run(study: LabelStudy, loop: Loop, given: Sequence[Sample], start: Path | None, folder: Path,
         watch: Watch | None) -> Engine:
    engine = study.make_engine(start)
    run(loop, given, engine, folder, dev=study.dev, library=Library(folder / "images"),
        watch=watch)
    return engine


def _chosen(study: LabelStudy, start: Path, runs: Sequence[RunFolder]) -> tuple[Engine, str]:
    """The start or the last version, whichever answers more dev questions right.

    The same two candidates for every arm, so that no arm has more chances than another.
    """
    engine = study.make_engine(start)
    last = runs[-1].iterations()[-1]
    before = accuracy(read(runs[0].iteration(runs[0].iterations()[-1].index) / "answers.parquet"))
    if accuracy(read(runs[-1].iteration(last.index) / "answers.parquet")) < before:
        return engine, "start"
    engine.load_state(runs[-1].checkpoint(last.version) / "solver")
    return engine, "last"


def account(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Tokens, FLOPs, updates and seconds of runs that follow each other."""
    last = [r.iterations()[-1] for r in runs]
    seconds = sum(e["seconds"] for r in runs for e in r.events() if e["event"] in STAGES)
    learned = [r.json("steps", f"{s:06d}", "learned.json") or {}
               for r, end in zip(runs, last, strict=True) for s in range(end.version)]
    return {
        "tokens": {k: sum(i.tokens[k] for i in last) for k in last[0].tokens},
        "flops": sum(i.flops for i in last), "seconds": round(seconds, 1),
        "updates": sum(int(role["updates"]) for step in learned for role in step.values()),
    }
