"""From a run's signals and groups to plain rows: texts and pictures, no tokens and no branches.

The token ids of what was drawn belong to one tokenizer; other trainers render texts themselves, so
a row holds the answer's text, found again by the signal's lineage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from selfloop.exporting.truths import truth_of
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder
from selfloop.types import AnySignal, Branch, Context, Group

Kind = Literal["sft", "dpo", "kto", "grpo"]
KINDS: tuple[Kind, ...] = ("sft", "dpo", "kto", "grpo")
MADE_OF: dict[str, Kind] = {"demonstration": "sft", "pair": "dpo", "advantage": "grpo"}
"""The kind of row that a signal becomes by itself. Trainers of advantages draw their own answers,
so they get the questions and what their reward compares with."""


@dataclass(frozen=True)
class Row:
    """One example of another trainer."""

    context: Context
    """What is asked: messages, and pictures in the order of their places."""
    sample: str
    answer: str | None = None
    """What is imitated (sft), preferred (dpo) or judged (kto)."""
    rejected: str | None = None
    rejected_context: Context | None = None
    """dpo: what the rejected answer was given to, where that differs."""
    good: bool | None = None
    """kto: whether the answer is desirable."""
    truth: Any = None
    """grpo: what a reward compares an answer with."""
    truth_from: str = ""
    """grpo: gold, vote or pseudo-label."""

    @property
    def says(self) -> tuple[str, ...]:
        """Equal for rows that ask and answer the same."""
        other = self.rejected_context or self.context
        return self.context.identity, self.answer or "", self.rejected or "", other.identity


@dataclass
class Found:
    """Rows of one kind, and what of the signals they cannot carry."""

    kind: Kind
    rows: list[Row]
    left_out: Counter[str] = field(default_factory=Counter)
    """Weights, margins, repeated rows: how many rows lost each."""
    notes: list[str] = field(default_factory=list)
    """What else a reader of the rows should know, in words."""


class Texts:
    """The text of what was drawn, by its tokens: the step's own rollouts, then earlier steps'."""

    def __init__(self, run: RunFolder, step: int) -> None:
        self._run, self._unread = run, list(range(step + 1))
        self._known: dict[tuple[int, ...], str] = {}

    def of(self, branch: Branch, sample: str) -> str:
        """Raises SelfloopError for conversations, and for tokens that no stored rollout has."""
        if branch.text is not None:
            return branch.text
        if len(branch.turns) > 1:
            raise SelfloopError(
                f"sample {sample}: an answer of {len(branch.turns)} turns with an environment; "
                "these formats hold one answer a row: use --format datasets, which carries it")
        tokens = branch.turns[0].token_ids
        while tokens not in self._known and self._unread:
            for group in self._run.groups(self._unread.pop()):
                for rollout in group.rollouts:
                    if len(rollout.turns) == 1:
                        self._known.setdefault(rollout.turns[0].token_ids, rollout.text)
        if tokens not in self._known:
            raise SelfloopError(f"sample {sample}: the answer's text is in no stored rollout of "
                                f"{self._run.path}: its rollouts-*.parquet were removed, so only "
                                "--format datasets can be written")
        return self._known[tokens]


def rows_of(run: RunFolder, steps: Sequence[int], role: str, kind: Kind | None) -> Found:
    """What `role` learned in `steps`, as rows of `kind` (by default that of the signals).

    "sft" and "dpo" are made of the signals, "kto" and "grpo" of those judged groups that the
    signals name: what the organizer threw away, another trainer must not see either. Raises
    SelfloopError for signals that no row can carry, naming the sample and the mend.
    """
    kind = kind or _kind_of(run, steps, role)
    found = Found(kind, [])
    if kind in ("kto", "grpo"):
        (_judged if kind == "kto" else _asked)(run, steps, role, found)
        return found
    wanted, texts = "demonstration" if kind == "sft" else "pair", Texts(run, max(steps))
    seen: set[tuple[str, ...]] = set()
    for step in steps:
        for signal in run.signals(step, role):
            if signal.kind != wanted:
                raise SelfloopError(
                    f"step {step} holds signals of the kind {signal.kind}, and {kind} rows are "
                    f"made of {wanted}s: leave out --as, or use --format datasets, which carries "
                    "every kind")
            row = _demonstrated(signal, texts) if kind == "sft" else _preferred(signal, texts)
            _note_losses(signal, found.left_out)
            if row.says in seen:
                found.left_out["repeated rows"] += 1
                continue
            seen.add(row.says)
            found.rows.append(row)
    return found


def _kind_of(run: RunFolder, steps: Sequence[int], role: str) -> Kind:
    """That of the first step with signals; a further kind in a later one is refused there."""
    for step in steps:
        kinds = sorted({s.kind for s in run.signals(step, role)})
        if not kinds:
            continue
        if len(kinds) > 1 or kinds[0] not in MADE_OF:
            raise SelfloopError(
                f"{run.step(step)} holds signals of the kind {', '.join(kinds)}, which is no kind "
                "of row elsewhere: use --format datasets, which carries it, or --as kto or --as "
                "grpo, which are made of the judged answers")
        return MADE_OF[kinds[0]]
    raise SelfloopError(f"{run.step(steps[-1])}: nothing was learned there (no signals): give "
                        "another --step")


def _note_losses(signal: AnySignal, left_out: Counter[str]) -> None:
    if signal.weight != 1.0:
        left_out["weights"] += 1
    if getattr(signal, "margin", 0.0):
        left_out["margins"] += 1


def _demonstrated(signal: AnySignal, texts: Texts) -> Row:
    _only_branches(signal, ("target",))
    target = signal.branches["target"]
    return Row(target.context, signal.sample, texts.of(target, signal.sample))


def _preferred(signal: AnySignal, texts: Texts) -> Row:
    _only_branches(signal, ("chosen", "rejected"))
    chosen, rejected = signal.branches["chosen"], signal.branches["rejected"]
    other = rejected.context if rejected.context != chosen.context else None
    return Row(chosen.context, signal.sample, texts.of(chosen, signal.sample),
               texts.of(rejected, signal.sample), other)


def _only_branches(signal: AnySignal, known: tuple[str, ...]) -> None:
    further = sorted(set(signal.branches) - set(known))
    if further:
        raise SelfloopError(
            f"sample {signal.sample}: its {signal.kind} has the further branch {further[0]!r}, "
            "which no other trainer reads: use --format datasets, which carries it, or organize "
            "again without it (BestWorst(corrupted=''))")


# -- rows of judged groups ----------------------------------------------------------------------

def _named(run: RunFolder, step: int, role: str, found: Found
           ) -> Iterator[tuple[Group, set[str]]]:
    """The groups that the step's signals name, each with the ids of the rollouts they name.

    A pool may name rollouts of earlier steps. A demonstration names only what is imitated, so all
    judged answers of its sample count as named.
    """
    sought: dict[str, set[str]] = {}
    whole: set[str] = set()
    for signal in run.signals(step, role):
        sought.setdefault(signal.sample, set()).update(signal.rollouts)
        if signal.kind == "demonstration" or not signal.rollouts:
            whole.add(signal.sample)
    unseen = {sample: set(rollouts) for sample, rollouts in sought.items()}
    unnamed = 0
    for earlier in range(step, -1, -1):
        if not unseen:
            break
        for group in run.groups(earlier):
            own = {r.id for r in group.rollouts}
            if group.sample.id not in unseen:
                unnamed += earlier == step and group.sample.id not in sought
                continue
            named = own if group.sample.id in whole else own & sought[group.sample.id]
            unseen[group.sample.id] -= own
            if not unseen[group.sample.id]:
                del unseen[group.sample.id]
            yield group, named
    if unnamed:
        found.notes.append(f"step {step}: no signal names {unnamed} of its questions, which the "
                           "organizer threw away or learned nothing from: left out")


def _read(run: RunFolder, step: int) -> frozenset[str]:
    """Ids of the samples whose gold values the run had read by then."""
    manifests = [run.manifest(s) or {} for s in range(step + 1)]
    return frozenset(id for m in manifests for ids in m.get("labels", {}).values() for id in ids)


def _judged(run: RunFolder, steps: Sequence[int], role: str, found: Found) -> None:
    """One row a distinct answer that was judged; what the verifier could not tell is left out.

    Where two steps judged one answer, the later judgement counts.
    """
    rows: dict[tuple[str, str], Row] = {}
    scores: list[float] = []
    for step in steps:
        seen: set[tuple[str, str]] = set()
        for group, named in _named(run, step, role, found):
            for rollout, score in group.scored():
                says = (group.sample.id, rollout.text)
                if rollout.id in named and rollout.role == role and says not in seen \
                        and rollout.finish_reason == "stop" and len(rollout.turns) == 1:
                    seen.add(says)
                    scores.append(score)
                    rows[says] = Row(rollout.context, group.sample.id, rollout.text,
                                     good=score >= 0.5)
    if scores and (min(scores) < 0 or max(scores) > 1) \
            and len(same := {row.good for row in rows.values()}) == 1:
        raise SelfloopError(f"the verifier's scores lie between {min(scores):g} and "
                            f"{max(scores):g}, and kto rows call an answer good from 0.5 on: all "
                            f"would be {'good' if True in same else 'bad'}; export the pairs "
                            "(--as dpo), or judge by a verifier whose scores are from 0 to 1")
    found.rows += rows.values()


def _asked(run: RunFolder, steps: Sequence[int], role: str, found: Found) -> None:
    """One row a question; where two steps' votes differ, the later one counts."""
    rows: dict[str, Row] = {}
    undecided: set[str] = set()
    for step in steps:
        seen, read = set[str](), _read(run, step)
        for group, _ in _named(run, step, role, found):
            sample = group.sample
            if sample.id in seen:
                continue
            seen.add(sample.id)
            truth = truth_of(group, read)
            if truth is None:
                undecided.add(sample.id)
            else:
                rows[sample.id] = Row(sample.context, sample.id, truth=truth[0],
                                      truth_from=truth[1])
    found.rows += rows.values()
    sources = Counter(row.truth_from for row in found.rows)
    if set(sources) - {"gold"}:
        found.notes.append("the truth of these rows is no label: " + ", ".join(
            f"{n} {source}" for source, n in sorted(sources.items())))
    if left := undecided - set(rows):
        found.notes.append(f"the vote on {len(left)} questions decided nothing: left out")
