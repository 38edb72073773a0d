"""Stage 3 as the loop runs it: which signals make which update, at which rate.

Everything here is a pure function of the stored signals and a key, so a resumed run relearns a
step exactly. Tensors stay inside the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from selfloop import keys
from selfloop.roles import Engine, Loss, Optim
from selfloop.types import Advantage, AnySignal, Branch, Distill

Progress = Callable[[int, int, Mapping[str, float]], None]


def learn(engine: Engine, signals: Sequence[AnySignal], loss: Loss, optim: Optim, key: str,
          progress: Progress | None = None) -> dict[str, float]:
    """Run one step's updates on an engine; returns the means of the loss terms and monitors."""
    signals = [s for s in signals if loss.accepts(s)]
    if optim.start == "seed":
        engine.restart()
    elif optim.reset:
        engine.reset_optimizer()
    if not signals:
        return {"updates": 0.0}
    known, scored = _known(engine, signals, loss, optim)
    plan = list(updates(signals, optim, key))
    sums: dict[str, float] = {}
    prompts = _Prompts(engine, signals, loss)
    for number, chosen in enumerate(plan):
        here = {what: {(j, name): table[(i, name)] for j, i in enumerate(chosen)
                       for name in signals[i].branches if (i, name) in table}
                for what, table in known.items()}
        metrics = engine.forward_backward([signals[i] for i in chosen], loss, here)
        metrics |= engine.optim_step(optim, rate(optim, number, len(plan)))
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + value
        if progress is not None:
            progress(number + 1, len(plan), metrics)
    counts = {name: sums.pop(name, 0.0) for name in ("tokens_read", "tokens_trained")}
    counts["tokens_scored"] = float(scored)
    counts["tokens_run"] = float(sum(prompts.run(chosen) for chosen in plan))
    return {n: total / len(plan) for n, total in sums.items()} | counts | {"updates": len(plan)}


def read_by(loss: Loss, signal: AnySignal) -> list[str]:
    """The signal's branches that the loss runs: in its `reads` or `measured` (all, without those).

    A teacher is scored before the first update and never run with gradients.
    """
    wanted = getattr(loss, "reads", None)
    measured = measured_by(loss)
    every = wanted is None or measured is None
    return [name for name in signal.branches
            if not (isinstance(signal, Distill) and name == "teacher")
            and (every or name in (wanted or ()) or name in (measured or ()))]


def measured_by(loss: Loss) -> frozenset[str] | None:
    """The branches that the loss's first pass reads: its `measured`, else its `reads`."""
    found: frozenset[str] | None = getattr(loss, "measured", getattr(loss, "reads", None))
    return found


class _Prompts:
    """How many tokens updates run where each prompt of an update is run once."""

    def __init__(self, engine: Engine, signals: Sequence[AnySignal], loss: Loss) -> None:
        self.engine, self.signals, self.loss = engine, signals, loss
        self._rows: dict[int, list[tuple[int, int, int]]] = {}

    def run(self, chosen: Sequence[int]) -> int:
        """Tokens of the answers, and of the distinct prompts, of these signals."""
        rows = [row for i in chosen for row in self._of(i)]
        return sum(rest for _, _, rest in rows) + sum({k: n for k, n, _ in rows}.values())

    def _of(self, i: int) -> list[tuple[int, int, int]]:
        """(prompt, its tokens, the other tokens) of each of the signal's rows."""
        if i not in self._rows:
            signal = self.signals[i]
            rows = [row for name in read_by(self.loss, signal)
                    for row in self.engine.rows(signal.branches[name])]
            self._rows[i] = [(hash((row.token_ids[:row.prompt], *(m.identity for m in row.media))),
                              row.prompt, len(row.token_ids) - row.prompt) for row in rows]
        return self._rows[i]


def rate(optim: Optim, number: int, total: int) -> float:
    """The learning rate of update `number` (0-based) of `total`."""
    if number < optim.warmup:
        return optim.lr * (number + 1) / optim.warmup
    done = (number - optim.warmup) / max(1, total - optim.warmup)
    if optim.schedule == "linear":
        return optim.lr * (1 - done)
    if optim.schedule == "cosine":
        return optim.lr * 0.5 * (1 + math.cos(math.pi * done))
    return optim.lr


