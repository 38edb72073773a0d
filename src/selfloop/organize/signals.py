"""Makers of signals: the last step of every organizer, from judged groups to what is learned.

Each maker is called with (groups, key[, answers, rationales]) and says by `makes` what it makes,
so that a loop can refuse a loss that cannot read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any, ClassVar

from selfloop import keys
from selfloop.organize.refine.filters import by_what_was_asked, converses, not_below
from selfloop.organize.refine.wording import visible
from selfloop.types import (
    Advantage,
    AnySignal,
    Branch,
    Context,
    Demonstration,
    Distill,
    Group,
    Pair,
    Rollout,
)

EDGE = 1e-9
"""So that .3 - .1 is a gap of .2, and .1 + .2 none from .3."""
HERE = Branch(context=Context(prompt=()), text="")
"""Stands for a branch in the examples of `makes`."""


def clean(context: Context) -> Context:
    """The context with every picture as it was before any operation."""
    return context.seen_as(tuple(m.plain for m in context.media))


def says(rollout: Rollout) -> bool:
    """Whether there is anything to imitate: text, or several turns with an environment."""
    return converses(rollout) or bool(visible(rollout.text))


def says_more(chosen: Rollout, rejected: Rollout) -> bool:
    """Whether the one can be preferred to the other: it says something, and not the same."""
    return bool(visible(chosen.text)) and chosen.text.strip() != rejected.text.strip()


def trained_on(rollout: Rollout, as_drawn: bool) -> Branch:
    """The rollout's tokens under what it was drawn with, or under the unchanged pictures."""
    if as_drawn:
        return Branch.drawn(rollout)
    if any(m.changed for m in rollout.context.media):
        return Branch.under(clean(rollout.context), rollout)
    # what is imitated or preferred is scored at temperature 1, however hot it was drawn
    return Branch(context=rollout.context, turns=tuple(
        turn.model_copy(update={"temperature": 1.0, "logprobs": None}) for turn in rollout.turns))


def elsewhere(context: Context, branch: Branch) -> Branch:
    """The branch's tokens under another context, at the temperature that they were drawn at."""
    turns = tuple(t.detached().model_copy(update={"temperature": t.temperature})
                  for t in branch.turns)
    return Branch(context=context, turns=turns, text=branch.text,
                  token_weights=branch.token_weights)


