"""Several verifiers as one (primitives: "combine"): abstain-aware conjunction and weighted mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfloop.organize.verify.rules import final_answer
from selfloop.roles import Verifier, as_verdict, call_by_name, name_of
from selfloop.types import Rollout, Verdict


def _verdicts(verifiers: tuple[Verifier, ...], rollout: Rollout, offered: dict[str, Any]
              ) -> list[Verdict]:
    return [as_verdict(call_by_name(v, rollout=rollout, **offered), name_of(v))
            for v in verifiers]


def _parts(found: list[Verdict]) -> dict[str, float]:
    return {v.verifier.rsplit(":")[-1]: v.score for v in found if v.score is not None}


@dataclass(frozen=True)
class AllOf:
    """The product of the scores of synchronous rollout verifiers.

    0 as soon as one says 0, whatever the others; otherwise None when one abstains.
    """

    verifiers: tuple[Verifier, ...]

    def __call__(self, rollout: Rollout, **offered: Any) -> Verdict:
        """Gold values reach only those verifiers that name them."""
        found = _verdicts(self.verifiers, rollout, offered)
        scores = [v.score for v in found]
        score: float | None = 1.0
        if any(s == 0 for s in scores):
            score = 0.0
        elif any(s is None for s in scores):
            score = None
        else:
            for s in scores:
                score *= s  # type: ignore[operator]
        return Verdict(score=score, parts=_parts(found),
                       rationale=final_answer(rollout.text) or "")


@dataclass(frozen=True)
class Weighted:
    """The weighted mean over the verifiers that could tell; None when none could."""

    verifiers: tuple[tuple[float, Verifier], ...]

    def __call__(self, rollout: Rollout, **offered: Any) -> Verdict:
        """See AllOf."""
        found = _verdicts(tuple(v for _, v in self.verifiers), rollout, offered)
        told = [(w, v.score) for (w, _), v in zip(self.verifiers, found, strict=True)
                if v.score is not None]
        total = sum(w for w, _ in told)
        score = sum(w * s for w, s in told) / total if total else None
        return Verdict(score=score, parts=_parts(found),
                       rationale=final_answer(rollout.text) or "")

