"""The proof: a method beside every arm that it has to beat, on questions that no loop has read.

Each arm is a run of its own in a folder of its own, so a proof that is killed goes on where it
was. Every figure of summary.json can be recomputed from the stored answers.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfloop import elsewhere
from selfloop.evaluate.answers import Answer, accuracy, read, write
from selfloop.evaluate.arms import Spent, final_answers, shuffled, spent, votes
from selfloop.evaluate.sealed import Sealed
from selfloop.evaluate.statistics import paired_gain
from selfloop.loop import Loop
from selfloop.pictures import Library
from selfloop.recipes.supervised import supervised
from selfloop.roles import Engine, SelfloopError, Verifier
from selfloop.running import Watch, run
from selfloop.store import RunFolder, put_json
from selfloop.types import Branch, Sample

TRAINED = ("loop", "control_steps", "control_flops", "shuffled", "supervised_on_answers", "skyline")
"""Arms that are runs; `seed_accuracy`, `testtime_vote` and `no_image` only answer."""
QUICK = ("loop", "control_steps")


def alone(engine: Engine) -> dict[str, Engine]:
    """The cast of a study whose model plays every role."""
    return {"solver": engine}


@dataclass(frozen=True)
class Study:
    """One method at one seed, with what every arm needs. `make_engine` loads the seed model."""

    method: str
    seed: int
    loop: Loop
    pool: Sequence[Sample]
    dev: Sequence[Sample]
    labelled: Sequence[Sample]
    """The full labels that the seed model was made with: what the control trains on."""
    test: Sealed
    make_engine: Callable[[], Engine]
    folder: Path
    cast: Callable[[Engine], dict[str, Engine]] = alone
    """Who plays the other roles beside this solver: a judge on another model."""
    lr: float = 1e-3
    """Learning rate of the supervised arms on the pool: one at which they do well."""
    control_lr: float = 1e-3
    """Learning rate of the control on the labels: a control is no use if it is crippled."""
    arms: tuple[str, ...] = TRAINED
    vote: Verifier | None = None
    """What the seed votes with at test time when the loop's own verifier reads labels: the part
    of it that does not. None = the plain majority."""
    skyline_updates: int = 300
    bare: Sequence[Sample] = ()
    """Questions beyond the pool that nobody has labelled: a loop that reads no labels draws from
    them, too. No arm that trains on gold values is given them."""
    shared: Path | None = None
    """Where the skyline is kept: it depends on the seed and not on the method."""
    told: Path | None = None
    """Where answers and summary are kept; None = the study's folder."""

    def place(self, arm: str) -> Path:
        """The run folder of an arm."""
        if arm == "skyline" and self.shared is not None:
            return self.shared / "skyline"
        return self.folder / arm

    def account(self) -> Path:
        """The folder of answers and summary."""
        return self.told or self.folder

    def given(self) -> Sequence[Sample]:
        """What the loop and its shuffled twin draw from."""
        return self.pool if self.reads_answers() or not self.bare else [
            s.unlabelled() for s in (*self.pool, *self.bare)]

    def reads_answers(self) -> bool:
        """Whether any component of the loop is given gold values while it trains."""
        return bool(self.loop.labels_read)


def train(study: Study, arm: str, watch: Watch | None = None) -> None:
    """Run (or resume) one trained arm to its end."""
    engine = study.make_engine()
    folder = study.place(arm)
    library = Library(folder / "images")
    if arm == "loop":
        run(study.loop, study.given(), study.cast(engine), folder, dev=study.dev,
            library=library, watch=watch)
        return
    engine.bind(library.open)
    loop, samples = _arm(study, arm, engine)
    run(loop, samples, study.cast(engine), folder, library=library, watch=watch)


def _arm(study: Study, arm: str, engine: Engine) -> tuple[Loop, Sequence[Sample]]:
    if arm == "shuffled":
        return shuffled(study.loop), study.given()
    if arm == "skyline":
        used = Spent(study.skyline_updates, 0, 0, 0.0)
        return _matched(study, used, "rationale", len(study.pool), 64), study.pool
    used = spent(RunFolder(study.place("loop")))
    if arm in ("control_steps", "control_flops"):
        return _control(study, used, engine, arm == "control_flops"), study.labelled
    if arm == "supervised_on_answers":
        read_ids = _answers_read(RunFolder(study.place("loop")))
        samples = [s for s in study.pool if s.id in read_ids]
        if not samples:
            raise SelfloopError(f"{study.method} reads no answers: it has no such arm")
        return _matched(study, used, "answer", len(samples), 64), samples
    raise SelfloopError(f"no arm {arm!r}: expected one of {', '.join(TRAINED)}")


