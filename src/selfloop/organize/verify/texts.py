"""Near texts and several accepted answers: ANLS, and the best over a list (primitives V2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.calling import SelfloopError, as_verdict, asks_a_model, call_by_name, name_of
from selfloop.organize.verify.final import final_answer, gold_texts, joined, uncut
from selfloop.organize.verify.parts import failed
from selfloop.roles import Verifier
from selfloop.types import Rollout, Verdict

LONGEST = 1000
"""Characters of an answer that are compared; a longer one is none of the gold texts."""


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements that make `a` into `b` (Levenshtein 1966)."""
    short, long = sorted((a, b), key=len)
    row = list(range(len(short) + 1))
    for i, c in enumerate(long, 1):
        above, row = row, [i]
        for j, d in enumerate(short, 1):
            row.append(above[j - 1] if c == d else 1 + min(above[j - 1], above[j], row[-1]))
    return row[-1]


def anls(said: str, golds: Sequence[str], *, threshold: float = 0.5, raw_lengths: bool = False
         ) -> float:
    """Average normalised Levenshtein similarity of one answer: its best over `golds`, in 0..1.

    Case and runs of white space do not count; below `threshold` it is 0. Biten et al. 2019 (arXiv
    1905.13648), section 4; at exactly the threshold the value counts, as in the tools and on the
    official server. `raw_lengths`: divide by the lengths before white space went, as lmms-eval.
    """
    best, text = 0.0, " ".join(said.lower().split())
    for gold in golds:
        target = " ".join(gold.lower().split())
        longest = max(len(gold), len(said)) if raw_lengths else max(len(target), len(text))
        best = max(best, 1 - edit_distance(text, target) / longest if longest else 1.0)
    return best if best >= threshold else 0.0


def accepted(answer: Any) -> list[Any]:
    """A gold value as a list of accepted ones: the list itself, or the one value; None is none."""
    if answer is None:
        return []
    return list(answer) if isinstance(answer, list | tuple) else [answer]


@dataclass(frozen=True)
class ANLS:
    """The similarity of the final answer and the nearest accepted text, in 0..1; see `anls`.

    1 for a gold text that an "=" or "answer:" would cut, said verbatim. Abstains on a blank gold.
    """

    threshold: float = 0.5

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """`answer`: one text, or a list of accepted ones."""
        golds = gold_texts(answer)
        said = final_answer(rollout.text)
        if not golds:
            return Verdict(rationale=said or "")
        if said is None or len(said) > LONGEST:
            return Verdict(score=0.0, rationale=(said or "")[:LONGEST])
        cut = anls(said, golds, threshold=self.threshold)
        whole = any(joined(t) == joined(g) for t in uncut(rollout.text) for g in golds)
        return Verdict(score=1.0 if whole else cut, rationale=said)


@dataclass(frozen=True)
class AnyAccepted:
    """The best that `rule` says over a list of accepted gold values.

    Golds that the rule cannot read are left out: 1 if one says right, 0 if all that could tell say
    wrong and every gold was readable, None where an unread gold might have been the right one. A
    rule that fails on one makes the whole fail. `rule` asks no model: for that, ReferenceJudge.
    """

    rule: Verifier

    def __post_init__(self) -> None:
        if asks_a_model(self.rule):
            raise SelfloopError(f"AnyAccepted({name_of(self.rule)}): it asks a model; give a rule, "
                                "or use ReferenceJudge alone")

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """`answer`: one gold value, or a list of accepted ones."""
        found = [as_verdict(call_by_name(self.rule, rollout=rollout, answer=gold),
                            name_of(self.rule)) for gold in accepted(answer)]
        if (error := failed(found)) is not None:
            return error
        told = [v for v in found if v.score is not None]
        best = max(told, key=lambda v: v.score or 0.0, default=None)
        if best is None or (not best.right and len(told) < len(found)):
            return Verdict(rationale=final_answer(rollout.text) or "")
        return best
