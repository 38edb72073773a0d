"""Whether thinking again helped: the answer before and after a reflection (primitives V23)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfloop.calling import as_verdict, call_by_name, name_of
from selfloop.organize.verify.rules import exact, tagged
from selfloop.roles import Verifier
from selfloop.types import Part, Rollout, Verdict

MATRIX = ((0.0, 1.0), (-0.25, 0.75))
"""MATRIX[first right][last right]: SRPO's intended table."""


def reflection_reward(first: bool, last: bool,
                      matrix: tuple[tuple[float, float], tuple[float, float]] = MATRIX) -> float:
    """Right/right .75, right/wrong -.25, wrong/right 1, wrong/wrong 0.

    SRPO (arXiv 2506.01713). Its released code gives 0 for wrong/right and -.25 for
    wrong/wrong, by a chained comparison; the table here is the one that was meant.
    """
    return matrix[first][last]


@dataclass(frozen=True)
class Reflection:
    """`reflection_reward` of the first and the last `<answer>` block, each judged by `rule`.

    An answer with a single block did not reflect: it scores `single` (0; None to leave it out).
    None if the rule cannot tell about either block.
    """

    rule: Verifier = exact
    matrix: tuple[tuple[float, float], tuple[float, float]] = MATRIX
    single: float | None = 0.0

    def __call__(self, rollout: Rollout, **offered: Any) -> Verdict:
        """Gold values reach `rule` alone."""
        blocks = [f"<answer>{held}</answer>" for held in tagged(rollout.text)]
        if len(blocks) < 2:
            return Verdict(score=self.single, rationale=f"{len(blocks)} answer blocks, not two")
        found = [self._judged(rollout, block, offered) for block in (blocks[0], blocks[-1])]
        parts = {name: float(v.right) for name, v in zip(("first", "last"), found, strict=True)
                 if v.score is not None}
        score = reflection_reward(found[0].right, found[1].right, self.matrix) \
            if len(parts) == 2 else None
        return Verdict(score=score, parts=parts, rationale=found[1].rationale)

    def _judged(self, rollout: Rollout, block: str, offered: dict[str, Any]) -> Verdict:
        alone = rollout.model_copy(update={"output": (Part(text=block),)})
        return as_verdict(call_by_name(self.rule, rollout=alone, **offered), name_of(self.rule))
