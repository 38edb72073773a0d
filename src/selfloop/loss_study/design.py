"""What a study of losses is made of: a testbed, one budget, ways of learning, and their arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from selfloop.collect.independent import Independent
from selfloop.evaluate.arms import shuffled
from selfloop.evaluate.benchmark import Count, mean_score
from selfloop.evaluate.sealed import Sealed
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.loss_study.ways import VIEWS, Way, ways
from selfloop.organize.chain import Chain
from selfloop.recipes.supervised import supervised
from selfloop.roles import Engine, Optim, Sampling, SelfloopError, Verifier
from selfloop.types import Sample

SHUFFLED = "-shuffled"
SEED, VOTE = "seed", "vote"
LABELS, LABELS_FLOPS, ANSWERS = "labels", "labels_flops", "answers"
NAMES = {
    SEED: "seed", VOTE: "seed's vote", LABELS: "labels at equal updates",
    LABELS_FLOPS: "labels at equal FLOPs", ANSWERS: "answers imitated",
}
"""The arms that all losses share. The seed is a baseline; the others are arms (a), (b) and (d) of
docs/gate-and-arms.md. Arm (c), shuffled verdicts, is each loss's own."""


@dataclass(frozen=True)
class Budget:
    """What each loss may spend; the same for all."""

    steps: int = 4
    samples: int = 256
    """Problems a step. `steps * samples` problems are enough for a run."""
    draws: int = 4
    """Answers a problem."""
    updates: int = 12
    """Optimizer updates a step; the learning rate falls to 0 within each step (cosine)."""
    batch: int = 64
    """Drawn answers an update; a pair is two."""
    rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    """The learning rates tried on dev at the first seed, for every loss and every trained arm."""

    def __post_init__(self) -> None:
        if min(self.steps, self.samples, self.updates) < 1 or self.draws < 2 or self.batch < 2:
            raise SelfloopError(f"{self}: steps, samples and updates must be at least 1, draws and "
                                "batch at least 2")
        if not self.rates or min(self.rates) <= 0:
            raise SelfloopError(f"{self}: give at least one positive learning rate")

    @property
    def total(self) -> int:
        """Updates of a whole run."""
        return self.steps * self.updates


@dataclass(frozen=True)
class Asked:
    """One set of held-out questions."""

    test: Sealed
    blind: bool = False
    """Ask without the pictures."""


@dataclass(frozen=True)
class Bed:
    """Where losses are compared: a seed model, its data and how answers are checked."""

    name: str
    make_engine: Callable[[], Engine]
    pool: Sequence[Sample]
    """Problems that loops draw answers to. Verifiers read their answers, nobody their solutions."""
    labelled: Sequence[Sample]
    """The full labels that the seed was made with, for the arms on labels; () leaves them out."""
    dev: Sequence[Sample]
    """Chooses learning rates."""
    asked: Mapping[str, Asked]
    """Held-out sets by name; claims are made on the first."""
    verifier: Verifier
    metric: Verifier
    vote: Verifier | None = None
    """What the seed votes with: the part of the verifier that reads no answers. None: majority."""
    max_new_tokens: int = 64
    count: Count = mean_score
    """The figures of a cluster of marked answers; "accuracy" is among them."""

    @property
    def main(self) -> str:
        """The set that claims are made on."""
        return next(iter(self.asked))


