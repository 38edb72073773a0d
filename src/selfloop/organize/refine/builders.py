"""Demonstrations of mending and of choosing, built from right and wrong answers (primitives F13),
and rows that start with the model's own description (F16)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from selfloop import keys
from selfloop.organize.refine.filters import by_what_was_asked, converses, not_below
from selfloop.organize.signals import HERE, clean, says
from selfloop.roles import SelfloopError
from selfloop.types import AnySignal, Branch, Context, Demonstration, Group, Message, Part, Rollout

REFINE = "This was answered: {wrong}\nCheck it against the picture. Mend what is wrong and answer."
SELECT = "These were answered:\n{options}\nWhich one is right? Check them and answer."
DESCRIBED = "Description of the picture: {description}\n"


def _asked_apart(groups: Sequence[Group], key: str) -> list[tuple[Group, str]]:
    return [part for g in groups for part in by_what_was_asked(g, f"{key}/{g.sample.id}")]


def _sorted_out(group: Group, key: str) -> tuple[list[Rollout], list[Rollout]]:
    """(right, wrong) finished answers of one turn that say something, distinct texts only, in a
    keyed order."""
    seen: set[str] = set()
    right: list[Rollout] = []
    wrong: list[Rollout] = []
    judged = list(group.scored())
    for i in keys.shuffled(len(judged), key):
        rollout, score = judged[i]
        if rollout.finish_reason != "stop" or len(rollout.turns) != 1 \
                or rollout.text in seen or not says(rollout):
            continue
        seen.add(rollout.text)
        (right if score >= 0.5 else wrong).append(rollout)
    return right, wrong


def _row(group: Group, asked: str, target: Rollout, others: Sequence[Rollout], why: str
         ) -> Demonstration:
    told = group.sample.context
    if told.text not in (r.context.text for r in group.rollouts):  # another question about it
        told = clean(target.context)
    context = _ended(told, asked)
    return Demonstration(branches={"target": Branch.under(context, target)},
                         sample=group.sample.id, role=target.role, why=why,
                         rollouts=(target.id, *(r.id for r in others)))


def _ended(context: Context, text: str) -> Context:
    """The context with a text as the last part of its last message."""
    last = context.prompt[-1]
    told = last.model_copy(update={"content": (*last.content, Part(text="\n" + text))})
    return context.model_copy(update={"prompt": (*context.prompt[:-1], told)})


@dataclass(frozen=True)
class Refine:
    """Question and a wrong answer -> a right answer: at most `per_sample` rows of a mixed group.

    R3V (arXiv 2411.00855, self-refine; released code). The prompt is ours.
    """

    prompt: str = REFINE
    per_sample: int = 1
    makes: ClassVar[tuple[AnySignal, ...]] = (Demonstration(branches={"target": HERE}),)

    def __post_init__(self) -> None:
        not_below(self, per_sample=(self.per_sample, 1))

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """Rows of all groups that have right and wrong answers."""
        made: list[AnySignal] = []
        for group, own in _asked_apart(groups, key):
            right, wrong = _sorted_out(group, own)
            for bad, good in list(zip(wrong, right, strict=False))[:self.per_sample]:
                made.append(_row(group, self.prompt.replace("{wrong}", bad.text), good, (bad,),
                                 "wrong -> right"))
        return made


@dataclass(frozen=True)
class Select:
    """Question and k shuffled candidates -> a right one of them: one row of a mixed group.

    R3V (arXiv 2411.00855, self-select; released code): k = 3, two right and one wrong or the
    other way round. At least one of each kind is shown; groups with fewer than k distinct answers
    make no row.
    """

    k: int = 3
    prompt: str = SELECT
    makes: ClassVar[tuple[AnySignal, ...]] = (Demonstration(branches={"target": HERE}),)

    def __post_init__(self) -> None:
        not_below(self, k=(self.k, 2))

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """Rows of all groups that have right and wrong answers."""
        made: list[AnySignal] = []
        for group, own in _asked_apart(groups, key):
            right, wrong = _sorted_out(group, own)
            if not right or not wrong or len(right) + len(wrong) < self.k:
                continue
            shown = [right[0], wrong[0], *_mixed(right[1:] + wrong[1:], own)][:self.k]
            shown = _mixed(shown, f"{own}/order")
            options = "\n".join(f"({i + 1}) {r.text}" for i, r in enumerate(shown))
            others = [r for r in shown if r is not right[0]]
            made.append(_row(group, self.prompt.replace("{options}", options), right[0], others,
                             f"one of {self.k}"))
        return made


def _mixed(rollouts: Sequence[Rollout], key: str) -> list[Rollout]:
    return [rollouts[i] for i in keys.shuffled(len(rollouts), key)]


@dataclass(frozen=True)
class Described:
    """Put the model's own description of the picture before the question of every branch (F16).

    Reads `annotations["description"]`, which a verifier stored, or else the first rollout with
    `sampling["stage"] == "description"` (the sampler `Describe`); signals of samples without one,
    and conversations of several turns, stay as they are, or are left out with `strict`. STIC (arXiv
    2405.19716, stage 2). Branches are rendered anew, so drawn log-probs no longer apply.
    """

    maker: Any
    prefix: str = DESCRIBED
    strict: bool = False

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """Whatever the wrapped maker makes."""
        return tuple(getattr(self.maker, "makes", ()))

    def __call__(self, groups: Sequence[Group], key: str, **gold: Any) -> list[AnySignal]:
        """The wrapped maker's signals, described."""
        from selfloop.roles import call_by_name

        told = {g.sample.id: d for g in groups if (d := _description(g))}
        made: list[AnySignal] = call_by_name(self.maker, groups=groups, key=key, **gold)
        able = [s.sample in told and not any(map(converses, s.branches.values())) for s in made]
        return [self._described(s, told[s.sample]) if can else s
                for s, can in zip(made, able, strict=True) if can or not self.strict]

    def _described(self, signal: AnySignal, description: str) -> AnySignal:
        text = self.prefix.replace("{description}", description.strip())
        return signal.model_copy(update={"branches": {
            name: Branch(context=_begun(b.context, text), text=b.text,
                         turns=tuple(t.detached() for t in b.turns),
                         token_weights=b.token_weights)
            for name, b in signal.branches.items()
        }})


def _description(group: Group) -> str:
    drawn = [r.text for r in group.rollouts if r.sampling.get("stage") == "description"]
    found = group.annotations.get("description", drawn[0] if drawn else "")
    return found.strip() if isinstance(found, str) else ""


def _begun(context: Context, text: str) -> Context:
    """The context with a text before the first text of its last message of the user."""
    prompt = list(context.prompt)
    at = max((i for i, m in enumerate(prompt) if m.role == "user"), default=None)
    if at is None:
        raise SelfloopError("Described: a prompt without a message of the user; there is no "
                            "question to put the description before")
    content = list(prompt[at].content)
    first = next((i for i, p in enumerate(content) if p.type == "text"), len(content))
    content.insert(first, Part(text=text))
    prompt[at] = Message(role="user", content=tuple(content))
    return context.model_copy(update={"prompt": tuple(prompt)})
