"""From signals to the tensors of a `Batch`; and which signals share a micro-batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch

from selfloop.learning import measured_by, read_by
from selfloop.optimize.batch import Batch, Policy, Scored
from selfloop.optimize.rows import Row, Weight
from selfloop.optimize.wide import alike, checked, widened
from selfloop.roles import Known, Loss, SelfloopError
from selfloop.types import Advantage, AnySignal, Pair


def micro_batches(policy: Policy, signals: Sequence[AnySignal],
                  rows: Sequence[dict[str, list[Row]]], budget: float) -> list[list[int]]:
    """Signals of one kind and shape together, those of one prompt side by side, within budget.

    The budget counts what is run: a prompt that several rows share counts once, with its pictures.
    """
    kinds: dict[Any, dict[Hashable, list[int]]] = {}
    weights = [[policy.weigh(row) for rs in named.values() for row in rs] for named in rows]
    for i, (signal, named) in enumerate(zip(signals, rows, strict=True)):
        contexts = kinds.setdefault((signal.kind, tuple(sorted(named))), {})
        contexts.setdefault(weights[i][0].key if weights[i] else None, []).append(i)
    found: list[list[int]] = []
    for contexts in kinds.values():
        found.append([])
        spent, seen = 0, set[Hashable]()
        for i in (i for mine in contexts.values() for i in mine):
            size = _size(weights[i], seen)
            if found[-1] and spent + size > budget:
                found.append([])
                spent, seen = 0, set()
                size = _size(weights[i], seen)
            found[-1].append(i)
            spent += size
            seen |= {weight.key for weight in weights[i]}
    return [chunk for chunk in found if chunk]


def _size(weights: Sequence[Weight], seen: set[Hashable]) -> int:
    prompts = {w.key: w.prompt for w in weights if w.key not in seen}
    return sum(prompts.values()) + sum(w.answer for w in weights)


def chunks(rows: Sequence[Row], budget: int) -> list[list[int]]:
    """Indices in order, cut where rows padded to the longest would pass the token budget."""
    found: list[list[int]] = [[]]
    longest = 0
    for i, row in enumerate(rows):
        longest = max(longest, len(row.token_ids))
        if found[-1] and longest * (len(found[-1]) + 1) > budget:
            found.append([])
            longest = len(row.token_ids)
        found[-1].append(i)
    return [chunk for chunk in found if chunk]


@dataclass(frozen=True)
class Update:
    """The signals of one optimizer update, as rows, with all that is known about them."""

    policy: Policy
    signals: tuple[AnySignal, ...]
    loss: Loss
    known: Known
    rows: tuple[dict[str, list[Row]], ...]
    """For each signal the rows of every branch that the loss reads."""

    @classmethod
    def of(cls, policy: Policy, signals: Sequence[AnySignal], loss: Loss, known: Known) -> Update:
        """Raises SelfloopError naming a signal that the loss cannot read."""
        for signal in signals:
            if not loss.accepts(signal):
                raise SelfloopError(
                    f"loss {type(loss).__name__} cannot read a {signal.kind} with branches "
                    f"{sorted(signal.branches)} (sample {signal.sample})")
        others, collision = known.get("others", {}), "collision" in loss.needs
        words = [policy.encode(w)[0] for w in getattr(loss, "words", ())] \
            if "words" in loss.needs else []

        def rows(i: int, name: str) -> list[Row]:
            plain = policy.rows(signals[i].branches[name])
            found: Any = others.get((i, name)) or (
                [words] * sum(row.count for row in plain) if words else None)
            return widened(plain, found, 0, collision) if found or collision else plain

        made = cls(policy, tuple(signals), loss, known, tuple(
            {name: rows(i, name) for name in read_by(loss, s)} for i, s in enumerate(signals)))
        made._check_weights()
        return made

    def _check_weights(self) -> None:
        """Token weights count what is trained. Raises SelfloopError naming the branch."""
        for signal, named in zip(self.signals, self.rows, strict=True):
            for name, rows in named.items():
                given, n = signal.branches[name].token_weights, sum(row.count for row in rows)
                if given is not None and len(given) != n:
                    raise SelfloopError(f"sample {signal.sample}: branch {name!r} has {len(given)} "
                                        f"token_weights for {n} trained tokens")

    @property
    def tokens(self) -> dict[str, list[int]]:
        """Trained tokens of each signal's branches, 0 where it has no such branch."""
        names = sorted({name for r in self.rows for name in r})
        return {n: [sum(x.count for x in r.get(n, ())) for r in self.rows] for n in names}

    def names(self, index: list[int], measuring: bool = False) -> list[str]:
        """Branches of the signals at `index` that the loss, or its first pass, looks at."""
        wanted = measured_by(self.loss) if measuring else getattr(self.loss, "reads", None)
        return sorted(n for n in self.rows[index[0]] if wanted is None or n in wanted)

    def trained(self) -> int:
        """Trained tokens that get a gradient."""
        return sum(row.count for i, named in enumerate(self.rows)
                   for n in self.names([i]) for row in named[n])

    def batch(self, index: list[int], names: list[str], state: Mapping[str, float],
              whole: Mapping[str, Any], forward: bool = True) -> Batch:
        """The signals at `index`, run through the policy (or with NaN for what it would say)."""
        rows = [self.rows[i] for i in index]
        flat = alike([row for n in names for r in rows for row in r[n]])
        logps, entropies = self._run(flat, forward)
        ends = list(accumulate((len(r[n]) for n in names for r in rows), initial=0))
        parts = [torch.cat(list(logps[a:b])) for a, b in pairwise(ends)]
        heat = [torch.cat(list(entropies[a:b])) for a, b in pairwise(ends)] if entropies else []
        wide, b = flat[0].wide if flat else None, len(index)
        branches = {}
        for at, name in enumerate(names):
            mine = slice(at * b, at * b + b)
            branches[name] = _Parts(
                name, parts[mine], heat[mine], [r[name] for r in rows], index, self.known,
                wide.k if wide else 0,
                [self.signals[i].branches[name].token_weights for i in index]).scored()
        signals = [self.signals[i] for i in index]
        answer = branches.get("answer")
        like: dict[str, Any] = {"dtype": parts[0].dtype, "device": parts[0].device}
        return Batch(
            tuple(signals), branches, torch.tensor([s.weight for s in signals], **like),
            advantages(signals, answer) if answer is not None else None,
            torch.tensor([s.margin if isinstance(s, Pair) else 0.0 for s in signals], **like),
            tuple(index), self.signals, whole, state)

    def _run(self, rows: list[Row], forward: bool) -> tuple[list[Any], list[Any] | None]:
        if forward:
            logps, entropies = self.policy.logps(rows, entropy="entropy" in self.loss.needs)
            checked(self.policy, rows, logps)
            return logps, entropies
        first = next(iter(self.policy.trainable().values()))
        wide = torch.promote_types(first.dtype, torch.float32)
        return [torch.full((row.count,), torch.nan, dtype=wide, device=first.device)
                for row in rows], None