@dataclass(frozen=True)
class LossStudy:
    """Every way of learning on one testbed, at every seed, beside its arms."""

    folder: Path
    bed: Bed
    budget: Budget = Budget()
    seeds: tuple[int, ...] = (0, 1, 2)
    ways: Mapping[str, Way] = field(default_factory=dict)
    """Empty: the eight of ways.py."""

    def __post_init__(self) -> None:
        if not self.ways:
            object.__setattr__(self, "ways", ways(self.bed.max_new_tokens))
        needed = self.budget.steps * self.budget.samples
        if len(self.bed.pool) < needed:
            raise SelfloopError(f"{self.bed.name}: a run draws for {needed} problems, and the pool "
                                f"has {len(self.bed.pool)}: add some, or lower steps or samples")
        if not self.seeds or not self.bed.asked or not len(self.bed.dev):
            raise SelfloopError(f"{self.bed.name}: a study needs seeds, dev and a held-out set")

    @property
    def tuned(self) -> tuple[str, ...]:
        """The arms whose learning rate is chosen on dev."""
        own = (LABELS,) if len(self.bed.labelled) else ()
        return (*self.ways, *own, ANSWERS)

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm of a seed, in the order in which they can be made."""
        more = (LABELS_FLOPS,) if len(self.bed.labelled) else ()
        return (*self.tuned, *more, *(way + SHUFFLED for way in self.ways), VOTE)

    def shared(self) -> tuple[str, ...]:
        """Arms that do not depend on the loss."""
        return tuple(a for a in (SEED, *self.arms) if a in NAMES)

    def sets(self, arm: str) -> tuple[str, ...]:
        """The held-out sets that an arm is asked: a vote needs its pictures."""
        return tuple(n for n, a in self.bed.asked.items() if arm != VOTE or not a.blind)

    def place(self, arm: str, seed: int, rate: float | None = None) -> Path:
        """The folder of one arm at one seed; a trained one's has its learning rate in its name."""
        at = "" if rate is None else f"@{rate:g}"
        return self.folder / "points" / f"{arm}{at}-{seed}"

    def given(self, arm: str) -> Sequence[Sample]:
        """What an arm trains on."""
        if arm in (LABELS, LABELS_FLOPS):
            return self.bed.labelled
        return [s.model_copy(update={"rationale": None})
                for s in self.bed.pool[:self.budget.steps * self.budget.samples]]

    def loop(self, arm: str, seed: int, rate: float, updates: int | None = None) -> Loop:
        """The arm as a Loop; `updates` in all, where they are not the budget's."""
        if arm in (LABELS, LABELS_FLOPS, ANSWERS):
            return self._supervised(arm, seed, rate, updates or self.budget.total)
        loop = self._learning(self.ways[arm.removesuffix(SHUFFLED)], arm, seed, rate)
        return shuffled(loop) if arm.endswith(SHUFFLED) else loop

    def _learning(self, way: Way, arm: str, seed: int, rate: float) -> Loop:
        b, bed = self.budget, self.bed
        optim = Optim(lr=rate, updates=b.updates, batch=max(1, b.batch // way.answers),
                      whole_groups=way.whole_groups, schedule="cosine",
                      warmup=min(2, b.updates - 1))
        return Loop(
            name=arm.removesuffix(SHUFFLED),
            sampler=Independent(n=b.draws, max_new_tokens=bed.max_new_tokens, views=VIEWS),
            verifier=bed.verifier, gate=None, iterations=1, steps=b.steps, save_every=b.steps,
            samples=b.samples, seed=seed, evaluation=self._evaluation(), learn={
                "solver": Learn(organizer=Chain(maker=way.organizer), loss=way.loss, optim=optim)})

    def _supervised(self, arm: str, seed: int, rate: float, updates: int) -> Loop:
        n, batch = len(self.given(arm)), self.budget.batch
        made = supervised(
            self.bed.metric, labels="answer" if arm == ANSWERS else "rationale", iterations=1,
            updates=updates, batch=batch, lr=rate, views=0.5, seed=seed,
            copies=max(1, min(12, round(updates * batch / n))),
            max_new_tokens=self.bed.max_new_tokens)
        return replace(made, evaluation=self._evaluation())

    def _evaluation(self) -> Evaluation:
        greedy = Sampling(temperature=0.0, max_new_tokens=self.bed.max_new_tokens)
        return Evaluation(metric=self.bed.metric, sampling=greedy, no_image=False)

    def voting(self, seed: int) -> Loop:
        """The seed model's vote at test time: the loops' draws, checked without answers."""
        loop = self._learning(next(iter(self.ways.values())), VOTE, seed, 1.0)
        return replace(loop, verifier=self.bed.vote) if self.bed.vote else loop
