"""run(): collect -> verify -> organize -> optimize -> evaluate -> gate, until it no longer helps.

The order of writes is the whole of resuming: a step's manifest means that its data are complete,
a checkpoint that the weights after a step are, an iteration.json that a gate has decided. What
is not covered by one of them is done again from the same keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import selfloop
from selfloop import elsewhere, machines, stepping
from selfloop.data import save
from selfloop.doors import engine_for
from selfloop.evaluate import deciding, hiding
from selfloop.evaluate.acting import in_words
from selfloop.evaluate.answers import Answer, read, write
from selfloop.loop import Loop, differences, only_verifier_mended
from selfloop.pictures import Library
from selfloop.roles import Engine, SelfloopError
from selfloop.store import RunFolder, mend_log, put_folder, put_json
from selfloop.types import Decision, Iteration, Sample, digest
from selfloop.words import Adjustment

Watch = Callable[[str, Mapping[str, Any]], None]
"""Called with (event, facts) as the run goes: progress bars, sinks, tests."""


@dataclass
class Run:
    """A loop on data with engines in a folder; `go()` runs or resumes it."""

    loop: Loop
    samples: Sequence[Sample]
    engines: Mapping[str, Engine]
    folder: RunFolder
    dev: Sequence[Sample] = ()
    library: Library = field(default_factory=Library)
    budget: float | None = None
    """Seconds after which no new step is started; each call makes one, however long it takes."""
    watch: Watch | None = None

    def go(self) -> list[Iteration]:
        """All iterations, those already on disk included."""
        with self.folder.alone(), hiding.closed():
            try:
                return self._go()
            finally:
                elsewhere.tell_spent(self._named(), self.tell)

    def _go(self) -> list[Iteration]:
        self._open()
        started, made = time.monotonic(), 0
        done = self.folder.iterations()
        while len(done) < self.loop.iterations and not (done and done[-1].adjustment.stop):
            self._must_be_sealed()
            index = len(done)
            version = self._position(index, done)
            learned: list[dict[str, Any]] = []
            for step in range(index * self.loop.steps, (index + 1) * self.loop.steps):
                if step < version:
                    continue
                if made and self.budget and time.monotonic() - started > self.budget:
                    self._checkpoint(step)  # so that the next call starts from here
                    self.tell("stopped", why=f"the budget of {self.budget:g} s is spent",
                              step=step, iterations=len(done), resumable=True)
                    return done
                learned.append(self._step(step))
                made += 1
            done.append(self._end(index, done))
        stop = {"why": done[-1].adjustment.stop} if done[-1].adjustment.stop else {}
        self.tell("finished", iterations=len(done), best=done[-1].best, **stop)
        return done

    # -- opening ----------------------------------------------------------------------------

    def _open(self) -> None:
        self._check_roles()
        mend_log(self.folder.path / "events.jsonl")
        for engine in self._distinct():
            engine.bind(self.library.open)
        elsewhere.keep_records(self._named(), self.folder.path)
        described: dict[str, Any] = {
            "loop": self.loop.described(), "fingerprint": self.loop.fingerprint(),
            "data": digest([s.id for s in self.samples]), "dev": digest([s.id for s in self.dev]),
            "engines": {role: engine.fingerprint() for role, engine in self.engines.items()},
        }
        about = {**described, "printed": repr(self.loop), "selfloop": selfloop.__version__,
                 "model": next(iter(self.engines.values())).name}
        found = self.folder.json("loop.json")
        if found is None:
            put_json(self.folder.path / "loop.json", about)
        elif only_verifier_mended(found, described) and self.folder.manifest(0) is None:
            # nothing was judged yet: the stored rollouts wait for the mended verifier
            (self.folder.iteration("seed") / "answers.parquet").unlink(missing_ok=True)
            put_json(self.folder.path / "loop.json", about)
            self.tell("verifier replaced")
        else:
            _same(found, described, self.folder.path)
        for engine in self._distinct():
            engine.restart()  # an engine that has learned elsewhere starts from its seed again
            engine.publish(0, self.loop.max_staleness)
        if self.dev and not (self.folder.path / "dev.jsonl").exists():
            save(self.dev, self.folder.path / "dev.jsonl")  # the report shows what was asked
        if not self.folder.checkpoints():
            self._checkpoint(0)
        if done := self.folder.iterations():  # a kill may have come before this
            self._forget(done[-1])
        self.tell("opened", loop=self.loop.name, samples=len(self.samples), dev=len(self.dev),
                  iterations=self.loop.iterations, steps=self.loop.steps)
        if account := machines.described(engine_for(self.engines, next(iter(self.loop.learn))),
                                         self.samples):
            self.tell("machine", **account)
        if self.dev and self.loop.evaluation is not None:
            self._seed_answers()

    def _check_roles(self) -> None:
        missing = [r for r in self.loop.learn if r not in self.engines and len(self.engines) > 1]
        if missing or not self.engines:
            raise SelfloopError(
                f"the loop trains the role {(missing or list(self.loop.learn))[0]!r}, but engines "
                f"are given for {sorted(self.engines)}: add it to engines=")
        for role in self.loop.learn:
            lacking = self.loop.asks - engine_for(self.engines, role).supports
            if lacking:
                raise SelfloopError(
                    f"loop {self.loop.name!r} asks for {', '.join(sorted(lacking))}, which the "
                    f"engine of role {role!r} ({type(self.engines.get(role)).__name__}) does not "
                    "support: choose another engine, or a sampler that does not need it")
        if not len(self.samples):
            raise SelfloopError("the training data are empty: nothing to collect from")
        if self.loop.gate is not None and not self.dev:
            raise SelfloopError(
                f"loop {self.loop.name!r} has a gate but no dev samples: give dev=, or gate=None "
                "to train without deciding")

    def _must_be_sealed(self) -> None:
        """Whoever has seen the test questions may not learn on: that would be choosing by them."""
        if any(e["event"] == "unsealed" for e in self.folder.events()):
            raise SelfloopError(
                f"{self.folder.path} has ended and its test questions have been opened: learning "
                "on would be choosing by the test split; start a run of another name")

    def _distinct(self) -> list[Engine]:
        return list({id(e): e for e in self.engines.values()}.values())

    def tell(self, kind: str, **facts: Any) -> None:
        """One event: to the log on disk and to whoever watches."""
        self.folder.event(kind, **facts)
        if self.watch is not None:
            self.watch(kind, facts)

    def _position(self, index: int, done: Sequence[Iteration]) -> int:
        """Load the newest usable weights of this iteration; returns their version."""
        first = index * self.loop.steps
        inside = [v for v in self.folder.checkpoints() if first < v <= first + self.loop.steps]
        start = inside[-1] if inside else (done[-1].continue_from if done else 0)
        for name, engine in self._named():
            engine.load_state(self.folder.checkpoint(start) / name)
            if not inside and start != first:  # rolled back: old weights under new numbers,
                keep = self.loop.max_staleness  # those that stale draws will ask for among them
                for version in range(max(start + 1, first - keep), first + 1):
                    engine.publish(version, keep)
        return inside[-1] if inside else first

    def _named(self) -> list[tuple[str, Engine]]:
        """Each distinct engine under the first role that it plays."""
        seen: dict[int, str] = {}
        for role in sorted(self.engines, key=lambda r: (r != "solver", r)):
            seen.setdefault(id(self.engines[role]), role)
        return [(role, self.engines[role]) for role in seen.values()]

    def _checkpoint(self, version: int) -> None:
        path = self.folder.checkpoint(version)
        if (path / "manifest.json").exists():
            return

        def fill(aside: Path) -> None:
            for name, engine in self._named():
                engine.save_state(aside / name)
            put_json(aside / "manifest.json", {"version": version})

        put_folder(path, fill)

    # -- one step ---------------------------------------------------------------------------

    def _step(self, step: int) -> dict[str, Any]:
        if self.folder.manifest(step) is None:
            began = time.monotonic()
            manifest = stepping.gather(self, step)
            hiding.check()
            self.tell("gathered", step=step, seconds=time.monotonic() - began,
                      counts=manifest["counts"], monitors=manifest["monitors"])
        began = time.monotonic()
        learned = stepping.optimize(self, step)
        self.tell("learned", step=step, seconds=time.monotonic() - began, metrics=learned)
        version = step + 1
        if version % self.loop.save_every == 0 or version % self.loop.steps == 0:
            self._checkpoint(version)
        return learned

    # -- evaluation and gate ----------------------------------------------------------------

    def _seed_answers(self) -> list[Answer]:
        path = self.folder.iteration("seed") / "answers.parquet"
        if not path.exists():
            for name, engine in self._named():
                engine.load_state(self.folder.checkpoint(0) / name)
            began = time.monotonic()
            answers = deciding.ask(self, 0)
            write(path, answers)
            self.tell("evaluated", version=0, seconds=time.monotonic() - began,
                      **deciding.dev_figures(answers))
        return read(path)

    def _end(self, index: int, done: Sequence[Iteration]) -> Iteration:
        version = (index + 1) * self.loop.steps
        folder = self.folder.iteration(index)
        best = done[-1].best if done else 0
        answers: list[Answer] = []
        began = time.monotonic()
        if self.dev and self.loop.evaluation is not None:
            answers = deciding.ask(self, version)
            write(folder / "answers.parquet", answers)
        took = time.monotonic() - began
        hiding.check()
        decision = deciding.decide(self, index, best, answers)
        adjustment, taken = self._act(decision, done)
        decision = decision.model_copy(update={"actions": in_words(taken)})
        iteration = stepping.summary(self, index, decision, best, deciding.dev_figures(answers),
                                     adjustment)
        if decision.action == "promote":
            def best_of(aside: Path) -> None:
                for name, engine in self._named():
                    engine.save(aside / name)
                put_json(aside / "manifest.json", {"version": version})
            put_folder(self.folder.path / "best", best_of)
        put_json(folder / "iteration.json", iteration.model_dump(mode="json"))
        self.tell("decided", iteration=index, action=decision.action, why=decision.why,
                  seconds=took, **deciding.dev_figures(answers))
        for facts in taken:
            self.tell("acted", iteration=index, **facts)
        self._forget(iteration)
        return iteration

    def _act(self, decision: Decision, done: Sequence[Iteration]
             ) -> tuple[Adjustment, list[dict[str, Any]]]:
        """What the decision changes from here on, and every action's facts."""
        acting = getattr(self.loop.gate, "acting", None)  # a gate of one's own may have none
        if acting is None:
            return Adjustment(), []
        found: tuple[Adjustment, list[dict[str, Any]]] = acting(decision, done)
        return found

    def _forget(self, iteration: Iteration) -> None:
        """Drop checkpoints that nothing can start from any more."""
        import shutil

        keep = {0, iteration.best, iteration.continue_from, iteration.version}
        for version in self.folder.checkpoints():
            if version not in keep and version < iteration.version:
                shutil.rmtree(self.folder.checkpoint(version))