def _control(study: Study, used: Spent, engine: Engine, by_flops: bool) -> Loop:
    """Arm (a): as many updates on the labels only, of as many tokens each; or as many FLOPs."""
    gold = [Branch(context=s.context, text=s.rationale) for s in study.labelled[:64] if s.rationale]
    sizes = [sum(len(row.token_ids) for row in engine.rows(branch)) for branch in gold]
    each = sum(sizes) / len(sizes)
    batch = max(8, round(used.read / max(1, used.updates) / each))
    updates = used.updates if not by_flops else round(
        used.flops / engine.flops(0, round(batch * each)))
    return _matched(study, replace(used, updates=updates), "rationale", len(study.labelled), batch,
                    study.control_lr)


def _matched(study: Study, used: Spent, labels: str, n: int, batch: int,
             lr: float | None = None) -> Loop:
    total = max(1, used.updates)
    iterations = max(k for k in range(1, 6) if total % k == 0)  # fresh views each, none left over
    updates = total // iterations
    assert study.loop.evaluation is not None
    return supervised(
        study.loop.evaluation.metric, labels=labels, iterations=iterations, updates=updates,
        batch=batch, lr=lr or study.lr, seed=study.seed, views=0.5,
        copies=max(1, min(12, round(updates * batch / n))))


def _answers_read(run_folder: RunFolder) -> set[str]:
    done = run_folder.iterations()
    steps = done[-1].version if done else 0
    return {i for s in range(steps)
            for kind in ("full", "answer_only")
            for i in (run_folder.manifest(s) or {"labels": {}})["labels"].get(kind, ())}


# -- answers ------------------------------------------------------------------------------------

def ask(study: Study, arm: str) -> None:
    """Store one arm's test answers, if they are not there."""
    path = study.account() / "answers" / f"{arm}.parquet"
    if path.exists():
        return
    runs = [RunFolder(study.place(a)) for a in ("loop", *_trained(study))]
    test = study.test.open(runs, [*study.pool, *study.bare, *study.dev, *study.labelled])
    engine = study.make_engine()
    engines = study.cast(engine)
    for other in engines.values():
        other.bind(Library(study.folder / "images").open)
    elsewhere.keep_records(engines.items(), study.account() / "answers" / arm)
    if arm == "testtime_vote":
        engine.publish(0, 0)
        voting = replace(study.loop, verifier=study.vote) if study.vote else study.loop
        found = votes(voting, test, engines)
    else:
        found = final_answers(study.loop, test, engines, _load(study, arm, engine), arm)
    write(path, [a.model_copy(update={"seed": study.seed}) for a in found])


def _load(study: Study, arm: str, engine: Engine) -> int:
    """Put an arm's final weights into the engine; returns their version."""
    if arm == "seed_accuracy":
        engine.publish(0, 0)
        return 0
    where = RunFolder(study.place({"final_accuracy": "loop", "no_image": "loop"}.get(arm, arm)))
    done = where.iterations()
    version = done[-1].best if where.path.name == "loop" else done[-1].version
    engine.load_state(where.checkpoint(version) / "solver")
    return version


ASKED = ("seed_accuracy", "final_accuracy", "testtime_vote", "no_image")


def prove(study: Study, *, workers: int = 2, watch: Watch | None = None) -> dict[str, Any]:
    """Train all arms, ask all questions, write summary.json; returns it. Resumable."""
    started = time.monotonic()
    train(study, "loop", watch)
    _spread(train, study, _trained(study), workers)
    return ask_all(study, workers=workers, started=started)


