"""From a run's signals and groups to plain rows: texts and pictures, no tokens and no branches.

The token ids of what was drawn belong to one tokenizer; other trainers render texts themselves, so
a row holds the answer's text, found again by the signal's lineage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from selfloop.roles import SelfloopError
from selfloop.store import RunFolder
from selfloop.types import AnySignal, Branch, Context, Group, Sample

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


def rows_of(run: RunFolder, step: int, role: str, kind: Kind | None) -> Found:
    """What `role` learned at `step`, as rows of `kind` (by default that of its signals).

    "kto" and "grpo" are made of the judged groups, "sft" and "dpo" of the signals. Raises
    SelfloopError for signals that no row can carry, naming the sample and the mend.
    """
    signals = run.signals(step, role)
    kind = kind or _kind_of(signals, run, step)
    if kind in ("kto", "grpo"):
        groups = run.groups(step)
        return Found(kind, list((_judged if kind == "kto" else _asked)(groups, role)))
    wanted = "demonstration" if kind == "sft" else "pair"
    found, texts = Found(kind, []), Texts(run, step)
    seen: set[tuple[str, ...]] = set()
    for signal in signals:
        if signal.kind != wanted:
            raise SelfloopError(f"step {step} holds signals of the kind {signal.kind}, and {kind} "
                                f"rows are made of {wanted}s: leave out --as, or use --format "
                                "datasets, which carries every kind")
        row = _demonstrated(signal, texts) if kind == "sft" else _preferred(signal, texts)
        _note_losses(signal, found.left_out)
        if row.says in seen:
            found.left_out["repeated rows"] += 1
            continue
        seen.add(row.says)
        found.rows.append(row)
    return found


def _kind_of(signals: Sequence[AnySignal], run: RunFolder, step: int) -> Kind:
    kinds = sorted({s.kind for s in signals})
    if not kinds:
        raise SelfloopError(f"{run.step(step)}: nothing was learned there (no signals): give "
                            "another --step, or --as kto for all that was judged")
    if len(kinds) > 1 or kinds[0] not in MADE_OF:
        raise SelfloopError(
            f"{run.step(step)} holds signals of the kind {', '.join(kinds)}, which is no kind of "
            "row elsewhere: use --format datasets, which carries it, or --as kto or --as grpo, "
            "which are made of the judged answers")
    return MADE_OF[kinds[0]]


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


def _judged(groups: Iterable[Group], role: str) -> Iterator[Row]:
    """One row a distinct answer that was judged; what the verifier could not tell is left out."""
    for group in groups:
        seen: set[str] = set()
        for rollout, score in group.scored():
            if rollout.role == role and rollout.finish_reason == "stop" and len(
                    rollout.turns) == 1 and rollout.text not in seen:
                seen.add(rollout.text)
                yield Row(rollout.context, group.sample.id, rollout.text, good=score >= 0.5)


def _asked(groups: Iterable[Group], role: str) -> Iterator[Row]:
    """One row a question. Raises SelfloopError for one without an answer."""
    seen: set[str] = set()
    for group in groups:
        sample: Sample = group.sample
        if sample.id in seen:
            continue
        seen.add(sample.id)
        if sample.answer is None:
            raise SelfloopError(f"sample {sample.id} has no answer, and the reward of grpo rows "
                                "compares with one: label it, or export --as kto, which is made "
                                "of the verifier's scores")
        yield Row(sample.context, sample.id, truth=sample.answer)