def _same(found: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Refuse to mix two different runs in one folder, naming what differs."""
    for what in ("data", "dev", "engines"):
        if found[what] != now[what]:
            raise SelfloopError(
                f"{path} was started with other {what} ({found[what]} then, {now[what]} now): "
                "give the run another name, or restore them to resume")
    if found["fingerprint"] != now["fingerprint"]:
        then, new = found["loop"], now["loop"]
        changes = "; ".join(differences(then, new)) or "its code"
        raise SelfloopError(f"{path} was started with another loop ({changes}): give the run "
                            "another name, or restore it to resume")


def run(loop: Loop, samples: Sequence[Sample], engines: Mapping[str, Engine] | Engine,
        folder: str | Path, *, dev: Sequence[Sample] = (), library: Library | None = None,
        budget: float | None = None, watch: Watch | None = None) -> list[Iteration]:
    """Run (or resume) a loop in a folder; returns its iterations.

    `samples` are what the loop learns from, `dev` what its gate decides on; a test split is
    never given to a loop. `engines` maps roles to engines; one engine may play all. The same
    call after a kill goes on where the folder ends; more `iterations` extend a finished run.
    """
    given = engines if isinstance(engines, Mapping) else {"solver": engines}
    where = RunFolder(folder)
    library = library if library is not None else Library(where.images)
    return Run(loop, samples, given, where, dev, library, budget, watch).go()


