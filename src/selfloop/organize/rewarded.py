"""What a reward model is shown, and the signals that train one (primitives L24).

A reward model here is a language model that is asked whether an answer is right; its reward is the
log-odds of two words at the first token of its reply (losses.reward). The answer stands in the
conversation as the assistant's own turn, so that any chat template carries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from selfloop.organize.refine.filters import by_what_was_asked
from selfloop.organize.refine.pairs import Margin, Propose
from selfloop.organize.signals import HERE, clean
from selfloop.types import Advantage, AnySignal, Branch, Context, Group, Pair

ASK = "is this right ?"
WORDS = ("yes", "no")
"""The word for a good answer and the one for a bad answer."""


def judged(context: Context, answer: str, ask: str = ASK, word: str = WORDS[0]) -> Branch:
    """The question, the answer (or its beginning), and what is asked about it; replied by `word`.

    Losses and verifiers read the two words' log-probs at the reply's first token, so which of the
    words stands there makes no difference.
    """
    return Branch(context=context.said("assistant", answer).said("user", ask), text=word)


@dataclass(frozen=True)
class OutcomePairs:
    """Right answers against wrong ones as pairs of judged answers, for `BradleyTerry`.

    `propose` picks the pairs of a group by the verifier's scores (refine.pairs).
    """

    propose: Propose = Margin(0.5, 4)
    ask: str = ASK
    word: str = WORDS[0]
    makes: ClassVar[tuple[AnySignal, ...]] = (Pair(branches={"chosen": HERE, "rejected": HERE}),)

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Pair a candidate; groups in which all answers are alike give none."""
        return [
            Pair(branches={name: judged(clean(r.context), r.text, self.ask, self.word)
                           for name, r in (("chosen", c.chosen), ("rejected", c.rejected))},
                 sample=c.group.sample.id, rollouts=(c.chosen.id, c.rejected.id),
                 role=c.chosen.role, why=f"score gap {c.gap:g}")
            for group in groups
            for part, own in by_what_was_asked(group, f"{key}/{group.sample.id}")
            for c in self.propose(part, own)]


@dataclass(frozen=True)
class StepLabels:
    """Every step that the verifier judged, as an answer cut after it, for `StepBCE`.

    Reads the verdicts' spans: (start, end, score in [0, 1]). Equal beginnings of answers to one
    problem are one signal, labelled with their mean. Spans outside [0, 1] are left out.
    """

    ask: str = ASK
    word: str = WORDS[0]
    makes: ClassVar[tuple[AnySignal, ...]] = (
        Advantage(branches={"answer": HERE}, advantage=0.0),)

    def __call__(self, groups: Sequence[Group], key: str) -> list[AnySignal]:
        """One Advantage a distinct beginning; its number is the label."""
        made: list[AnySignal] = []
        for group in groups:
            labels: dict[str, list[float]] = {}
            by: dict[str, list[str]] = {}
            for rollout, verdict in zip(group.rollouts, group.verdicts, strict=False):
                for _, end, label in verdict.spans:
                    if 0 <= label <= 1:
                        labels.setdefault(rollout.text[:end], []).append(label)
                        by.setdefault(rollout.text[:end], []).append(rollout.id)
            made += [Advantage(
                branches={"answer": judged(group.sample.context, text, self.ask, self.word)},
                advantage=sum(found) / len(found), sample=group.sample.id, rollouts=tuple(by[text]),
                role=group.rollouts[0].role, why=f"step {text[-20:]!r} in {len(found)} answers")
                for text, found in labels.items()]
        return made
