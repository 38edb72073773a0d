"""Self-distillation: what the teacher, the same model, is shown beside the question.

The student's tokens are scored once more under a context that says more. `Privileged`
(signals.py) shows the gold answer; these show a right answer of the same group, what the verifier
said, or a gold demonstration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from selfloop.organize.signals import HERE, elsewhere
from selfloop.roles import SelfloopError
from selfloop.types import AnySignal, Branch, Context, Distill, Group, Part, Rollout, Verdict

SOLUTION = "Here is an answer to this that is right:\n{solution}"
FEEDBACK = "An earlier answer of yours was judged so:\n{feedback}"
DEMONSTRATION = "Here is how this can be answered:\n{demonstration}"
AGAIN = "Now answer the question yourself."

_MAKES: tuple[AnySignal, ...] = (Distill(branches={"student": HERE, "teacher": HERE}),)


def told(context: Context, *texts: str) -> Context:
    """The context with more lines at the end of its last message; empty texts are left out."""
    *before, last = context.prompt
    lines = "".join(f"\n{text}" for text in texts if text)
    more = last.model_copy(update={"content": (*last.content, Part(text=lines))})
    return context.model_copy(update={"prompt": (*before, more)})


def _taught(group: Group, rollout: Rollout, context: Context, why: str) -> Distill:
    drawn = Branch.drawn(rollout)
    return Distill(branches={"student": drawn, "teacher": elsewhere(context, drawn)},
                   sample=group.sample.id, rollouts=(rollout.id,), role=rollout.role, why=why)


def _slot(name: str, text: str, slot: str) -> None:
    if text and f"{{{slot}}}" not in text:
        raise SelfloopError(f"{name}={text!r}: say by {{{slot}}} where the text goes")


@dataclass(frozen=True)
class FromPeers:
    """The teacher is shown another answer of the group that was judged right (SDPO, arXiv
    2601.20802, and its released code).

    That is the group's first right answer to the same question; for this one itself, the second, if
    there is one: no answer is its own solution. So the teachers of a group that was drawn under one
    context have two prompts at most, and their answers share these. With `feedback` (a text with
    {feedback}; `FEEDBACK` is one) an answer without such a peer is taught by its own verdict's
    `rationale` instead. An answer that has neither teaches nothing. Reads no label itself.
    Conversations of several turns are left out.
    """

    solution: str = SOLUTION
    feedback: str = ""
    again: str = AGAIN
    at_least: float = 1.0
    makes: ClassVar[tuple[AnySignal, ...]] = _MAKES

    def __post_init__(self) -> None:
        _slot("FromPeers.solution", self.solution, "solution")
        _slot("FromPeers.feedback", self.feedback, "feedback")

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Distill an answer whose teacher knows more than it did."""
        return [signal for group in groups for signal in self._of(group)]

    def _of(self, group: Group) -> list[Distill]:
        verdicts = dict(zip((r.id for r in group.rollouts), group.verdicts, strict=False))
        right = [r for r, score in group.scored() if self._shows(r, score)]
        made: list[Distill] = []
        for rollout in group.rollouts:
            if len(rollout.turns) != 1:
                continue
            peer = next((r for r in right if r.id != rollout.id
                         and r.context.text == rollout.context.text), None)
            text, why = self._said(peer, verdicts.get(rollout.id, Verdict()))
            if text:
                made.append(_taught(group, rollout, told(rollout.context, text, self.again), why))
        return made

    def _shows(self, rollout: Rollout, score: float) -> bool:
        return score >= self.at_least and rollout.finish_reason == "stop" \
            and bool(rollout.text.strip())

    def _said(self, peer: Rollout | None, verdict: Verdict) -> tuple[str, str]:
        """What the teacher is told, and the signal's `why`."""
        if peer is not None and self.solution:
            return self.solution.replace("{solution}", peer.text.strip()), f"peer {peer.id}"
        if self.feedback and verdict.rationale.strip():
            return self.feedback.replace("{feedback}", verdict.rationale.strip()), "feedback"
        return "", ""


@dataclass(frozen=True)
class FromDemonstrations:
    """The teacher is shown the gold rationale, a full label (SDFT, arXiv 2601.19897)."""

    demonstration: str = DEMONSTRATION
    again: str = AGAIN
    makes: ClassVar[tuple[AnySignal, ...]] = _MAKES

    def __post_init__(self) -> None:
        _slot("FromDemonstrations.demonstration", self.demonstration, "demonstration")

    def __call__(self, groups: Sequence[Group], key: str, rationales: Mapping[str, str]
                 ) -> list[AnySignal]:
        """One Distill a one-turn answer to a question that has a rationale."""
        made: list[AnySignal] = []
        for group in groups:
            if (gold := rationales.get(group.sample.id)) is None:
                continue
            text = self.demonstration.replace("{demonstration}", str(gold))
            made += [_taught(group, r, told(r.context, text, self.again), "gold demonstration")
                     for r in group.rollouts
                     if len(r.turns) == 1 and r.context.text == group.sample.context.text]
        return made
