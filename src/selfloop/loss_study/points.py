"""One point: one arm at one seed and rate, trained in a run folder of its own, then asked."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfloop.evaluate.answering import answer
from selfloop.evaluate.answers import Answer, accuracy, write
from selfloop.evaluate.arms import final_answers, votes
from selfloop.label_study.points import account
from selfloop.loop import Loop
from selfloop.loss_study.design import LABELS, LABELS_FLOPS, SEED, SHUFFLED, VOTE, Asked, LossStudy
from selfloop.pictures import Library
from selfloop.roles import Engine
from selfloop.running import Watch, run
from selfloop.store import RunFolder, put_json
from selfloop.types import Sample

Counts = dict[str, dict[str, tuple[float, float]]]
"""{cluster: {figure: (numerator, denominator)}} of one set."""


class Maker:
    """Makes the points of one study that are missing, all with one engine."""

    def __init__(self, study: LossStudy, watch: Watch | None = None) -> None:
        self.study, self.watch = study, watch
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """Loaded when the first point is made; every run starts it from the seed again."""
        if self._engine is None:
            self._engine = self.study.bed.make_engine()
        return self._engine

    # -- learning rates -----------------------------------------------------------------------

    def rate(self, arm: str) -> float:
        """The learning rate of an arm: the best of the grid on dev, at the first seed.

        Equal accuracies: the smaller rate. Shuffled arms and equal FLOPs take their twin's.
        """
        tuned = LABELS if arm == LABELS_FLOPS else arm.removesuffix(SHUFFLED)
        return chosen(self.tried(tuned))

    def tried(self, arm: str) -> dict[float, float]:
        """Rate -> dev accuracy of an arm at the first seed; made where they are missing."""
        first = self.study.seeds[0]
        found = {rate: self._dev(arm, rate) for rate in self.study.budget.rates}
        for rate in found:  # weights of rates that lost are not asked anything more
            if rate != chosen(found):
                _drop(self.study.place(arm, first, rate))
        return found

    def _dev(self, arm: str, rate: float) -> float:
        study, seed = self.study, self.study.seeds[0]
        place = study.place(arm, seed, rate)
        kept = RunFolder(place).json("dev.json")
        if kept is None:
            loop = study.loop(arm, seed, rate)
            version = self._trained(loop, study.given(arm), place)
            assert loop.evaluation is not None
            found = answer(study.bed.dev, {"solver": self.engine}, version, study.bed.metric,
                           loop.evaluation.sampling, arm="greedy", seed=seed)
            kept = {"accuracy": accuracy(found)}
            put_json(place / "dev.json", kept)
        return float(kept["accuracy"])

    # -- points -------------------------------------------------------------------------------

    def finished(self, arm: str, seed: int) -> bool:
        """Whether an arm has been asked everything; never makes anything."""
        return self.kept(arm, seed) is not None

    def kept(self, arm: str, seed: int) -> dict[str, Any] | None:
        """The account of a finished arm."""
        found: dict[str, Any] | None = RunFolder(self.study.folder / "points").json(
            f"{arm}-{seed}.json")
        return found

    def point(self, arm: str, seed: int) -> dict[str, Any]:
        """Train and ask one arm at one seed, or what is missing of that; its account."""
        kept = self.kept(arm, seed)
        if kept is not None:
            return kept
        if arm in (SEED, VOTE):
            told = self._untrained(arm, seed)
        else:
            told = self._learned(arm, seed)
        put_json(self.study.folder / "points" / f"{arm}-{seed}.json", told)
        _drop(self.study.place(arm, seed, told.get("rate")))
        return told

    def _untrained(self, arm: str, seed: int) -> dict[str, Any]:
        place = self.study.place(arm, seed)
        self._fresh(place)
        loop = self.study.voting(seed)
        reached: list[float] = []
        for name in self.study.sets(arm):
            asked = self.study.bed.asked[name]
            test = asked.test.open(self._ended(), self._seen())
            found = votes(loop, test, {"solver": self.engine}) if arm == VOTE else \
                self._greedy(loop, asked, test, 0)
            reached.append(self._keep(place, name, test, found))
        return {"arm": arm, "seed": seed, "accuracy": reached[0]}

    def _learned(self, arm: str, seed: int) -> dict[str, Any]:
        rate = self.rate(arm)
        place = self.study.place(arm, seed, rate)
        loop = self.study.loop(arm, seed, rate, self._updates(arm, seed))
        version = self._trained(loop, self.study.given(arm), place)
        ran = RunFolder(place / "run")
        reached: list[float] = []
        for name, asked in self.study.bed.asked.items():
            test = asked.test.open([ran], self._seen())
            found = self._greedy(loop, asked, test, version)
            reached.append(self._keep(place, name, test, found))
        last = ran.iterations()[-1]
        return {"arm": arm, "seed": seed, "rate": rate, "accuracy": reached[0], **account([ran]),
                "labels_full": last.labels_full, "labels_answer_only": last.labels_answer_only,
                "monitors": monitors(ran)}

    def _greedy(self, loop: Loop, asked: Asked, test: Sequence[Sample], version: int
                ) -> list[Answer]:
        arm = "no_image" if asked.blind else "greedy"
        return final_answers(loop, test, {"solver": self.engine}, version, arm)

    def _updates(self, arm: str, seed: int) -> int | None:
        """Arm (a) at equal FLOPs: as many updates as the costliest loss could have paid for."""
        if arm != LABELS_FLOPS:
            return None
        paid: float = max(self.point(way, seed)["flops"] for way in self.study.ways)
        each: float = self.point(LABELS, seed)["flops"] / self.study.budget.total
        return max(1, round(paid / each))

    def _trained(self, loop: Loop, given: Sequence[Sample], place: Path) -> int:
        """Run or resume a loop, its weights in the engine afterwards; returns their version."""
        folder = place / "run"
        library = Library(place / "images")
        ran = RunFolder(folder)
        done = ran.iterations() or run(loop, given, self.engine, folder, library=library,
                                       watch=self.watch)
        self.engine.bind(library.open)
        self.engine.load_state(ran.checkpoint(done[-1].version) / "solver")
        return done[-1].version

    def _fresh(self, place: Path) -> None:
        """The engine as the seed."""
        self.engine.bind(Library(place / "images").open)
        self.engine.restart()
        self.engine.publish(0, 0)

    def _ended(self) -> list[RunFolder]:
        """Every run that has been made: asking the seed anything must wait for them, too."""
        return [RunFolder(p.parent) for p in self.study.folder.glob("points/*/run/loop.json")]

    def _seen(self) -> list[Sample]:
        bed = self.study.bed
        return [*bed.pool, *bed.dev, *bed.labelled]

    def _keep(self, place: Path, name: str, test: Sequence[Sample], found: Sequence[Answer]
              ) -> float:
        """Store whole answers, and the counts that figures are made of; accuracy back."""
        write(place / f"{name}.parquet", found)
        put_json(place / f"{name}.json", counted(self.study, test, found))
        return accuracy(found)


def chosen(tried: Mapping[float, float]) -> float:
    """The rate with the highest accuracy; the smaller of equals."""
    return min(tried, key=lambda rate: (-tried[rate], rate))


def counted(study: LossStudy, test: Sequence[Sample], found: Sequence[Answer]) -> Counts:
    """The bed's figures of each cluster, as numerators and denominators."""
    samples = {s.id: s for s in test}
    by_cluster: dict[str, list[tuple[Sample, Answer]]] = {}
    for one in found:
        scored = one.score if one.score is not None or one.right is None else float(one.right)
        by_cluster.setdefault(one.cluster, []).append(
            (samples[one.sample], one.model_copy(update={"score": scored})))
    return {cluster: study.bed.count(marked) for cluster, marked in by_cluster.items()}


def monitors(ran: RunFolder) -> dict[str, float]:
    """What the learner watched, the mean over a run's steps; tokens, which add up, left out."""
    steps = [ran.json("steps", f"{s:06d}", "learned.json") or {}
             for s in range(ran.iterations()[-1].version)]
    each = [step["solver"] for step in steps if step.get("solver", {}).get("updates")]
    names = {name for step in each for name in step if not name.startswith("tokens_")}
    return {n: sum(step.get(n, 0.0) for step in each) / len(each) for n in sorted(names)}


def _drop(place: Path) -> None:
    """Drop a point's weights: its answers stand for them from here on."""
    shutil.rmtree(place / "run" / "checkpoints", ignore_errors=True)