def updates(signals: Sequence[AnySignal], optim: Optim, key: str) -> Iterator[list[int]]:
    """Indices of the signals of each update: keyed shuffles, pass after pass."""
    units = _units(signals, optim.whole_groups)
    made, epoch = 0, 0
    while made < optim.updates if optim.updates is not None else epoch < optim.epochs:
        order = keys.shuffled(len(units), f"{key}/epoch{epoch}")
        batch: list[int] = []
        before = made
        for u in order:
            batch += units[u]
            if len(batch) >= optim.batch:
                yield batch
                batch, made = [], made + 1
                if optim.updates is not None and made >= optim.updates:
                    return
        # a small remainder is dropped, unless it is all that there is: noisy steps help nobody
        if batch and (made == before or optim.updates is None or len(batch) * 2 >= optim.batch):
            yield batch
            made += 1
        epoch += 1


def _units(signals: Sequence[AnySignal], whole_groups: bool) -> list[list[int]]:
    """What is shuffled: single signals, or all signals of one sample."""
    if not whole_groups:
        return [[i] for i in range(len(signals))]
    groups: dict[str, list[int]] = {}
    for i, signal in enumerate(signals):
        groups.setdefault(signal.sample or str(i), []).append(i)
    return list(groups.values())


def _known(engine: Engine, signals: Sequence[AnySignal], loss: Loss, optim: Optim
           ) -> tuple[dict[str, dict[tuple[int, str], Any]], int]:
    """Log-probs that do not change while learning, computed once, before the first update; and
    how many tokens were read for them."""
    tables = _Tables(engine)
    every = [(i, n, s.branches[n]) for i, s in enumerate(signals) for n in read_by(loss, s)]
    reference = "seed" if optim.reference == "seed" else "current"
    if "reference" in loss.needs:
        tables.add("reference", every, reference)
    if "old" in loss.needs:  # where the sampler's own are kept apart, all of them are computed
        tables.add("old", [(i, "answer", s.branches["answer"]) for i, s in enumerate(signals)
                           if isinstance(s, Advantage) and (
                               "drawn" in loss.needs or not _drawn(s.branches["answer"]))])
    if "teacher" in loss.needs:
        tables.add("teacher", [(i, "student", s.branches["teacher"])
                               for i, s in enumerate(signals) if isinstance(s, Distill)],
                   getattr(loss, "teacher", "current"))
    if "others" in loss.needs:
        for wanted in getattr(loss, "others", ()):
            tables.add_others(wanted, signals, reference if "reference" in loss.needs else None)
    return tables.found, tables.read


class _Tables:
    """What is known of each (signal, branch), and how many tokens were read to know it."""

    def __init__(self, engine: Engine) -> None:
        self.engine: Any = engine
        self.found: dict[str, dict[tuple[int, str], Any]] = {}
        self.read = 0

    def add(self, what: str, wanted: list[tuple[int, str, Branch]], version: str = "current",
            **asks: Any) -> None:
        """Score branches under a version: log-probs, or what else `asks` for."""
        if wanted:
            self.read += sum(len(row.token_ids) for _, _, branch in wanted
                             for row in self.engine.rows(branch))
            scored = self.engine.logprobs([branch for _, _, branch in wanted], version, **asks)
            self.found.setdefault(what, {}).update(
                {(i, n): lp for (i, n, _), lp in zip(wanted, scored, strict=True)})

    def add_others(self, wanted: Any, signals: Sequence[AnySignal], reference: str | None) -> None:
        """The likeliest tokens of one branch, to be scored in another (batch.Others)."""
        has = [i for i, s in enumerate(signals)
               if {wanted.source, wanted.branch} <= s.branches.keys()]
        self.add("_top", [(i, wanted.branch, signals[i].branches[wanted.source]) for i in has],
                 wanted.version, top=wanted.k)
        top = self.found.pop("_top", {})
        ids = {at: [[t for t, _ in place] for place in found] for at, found in top.items()}
        self.found.setdefault("others", {}).update(ids)
        self.found.setdefault("others_source", {}).update(
            {at: [[lp for _, lp in place] for place in found] for at, found in top.items()})
        if reference is not None:
            self.add("others_reference", [
                (i, wanted.branch, signals[i].branches[wanted.branch]) for i in has], reference,
                others=[ids[(i, wanted.branch)] for i in has])


def _drawn(branch: Branch) -> bool:
    """Whether the sampler's own log-probs can serve as the old ones."""
    return bool(branch.turns) and all(
        t.logprobs is not None and t.prompt_token_ids for t in branch.turns)