@dataclass(frozen=True)
class Demonstrate:
    """Imitate the rollouts that were judged right (STaR, ReST-EM; primitives L2).

    Equal answers to one problem are one demonstration, and an empty one is none. At most
    `per_sample` are kept, those drawn most often first: a lucky conclusion from a wrong chain is
    rarely drawn twice.
    """

    at_least: float = 0.5
    per_sample: int = 4
    makes: ClassVar[tuple[AnySignal, ...]] = (Demonstration(branches={"target": HERE}),)

    def __post_init__(self) -> None:
        not_below(self, per_sample=(self.per_sample, 1))

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Demonstration a kept rollout."""
        made: list[AnySignal] = []
        for group in groups:
            alike: dict[tuple[str, str], list[Rollout]] = {}
            for rollout, score in group.scored():
                if score >= self.at_least and rollout.finish_reason == "stop" and says(rollout):
                    alike.setdefault((rollout.context.text, rollout.text), []).append(rollout)
            mixed = keys.shuffled(len(alike), f"{key}/{group.sample.id}")
            distinct = [list(alike.values())[i] for i in mixed]
            for same in sorted(distinct, key=len, reverse=True)[:self.per_sample]:
                rollout = same[0]
                made.append(Demonstration(
                    branches={"target": trained_on(rollout, as_drawn=False)},
                    sample=group.sample.id, rollouts=(rollout.id,), role=rollout.role,
                    why=f"score >= {self.at_least:g}, drawn {len(same)} times",
                ))
        return made


@dataclass(frozen=True)
class BestWorst:
    """Prefer the best judged rollout to the worst (iterative DPO; primitives F4).

    Ties are broken by a keyed draw; `per_sample` pairs use the next best and next worst. Equal
    scores, equal texts and answers to different questions are no pair, and an empty answer is
    never preferred.
    """

    gap: float = 0.5
    per_sample: int = 1
    corrupted: str = ""
    """Name of a picture operation: adds the branch `corrupted` (mDPO, arXiv 2406.11839)."""

    def __post_init__(self) -> None:
        not_below(self, per_sample=(self.per_sample, 1))

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """A pair, with `corrupted` when asked for."""
        names = ("chosen", "rejected", *(("corrupted",) if self.corrupted else ()))
        return (Pair(branches=dict.fromkeys(names, HERE)),)

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """Up to `per_sample` pairs a group."""
        made: list[AnySignal] = []
        for group, own in (part for g in groups
                           for part in by_what_was_asked(g, f"{key}/{g.sample.id}")):
            judged = [(r, s) for r, s in group.scored() if r.finish_reason == "stop"]
            mixed = [judged[i] for i in keys.shuffled(len(judged), own)]
            ranked = sorted(mixed, key=lambda rs: -rs[1])
            for best, worst in list(zip(ranked, reversed(ranked), strict=True))[:self.per_sample]:
                apart = best[1] - worst[1]
                if apart > EDGE and apart >= self.gap - EDGE and says_more(best[0], worst[0]) \
                        and not (self.corrupted and converses(best[0])):
                    made.append(self._pair(group, best[0], worst[0], apart, key))
        return made

    def _pair(self, group: Group, best: Rollout, worst: Rollout, gap: float, key: str) -> Pair:
        branches = {"chosen": trained_on(best, False), "rejected": trained_on(worst, False)}
        if self.corrupted:
            media = tuple(m.with_op(self.corrupted, 1.0, f"{key}/{best.id}")
                          for m in clean(best.context).media)
            branches["corrupted"] = Branch.under(best.context.seen_as(media), best)
        return Pair(branches=branches, sample=group.sample.id, rollouts=(best.id, worst.id),
                    role=best.role, why=f"score gap {gap:g}")


@dataclass(frozen=True)
class GroupAdvantage:
    """A_i = (r_i - mean) / (std + eps) within a group (GRPO, arXiv 2402.03300, section 4.1.2).

    `scale=False` leaves out the standard deviation (Dr. GRPO, arXiv 2503.20783). Groups without
    variance teach nothing and are left out. Answers are trained as drawn, views included.
    """

    scale: bool = True
    eps: float = 1e-4
    as_drawn: bool = True
    """False trains the clean picture with tokens drawn under a view (NoisyRollout)."""
    makes: ClassVar[tuple[AnySignal, ...]] = (
        Advantage(branches={"answer": HERE}, advantage=0.0),)

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Advantage a judged rollout."""
        made: list[AnySignal] = []
        for group in groups:
            judged = list(group.scored())
            scores = [s for _, s in judged]
            if len(scores) < 2 or max(scores) - min(scores) <= EDGE:
                continue
            mean, std = fmean(scores), pstdev(scores)
            for rollout, score in judged:
                a = (score - mean) / (std + self.eps) if self.scale else score - mean
                made.append(Advantage(
                    branches={"answer": trained_on(rollout, self.as_drawn)}, advantage=a,
                    sample=group.sample.id, group=group.sample.id, rollouts=(rollout.id,),
                    role=rollout.role, why=f"score {score:g} in a group of mean {mean:.3g}",
                ))
        return made


@dataclass(frozen=True)
class Supervise:
    """Imitate gold values: the arms that a loop has to beat, and cold starts.

    `field`: "rationale" (full labels) or "answer" (answer-only labels).
    """

    makes: ClassVar[tuple[AnySignal, ...]] = (Demonstration(branches={"target": HERE}),)

    def __call__(self, groups: Sequence[Group], key: str, rationales: Mapping[str, str]
                 ) -> list[AnySignal]:
        """One Demonstration a sample that has a worked solution."""
        return _supervised(groups, rationales, "gold rationale")


