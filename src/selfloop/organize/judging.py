"""Stage 2 as the loop runs it: verdicts, with failures counted and never turned into zeros."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.calling import SelfloopError, compares
from selfloop.doors import Doors, asking
from selfloop.roles import (
    Generate,
    Verifier,
    as_verdict,
    call_by_name,
    gold,
    name_of,
    parameters,
    reads,
)
from selfloop.types import Group, Rollout, Sample, Verdict

OFFERED = ("rollout", "group", "sample", "generate", "answer", "rationale", "key",
           "decode")


ANSWERS = frozenset({"answer", "revision"})
"""Values of `sampling["stage"]` that are answers to the sample, as a rollout without a stage is."""
SET_ASIDE = "no answer to the sample, and not judged as one"
OTHERS = ("proposed", "program", "constructed", "conceived", "drawing", "phase")
"""What samplers note of rollouts that the sample's own gold value says nothing about: questions,
pictures and programs that a model thought of, answers to those, moves of a game."""


@dataclass(frozen=True)
class Judged:
    """Groups with verdicts, and what went wrong on the way."""

    groups: list[Group]

    @property
    def unknown(self) -> Unknown:
        """What the verdicts leave open."""
        return Unknown.of(self.groups)


@dataclass(frozen=True)
class Unknown:
    """Of so many verdicts, how many are failures and abstentions, and the first of each."""

    rollouts: int = 0
    errors: int = 0
    abstained: int = 0
    first_error: str = ""
    first_abstained: str = ""
    """The sample and the rationale of the first abstention."""

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Unknown:
        """Counted over judged groups, what no verifier was asked about left out."""
        judged = [(g.sample.id, v) for g in groups for v in g.verdicts if v.rationale != SET_ASIDE]
        errors = [v for _, v in judged if v.error]
        open_ = [(s, v) for s, v in judged if v.score is None and not v.error]
        return cls(len(judged), len(errors), len(open_), errors[0].rationale if errors else "",
                   f"on sample {open_[0][0]}: {open_[0][1].rationale or 'no reason given'}"
                   if open_ else "")

    def __add__(self, other: Unknown) -> Unknown:
        return Unknown(self.rollouts + other.rollouts, self.errors + other.errors,
                       self.abstained + other.abstained, self.first_error or other.first_error,
                       self.first_abstained or other.first_abstained)


def excess(unknown: Unknown, verifier: Verifier | None, max_errors: float,
           max_unjudged: float | None) -> str:
    """What exceeds its budget, how to mend it, and an example; nothing when all is well.

    The budgets are shares of the verdicts; `max_unjudged` None is as Loop.max_unjudged says.
    """
    if verifier is None or not unknown.rollouts:
        return ""
    name, of = name_of(verifier), unknown.rollouts
    if unknown.errors > max_errors * of:
        return (f"verifier {name} failed on {unknown.errors} of {of} rollouts (more than "
                f"max_errors={max_errors:g}); first: {unknown.first_error}; mend the verifier")
    most = max_unjudged if max_unjudged is not None else 0.99 if reads(verifier) else 1.0
    if unknown.abstained > most * of:
        return (f"verifier {name} could not tell on {unknown.abstained} of {of} rollouts (more "
                f"than max_unjudged={most:g}); first: {unknown.first_abstained}; leave out samples "
                "that it cannot judge (without a gold value, or with one that it cannot read), "
                "raise max_unjudged, or mend the verifier")
    return ""


def alone(metric: Verifier) -> None:
    """Raises SelfloopError for a verifier that judges answers by each other: evaluation judges one
    answer at a time, and that always agrees with itself.

    So says a verifier by `compares = True`, and one of whole groups that reads no label unless it
    says `compares = False`.
    """
    told = getattr(metric, "compares", None)
    blind = "group" in parameters(metric) and not reads(metric) and told is None
    if compares(metric) or blind:
        name = name_of(metric).rpartition(":")[2]
        unless = "; or, if it judges each by itself, let it say `compares = False`" if blind else ""
        raise SelfloopError(
            f"metric {name}: it judges the answers to one question by each other, and a metric "
            "judges one answer, which always agrees with itself: name as metric what tells right "
            f"from wrong (verifier: exact), and {name} as what rewards (reward: {{use: {name}}})"
            f"{unless}")


def judge(verifier: Verifier | None, groups: Sequence[Group], doors: Doors) -> Judged:
    """Judge every answer of every group. Exceptions become error verdicts, with the reason.

    Samplers draw more than answers: what is no answer (`sampling["stage"]`: a critique, a
    description) gets no score, and the verifier does not see it, so that it neither is scored by a
    rule that it fits by chance nor has a vote. A choice among answers is as right as the answer
    that it chose. A verifier that judges other stages says so: `stages = frozenset({"critique"})`.
    What answers another question than the sample's (`sampling["question"]`, `OTHERS`) is set aside
    for every verifier that reads the sample's gold values: they are not its own. One that reads
    none is shown, as the sample, what was asked (`as_asked`).
    """
    if verifier is None:
        blank = [g.model_copy(update={"verdicts": (Verdict(),) * len(g.rollouts)}) for g in groups]
        return Judged(blank)
    one = _by_group if "group" in parameters(verifier) else _by_rollout
    stages, gold_read = getattr(verifier, "stages", ANSWERS), bool(reads(verifier))
    shown = [_shown(g, stages, gold_read) for g in groups]
    judged: list[Group] = doors.run(
        [(g.sample, "verify", one(verifier, g, doors)) for g in shown]
    )
    return Judged([_whole(g, found) for g, found in zip(groups, judged, strict=True)])


def answers_it(rollout: Rollout, stages: Collection[str] = ANSWERS) -> bool:
    """Whether it is an answer to the sample, and not another stage of drawing one."""
    return rollout.sampling.get("stage") is None or str(rollout.sampling["stage"]) in stages


def _shown(group: Group, stages: Collection[str], gold_read: bool) -> Group:
    """The group with those rollouts alone that are to be judged."""
    kept = tuple(r for r in group.rollouts if answers_it(r, stages)
                 and not (gold_read and of_another(r, group.sample)))
    return group if len(kept) == len(group.rollouts) else group.model_copy(
        update={"rollouts": kept, "verdicts": ()})


def of_another(rollout: Rollout, sample: Sample) -> bool:
    """Whether a rollout is no answer to the sample's own question, which its gold value is of."""
    asked = rollout.sampling.get("question")
    return (isinstance(asked, str) and asked != sample.context.text) or any(
        name in rollout.sampling for name in OTHERS)


