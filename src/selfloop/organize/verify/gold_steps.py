"""The steps of an answer against those of the gold worked solution (primitives V19)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from selfloop.organize.verify.steps import steps_in
from selfloop.roles import SelfloopError, component_named
from selfloop.types import Rollout, Verdict

Split = Callable[[str], list[tuple[int, int]]]
"""Where the steps of a text stand, in characters."""


def words_in(text: str) -> list[tuple[int, int]]:
    """Every word is a step: for chains such as "3 5 2 = 10"."""
    return [m.span() for m in re.finditer(r"\S+", text)]


def split_named(name: str) -> Split:
    """lines (or the sentences of one line), words, or module:name of a function of your own."""
    ours: dict[str, Split] = {"lines": steps_in, "words": words_in}
    if name in ours:
        return ours[name]
    if ":" not in name:
        raise SelfloopError(f"steps {name!r}: expected lines, words or module:name")
    found = component_named(name)
    if not callable(found):
        raise SelfloopError(f"steps {name!r} is {type(found).__name__}, which cannot be called")
    split: Split = found
    return split


@dataclass(frozen=True)
class GoldSteps:
    """Each step is right (1) if it is the gold solution's step at its place, else wrong (0).

    The score is 1 where all steps are right and none is missing. For solutions of which there is
    one form only, as on testbeds; elsewhere judge steps by a model (verify.steps) or by what comes
    of them. Case and white space make no difference. Abstains without a gold solution.
    """

    split: Split = steps_in

    def __call__(self, rollout: Rollout, rationale: str | None) -> Verdict:
        """Reads `rationale`, a full label. `spans`: each step's place and 1 or 0."""
        if rationale is None:
            return Verdict(rationale="there is no gold solution to compare with")
        gold = [_told(rationale[a:b]) for a, b in self.split(rationale)]
        places = self.split(rollout.text)
        right = [i < len(gold) and _told(rollout.text[a:b]) == gold[i]
                 for i, (a, b) in enumerate(places)]
        return Verdict(score=float(all(right) and len(right) == len(gold)),
                       spans=tuple((a, b, float(r)) for (a, b), r in
                                   zip(places, right, strict=True)),
                       parts={"steps": float(len(places))})


def _told(text: str) -> list[str]:
    return text.lower().split()