@dataclass(frozen=True)
class SuperviseAnswers:
    """Imitate bare gold answers: what the answers that a loop reads are worth by themselves."""

    makes: ClassVar[tuple[AnySignal, ...]] = (Demonstration(branches={"target": HERE}),)

    def __call__(self, groups: Sequence[Group], key: str, answers: Mapping[str, Any]
                 ) -> list[AnySignal]:
        """One Demonstration a sample that has an answer."""
        return _supervised(groups, answers, "gold answer")


def _supervised(groups: Sequence[Group], gold: Mapping[str, Any], why: str) -> list[AnySignal]:
    return [
        Demonstration(
            branches={"target": Branch(context=g.sample.context, text=str(gold[g.sample.id]))},
            sample=g.sample.id, why=why)
        for g in groups if gold.get(g.sample.id) is not None
    ]


@dataclass(frozen=True)
class Privileged:
    """Self-distillation: the teacher is the same model with the answer put before the question.

    (SDFT, arXiv 2601.19897.) `hint` is formatted with the gold answer.
    """

    hint: str = "the answer is {answer} ."
    makes: ClassVar[tuple[AnySignal, ...]] = (
        Distill(branches={"student": HERE, "teacher": HERE}),)

    def __call__(self, groups: Sequence[Group], key: str, answers: Mapping[str, Any]
                 ) -> list[AnySignal]:
        """One Distill a rollout of every sample that has an answer."""
        made: list[AnySignal] = []
        for group in groups:
            answer = answers.get(group.sample.id)
            if answer is None:
                continue
            told = _told(group.sample.context, self.hint.replace("{answer}", str(answer)))
            made += [Distill(
                branches={"student": Branch.drawn(r), "teacher": elsewhere(told, Branch.drawn(r))},
                sample=group.sample.id, rollouts=(r.id,), role=r.role, why="privileged answer",
            ) for r in group.rollouts if not converses(r)]
        return made


def _told(context: Context, hint: str) -> Context:
    """The context with a hint as the last text of its last message."""
    last = context.prompt[-1]
    part = last.content[-1].model_copy(update={"type": "text", "text": " " + hint})
    told = last.model_copy(update={"content": (*last.content, part)})
    return context.model_copy(update={"prompt": (*context.prompt[:-1], told)})


@dataclass(frozen=True)
class Views:
    """Show the learner each signal through gentle picture operations, `copies` times each.

    The label-preserving augmentation of supervised training, for any maker of signals: every
    branch of a copy sees its pictures through the same operation. Branches must be re-rendered,
    so drawn log-probs no longer apply and the learner computes its own. Conversations stay as they
    were seen.
    """

    maker: Any
    op: str = "view"
    severity: float = 0.5
    copies: int = 1

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """Whatever the wrapped maker makes."""
        return tuple(getattr(self.maker, "makes", ()))

    def __call__(self, groups: Sequence[Group], key: str, **gold: Any) -> list[AnySignal]:
        """The wrapped maker's signals, each seen `copies` times."""
        from selfloop.roles import call_by_name

        made: list[AnySignal] = call_by_name(self.maker, groups=groups, key=key, **gold)
        return [self._seen(signal, f"{key}/{i}.{copy}")
                for copy in range(self.copies) for i, signal in enumerate(made)]

    def _seen(self, signal: AnySignal, key: str) -> AnySignal:
        if any(map(converses, signal.branches.values())):
            return signal
        branches = {
            name: Branch(
                context=b.context.seen_as(tuple(
                    m.with_op(self.op, self.severity, f"{key}/{j}")
                    for j, m in enumerate(b.context.media))),
                turns=tuple(t.detached() for t in b.turns), text=b.text,
                token_weights=b.token_weights)
            for name, b in signal.branches.items()
        }
        return signal.model_copy(update={"branches": branches})