def as_asked(rollout: Rollout | None, sample: Sample) -> Sample:
    """The sample without labels; its question is the one that the rollout answers."""
    asked = rollout.sampling.get("question") if rollout is not None else None
    if not isinstance(asked, str) or asked == sample.context.text:
        return sample.unlabelled()
    context = asking(sample, asked)
    return Sample(prompt=context.prompt, media=context.media, meta=sample.meta,
                  parent=sample.parent)


def _whole(group: Group, judged: Group) -> Group:
    """What was judged, with the rollouts that were set aside back in their places."""
    if len(judged.rollouts) == len(group.rollouts):
        return judged
    known = {r.id: v for r, v in zip(judged.rollouts, judged.verdicts, strict=True)}
    return judged.model_copy(update={"rollouts": group.rollouts, "verdicts": tuple(
        known[r.id] if r.id in known else _aside(r, known) for r in group.rollouts)})


def _aside(rollout: Rollout, known: Mapping[str, Verdict]) -> Verdict:
    """A choice's verdict is that of what it chose; one that named no answer chose no right one."""
    if rollout.sampling.get("stage") != "choice":
        return Verdict(rationale=SET_ASIDE)
    chosen = known.get(str(rollout.sampling.get("chosen")))
    if chosen is not None:
        return Verdict(score=chosen.score, verifier=chosen.verifier,
                       rationale="as the answer that it chose")
    told = next((v for v in known.values() if v.score is not None), None)
    return Verdict(score=None if told is None else 0.0, rationale="it chose none of the answers",
                   verifier="" if told is None else told.verifier)


def _job(verifier: Verifier, group: Group, doors: Doors,
         judge_all: Callable[[Callable[..., Any]], Any]) -> Any:
    sample = group.sample

    def ask(generate: Any, **about: Any) -> Any:
        return call_by_name(
            verifier, generate=generate, sample=as_asked(about.get("rollout"), sample),
            key=f"{doors.scope}/{sample.id}", decode=doors.decode,
            **gold(verifier, sample), **about,
        )

    async def job(generate: Generate) -> Group:
        found = judge_all(lambda **about: ask(generate, **about))
        judged: Group = await found if inspect.isawaitable(found) else found
        return judged

    return job


def _by_rollout(verifier: Verifier, group: Group, doors: Doors) -> Any:
    name = name_of(verifier)

    async def judge_all(ask: Callable[..., Any]) -> Group:
        return group.model_copy(update={"verdicts": tuple([
            await _guarded(ask, name, group, rollout=rollout) for rollout in group.rollouts
        ])})

    return _job(verifier, group, doors, judge_all)


async def _guarded(ask: Callable[..., Any], name: str, group: Group, rollout: Rollout) -> Verdict:
    try:
        value = ask(rollout=rollout)
        return as_verdict(await value if inspect.isawaitable(value) else value, name)
    except Exception as error:
        return failure(name, rollout.id, group.sample.id, error)


def failure(name: str, rollout: str, sample: str, error: Exception) -> Verdict:
    """The verdict of a verifier that raised: unknown, with the reason kept."""
    return Verdict(
        error=True, verifier=name,
        rationale=f"{name} raised {type(error).__name__} on rollout {rollout} "
                  f"of sample {sample}: {error}",
    )


def _by_group(verifier: Verifier, group: Group, doors: Doors) -> Any:
    name = name_of(verifier)
    shown = group.model_copy(update={"sample": group.sample.unlabelled()})

    async def judge_all(ask: Callable[..., Any]) -> Group:
        try:
            value = ask(group=shown)
            found = await value if inspect.isawaitable(value) else value
            if isinstance(found, Group):
                return found.model_copy(update={"sample": group.sample})
            verdicts = tuple(as_verdict(v, name) for v in found)
            if len(verdicts) != len(group.rollouts):
                raise ValueError(f"{len(verdicts)} verdicts for {len(group.rollouts)} rollouts")
            return group.model_copy(update={"verdicts": verdicts})
        except Exception as error:
            return group.model_copy(update={"verdicts": tuple(
                failure(name, r.id, group.sample.id, error) for r in group.rollouts
            )})

    return _job(verifier, group, doors, judge_all)


