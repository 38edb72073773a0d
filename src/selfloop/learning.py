"""Stage 3 as the loop runs it: which signals make which update, at which rate.

Everything here is a pure function of the stored signals and a key, so a resumed run relearns a
step exactly. Tensors stay inside the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

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
    prompts = _Prompts(engine, signals)
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


class _Prompts:
    """How many tokens updates run where each prompt of an update is run once."""

    def __init__(self, engine: Engine, signals: Sequence[AnySignal]) -> None:
        self.engine, self.signals = engine, signals
        self._rows: dict[int, list[tuple[int, int, int]]] = {}

    def run(self, chosen: Sequence[int]) -> int:
        """Tokens of the answers, and of the distinct prompts, of these signals."""
        rows = [row for i in chosen for row in self._of(i)]
        return sum(rest for _, _, rest in rows) + sum({k: n for k, n, _ in rows}.values())

    def _of(self, i: int) -> list[tuple[int, int, int]]:
        """(prompt, its tokens, the other tokens) of each of the signal's rows."""
        if i not in self._rows:
            signal = self.signals[i]
            rows = [row for name, branch in signal.branches.items()
                    if not (isinstance(signal, Distill) and name == "teacher")
                    for row in self.engine.rows(branch)]
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
           ) -> tuple[dict[str, dict[tuple[int, str], list[float]]], int]:
    """Log-probs that do not change while learning, computed once, before the first update; and
    how many tokens were read for them."""
    read = 0
    tables: dict[str, dict[tuple[int, str], list[float]]] = {}

    def table(what: str, wanted: list[tuple[int, str, Branch]], version: str) -> None:
        nonlocal read
        if wanted:
            read += sum(len(row.token_ids) for _, _, b in wanted for row in engine.rows(b))
            scored = engine.logprobs([branch for _, _, branch in wanted], version)
            tables[what] = {(i, n): lp for (i, n, _), lp in zip(wanted, scored, strict=True)}

    every = [(i, n, b) for i, s in enumerate(signals) for n, b in s.branches.items()
             if not (isinstance(s, Distill) and n == "teacher")]
    if "reference" in loss.needs:
        table("reference", every, "seed" if optim.reference == "seed" else "current")
    if "old" in loss.needs:
        table("old", [(i, "answer", s.branches["answer"]) for i, s in enumerate(signals)
                      if isinstance(s, Advantage) and not _drawn(s.branches["answer"])], "current")
    if "teacher" in loss.needs:
        table("teacher", [(i, "student", s.branches["teacher"]) for i, s in enumerate(signals)
                          if isinstance(s, Distill)], "current")
    return tables, read


def _drawn(branch: Branch) -> bool:
    """Whether the sampler's own log-probs can serve as the old ones."""
    return bool(branch.turns) and all(
        t.logprobs is not None and t.prompt_token_ids for t in branch.turns)