def ask_all(study: Study, *, workers: int = 2, started: float | None = None) -> dict[str, Any]:
    """Ask every arm of finished runs, write summary.json; returns it. Trains nothing."""
    started = time.monotonic() if started is None else started
    _spread(ask, study, [*ASKED, *_trained(study)], workers)
    summary = summarize(study)
    earlier = _seconds(study.account() / "summary.json")
    summary["seconds"] = round(max(earlier, time.monotonic() - started), 1)
    put_json(study.account() / "summary.json", summary)
    return summary


def _trained(study: Study) -> list[str]:
    """The arms beside the loop that are runs; a loop that reads no answers has one fewer."""
    return [a for a in study.arms if a != "loop"
            and (a != "supervised_on_answers" or study.reads_answers())]


def _seconds(path: Path) -> float:
    """What an earlier, longer call took; a resumed proof does not look cheaper than it was."""
    try:
        return float(json.loads(path.read_text())["seconds"])
    except (FileNotFoundError, KeyError, ValueError):
        return 0.0


def _spread(work: Callable[[Study, str], None], study: Study, arms: Sequence[str], workers: int
            ) -> None:
    """Each arm in a process of its own: they share nothing, and one core does not wait."""
    if workers < 2 or len(arms) < 2:
        for arm in arms:
            work(study, arm)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in [pool.submit(work, study, arm) for arm in arms]:
            future.result()


def answers(folder: Path, arm: str) -> list[Answer]:
    """The stored test answers of an arm."""
    return read(folder / "answers" / f"{arm}.parquet")


def summarize(study: Study) -> dict[str, Any]:
    """Every figure, from the stored answers and the run's own account."""
    by_arm = {arm: answers(study.account(), arm) for arm in [*ASKED, *_trained(study)]}
    final = by_arm["final_accuracy"]
    last = RunFolder(study.place("loop")).iterations()[-1]
    figures = {arm: _percent(found) for arm, found in by_arm.items()}
    gains = {arm: _gain(by_arm[arm], final) for arm in by_arm
             if arm not in ("final_accuracy", "no_image")}
    lead = gains["control_steps"]
    return {
        "method": study.method, "seed": study.seed, "labels_full": last.labels_full,
        "labels_answer_only": last.labels_answer_only, "labels_dev": len(study.dev),
        "labels_seed": len(study.labelled), "heldout_n": len(final), **figures,
        "gain_over_control": lead["gain"], "interval": lead["interval"], "p_value": lead["p_value"],
        "gain_over_vote": gains["testtime_vote"]["gain"], "gains": gains, "flops": last.flops,
        "iterations": last.index + 1, "promoted": last.best, "tokens": last.tokens,
        "words": verdict(figures, gains), "test_sha256": study.test.commitment(),
    }


def _percent(found: Sequence[Answer]) -> float:
    share = accuracy(found)
    if share != share:
        raise SelfloopError("no test question could be judged: see the metric's errors")
    return round(100 * share, 2)


def _gain(arm: Sequence[Answer], final: Sequence[Answer]) -> dict[str, Any]:
    found = paired_gain(final, arm)
    return {"gain": round(100 * found.gain, 2), "p_value": found.p_value,
            "interval": [round(100 * found.low, 2), round(100 * found.high, 2)]}


def verdict(figures: dict[str, float], gains: dict[str, dict[str, Any]]) -> str:
    """What may be claimed, in plain words."""
    below = [arm for arm in gains if arm not in ("skyline", "seed_accuracy")
             and gains[arm]["interval"][0] <= 0]
    if not below:
        every = {"control_flops", "shuffled"} <= gains.keys()
        return (f"self-improvement: above every arm{'' if every else ' that was run'}, "
                "each interval clear of zero; "
                f"{figures['seed_accuracy']:.1f} -> {figures['final_accuracy']:.1f} points")
    said = []
    for arm in below:
        what = gains[arm]
        if arm == "testtime_vote":
            how = "not clearly above" if what["interval"][1] >= 0 else "below"
            said.append(f"amortised inference at most: {how} what the seed reaches by voting at "
                        f"test time ({figures[arm]:.1f}; difference {what['gain']:+.1f} "
                        f"{what['interval']})")
        else:
            said.append(f"does not beat {arm} ({figures[arm]:.1f}; difference {what['gain']:+.1f} "
                        f"{what['interval']})")
    return "; ".join(said)