@dataclass(frozen=True)
class _Parts:
    """One branch of a micro-batch before it is padded; one tensor a signal."""

    name: str
    logps: list[Any]
    """[n], or [n, columns] where rows asked for more."""
    entropies: list[Any]
    rows: list[list[Row]]
    index: list[int]
    known: Known
    k: int
    weights: list[Any]
    """Each signal's token weights, or None."""

    def scored(self) -> Scored:
        parts = [p if p.ndim == 1 else p[:, 0] for p in self.logps]
        wide = self.logps[0].ndim == 2
        drawn = self._drawn()
        old = self._given("old", drawn)
        return Scored(
            padded(parts), padded([torch.ones_like(p) for p in parts]).detach(),
            self._tensor(old), self._tensor(drawn), self._tensor(self._given("reference")),
            self._tensor(self._given("teacher")),
            padded(self.entropies) if self.entropies else None, self._ids(),
            padded([p[:, -1] for p in self.logps]) if wide and self._asks_collision() else None,
            padded([p[:, 1:1 + self.k] for p in self.logps]) if self.k else None,
            self._tensor(self._given("others_reference")),
            self._tensor(self._given("others_source")), self._weights())

    def _weights(self) -> Any | None:
        """Each token's own weight; None where no branch has any."""
        if all(given is None for given in self.weights):
            return None
        return padded([torch.ones_like(p[:, 0] if p.ndim == 2 else p).detach() if given is None
                       else torch.tensor(given, dtype=p.dtype, device=p.device)
                       for p, given in zip(self.logps, self.weights, strict=True)])

    def _asks_collision(self) -> bool:
        return any(row.wide is not None and row.wide.collision for rs in self.rows for row in rs)

    def _ids(self) -> Any:
        return torch.nn.utils.rnn.pad_sequence(
            [torch.tensor([t for r in rs for t in r.trained_ids], dtype=torch.long)
             for rs in self.rows], batch_first=True, padding_value=-1).to(self.logps[0].device)

    def _drawn(self) -> list[Any]:
        return [None if any(r.drawn is None for r in rs) else [x for r in rs for x in r.drawn or ()]
                for rs in self.rows]

    def _given(self, what: str, otherwise: Sequence[Any] | None = None) -> list[Any]:
        table = self.known.get(what, {})
        return [table.get((i, self.name), other) for i, other in
                zip(self.index, otherwise or (None,) * len(self.index), strict=True)]

    def _tensor(self, found: Sequence[Any]) -> Any | None:
        if any(f is None for f in found):
            return None
        like = self.logps[0]  # one transfer to its device, not one a row
        return padded([torch.tensor(f, dtype=like.dtype) for f in found]).to(like.device)


def padded(parts: Sequence[Any]) -> Any:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def advantages(signals: Sequence[AnySignal], answer: Scored) -> Any:
    """One number a signal spread over its tokens, or one number a token."""
    rows, mask_BT = [], answer.mask_BT
    for signal, length in zip(signals, mask_BT.sum(-1).long().tolist(), strict=True):
        value = signal.advantage if isinstance(signal, Advantage) else 0.0
        spread = value if isinstance(value, tuple) else (float(value),) * length
        if (n := len(spread)) != length:
            raise SelfloopError(f"sample {signal.sample}: {n} token advantages for {length} tokens")
        rows.append(torch.tensor(spread, dtype=mask_BT.dtype))
    padded_BT = padded(rows)
    return torch.nn.functional.pad(
        padded_BT, (0, mask_BT.shape[1] - padded_BT.shape[1])).to(mask_BT.device)


def gaps(batch: Batch) -> list[float]:
    """Largest |sampler - learner| log-prob gap of each drawn answer in this micro-batch."""
    answer = batch.branches.get("answer")
    found = None if answer is None else answer.old_BT if answer.drawn_BT is None \
        else answer.drawn_BT
    if answer is None or found is None:
        return []
    gap_BT = (answer.logp_BT.detach() - found).abs() * answer.mask_BT
    return list(gap_BT.amax(-1).tolist())
