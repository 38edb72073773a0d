"""Judging loops that ask their own questions: who is paid for what, without any label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfloop.doors import is_async
from selfloop.organize.verify.rules import normal_answer
from selfloop.roles import SelfloopError, Verifier, as_verdict, call_by_name, name_of, parameters
from selfloop.types import Group, Rollout, Sample, Verdict


@dataclass(frozen=True)
class PseudoLabel:
    """1 for the answer `meta["pseudo_label"]` of a proposed sample, 0 for another.

    With `form`, a verifier of the answer's form: (1 - weight) * [answer = label] + weight * form,
    VisPlay's solver reward (arXiv 2511.15661, released code, weight .1). Abstains where there is
    no pseudo-label and where `form` does. Answers are compared by `normal_answer`. The
    pseudo-label is a vote of the model's own answers (`AskNext`), so no label is read.
    """

    form: Verifier | None = None
    weight: float = 0.1

    def __post_init__(self) -> None:
        if self.form is None:
            return
        lacking = [n for n, p in parameters(self.form).items()
                   if n != "rollout" and p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        if lacking or is_async(self.form):
            why = f"asks for {lacking[0]!r}" if lacking else "is asynchronous"
            raise SelfloopError(f"PseudoLabel(form={name_of(self.form)}): it {why}; the form of an "
                                "answer is told from the rollout alone, as Tags and Pattern do")

    def __call__(self, rollout: Rollout, sample: Sample) -> Verdict:
        """The reward of one answer."""
        label, said = sample.meta.get("pseudo_label"), normal_answer(rollout.text)
        if not isinstance(label, str):
            return Verdict(rationale="no pseudo-label")
        right = float(said == label)
        if self.form is None:
            return Verdict(score=right, rationale=said or "")
        form = as_verdict(call_by_name(self.form, rollout=rollout), name_of(self.form)).score
        score = None if form is None else (1 - self.weight) * right + self.weight * form
        parts = {"right": right} | ({} if form is None else {"form": form})
        return Verdict(score=score, parts=parts, rationale=said or "")


@dataclass(frozen=True)
class OwnQuestions:
    """`asking` judges the groups in which questions were proposed, `answering` the others.

    Either is a synchronous verifier, of a rollout or of a group; without one, those groups get no
    score. Groups with a rollout of role `proposer` are those in which questions were proposed.
    """

    answering: Verifier
    asking: Verifier | None = None
    proposer: str = "proposer"

    def __post_init__(self) -> None:
        for verifier in (self.asking, self.answering):
            if verifier is not None and is_async(verifier):
                raise SelfloopError(f"OwnQuestions: {name_of(verifier)} is asynchronous; give "
                                    "verifiers that need no model")

    def __call__(self, group: Group, **offered: Any) -> list[Verdict]:
        """One verdict a rollout. Gold values reach only those verifiers that name them."""
        asked = any(r.role == self.proposer for r in group.rollouts)
        inner = self.asking if asked else self.answering
        if inner is None:
            return [Verdict(rationale="proposals are not judged") for _ in group.rollouts]
        offered = {**offered, "sample": group.sample}
        if "group" in parameters(inner):
            found: list[Verdict] = call_by_name(inner, group=group, **offered)
            return found
        return [as_verdict(call_by_name(inner, rollout=r, **offered), name_of(inner))
                for r in group.rollouts]
