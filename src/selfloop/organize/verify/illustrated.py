"""What proposers, coders and solvers earn where pictures are drawn by programs (MM-Zero)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfloop.calling import as_verdict
from selfloop.organize.verify.answer_spread import uncertainty_peak
from selfloop.organize.verify.questions import cluster_shares
from selfloop.organize.verify.rules import exact, normal_answer
from selfloop.organize.verify.vote import majority, tied
from selfloop.roles import SelfloopError, Verifier, call_by_name, name_of
from selfloop.types import Group, Rollout, Verdict

WEIGHTS = {"caption": 0.45, "easy_question": 0.2, "hard_question": 0.35}
"""Of the parts of a proposal, when proposals are compared."""
NEAR = 0.25
"""Distance (1 - BLEU) at which two texts are of one cluster."""


@dataclass(frozen=True)
class _Looked:
    """What the solver made of one picture."""

    solved: float
    """Share of answers to the easy question that are the proposer's."""
    agreed: float
    """Share of the most frequent answer to it, whatever it is."""
    peak: float
    """min(c, 1 - c), c = share of the most frequent answer to the hard question."""


@dataclass(frozen=True)
class Illustrated:
    """What the sampler `Illustrate` drew: rewards of MM-Zero (arXiv 2603.09206, released code).

    With s the share of answers to a picture's easy question that are the proposer's, c that of the
    most frequent answer to its hard question, and d = min(c, 1 - c):

    - a **program** whose picture was drawn earns 1 + s + d, another one `failed`;
    - a **proposal** the mean of s + d over its programs, 0 for one without a picture, less what it
      has in common with the others: n * crowding * sum of w (share of its cluster - 1 / n) over
      caption, easy and hard question, at most `crowding` either way, of n that can be read (w =
      .45, .2, .35; clusters by BLEU); one that cannot be read earns `unreadable`;
    - an **answer** to a hard question 1 if it is the most frequent one, else 0; with `form`, a
      verifier of its form, (1 - weight) of that + weight of this. It abstains where fewer than
      `easy` of the answers to the easy question agree, because what the picture shows is not clear
      then, and where several hard answers share the lead.
      Answers to easy questions get no score: they measure the picture, and nobody learns from them.

    A picture that nobody answered readably leaves its program unscored, and a proposal that has no
    other. No label is read.
    """

    failed: float = -0.1
    unreadable: float = -1.0
    crowding: float = 0.5
    easy: float = 0.5
    form: Verifier | None = None
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.easy <= 1 or not 0 <= self.weight <= 1 or self.crowding < 0:
            raise SelfloopError(f"Illustrated(easy={self.easy}, weight={self.weight}, crowding="
                                f"{self.crowding}): easy and weight must be in [0, 1], crowding at "
                                "least 0")

    def __call__(self, group: Group) -> list[Verdict]:
        """One verdict a rollout."""
        rollouts = group.rollouts
        looked = {r.id: _looked([a for a in rollouts if a.sampling.get("drawing") == r.id])
                  for r in rollouts if "program" in r.sampling}
        crowds = self._crowds([r for r in rollouts if r.sampling.get("conceived")])
        return [self._verdict(r, rollouts, looked, crowds) for r in rollouts]

    def _verdict(self, rollout: Rollout, group: Sequence[Rollout],
                 looked: Mapping[str, _Looked | None], crowds: Mapping[str, float]) -> Verdict:
        notes = rollout.sampling
        if "conceived" in notes:
            return self._proposed(rollout, [r for r in group if "program" in r.sampling
                                            and r.sampling.get("proposal") == rollout.id],
                                  looked, crowds)
        if "program" in notes:
            return self._drawn(rollout, looked[rollout.id])
        if "drawing" in notes and "expected" not in notes:
            return self._answered(rollout, [normal_answer(r.text) for r in group if
                                            r.sampling.get("proposal") == notes["drawing"]],
                                  looked.get(str(notes["drawing"])))
        return Verdict(rationale="an answer by which its picture is measured" if "drawing" in notes
                       else "neither a proposal, a program nor an answer")

    def _proposed(self, rollout: Rollout, programs: Sequence[Rollout],
                  looked: Mapping[str, _Looked | None], crowds: Mapping[str, float]) -> Verdict:
        if why := rollout.sampling.get("why"):
            return Verdict(score=self.unreadable, rationale=str(why))
        drawn = [p.id for p in programs if not p.sampling.get("why")]
        seen = [found for name in drawn if (found := looked[name]) is not None]
        earned = [0.0] * (len(programs) - len(drawn)) + [one.solved + one.peak for one in seen]
        if not earned:
            return Verdict(rationale="no picture of it was drawn and looked at")
        crowd = crowds[rollout.id]
        return Verdict(score=sum(earned) / len(earned) - crowd,
                       parts={"crowd": crowd, "drawn": len(drawn) / len(programs)})

    def _drawn(self, rollout: Rollout, seen: _Looked | None) -> Verdict:
        if why := rollout.sampling.get("why"):
            return Verdict(score=self.failed, rationale=str(why))
        if seen is None:
            return Verdict(rationale="nobody answered what was asked of its picture")
        return Verdict(score=1 + seen.solved + seen.peak,
                       parts={"solved": seen.solved, "agreed": seen.agreed, "peak": seen.peak})

    def _answered(self, rollout: Rollout, votes: Sequence[str | None], seen: _Looked | None
                  ) -> Verdict:
        said, (winner, share) = normal_answer(rollout.text), majority(votes)
        if winner is None or seen is None:
            return Verdict(rationale="nobody answered readably")
        parts = {"vote_share": share, "easy_share": seen.agreed}
        if seen.agreed < self.easy:
            return Verdict(parts=parts, rationale="the easy question divides: what the picture "
                           "shows is unclear")
        if tied(votes):
            return Verdict(parts=parts, rationale="several answers share the lead")
        right = float(said == winner)
        if self.form is None:
            return Verdict(score=right, parts=parts, rationale=said or "")
        form = as_verdict(call_by_name(self.form, rollout=rollout), name_of(self.form)).score
        score = None if form is None else (1 - self.weight) * right + self.weight * form
        return Verdict(score=score, parts=parts | {"right": right}, rationale=said or "")

    def _crowds(self, proposals: Sequence[Rollout]) -> dict[str, float]:
        """What each readable proposal pays for being like the others."""
        n, total = len(proposals), dict.fromkeys((p.id for p in proposals), 0.0)
        for name, weight in WEIGHTS.items():
            told = [str(_conceived(p)[name]) for p in proposals]
            for p, share in zip(proposals, cluster_shares(told, NEAR), strict=True):
                total[p.id] += weight * (share - 1 / n)
        return {name: max(-self.crowding, min(self.crowding, x * n * self.crowding))
                for name, x in total.items()}


def _conceived(proposal: Rollout) -> Mapping[str, object]:
    found = proposal.sampling["conceived"]
    return found if isinstance(found, Mapping) else {}


def _looked(answers: Sequence[Rollout]) -> _Looked | None:
    """None where one of the two questions has no readable answer."""
    easy = [a for a in answers if "expected" in a.sampling]
    hard = [normal_answer(a.text) for a in answers if "expected" not in a.sampling]
    peak, (said, agreed) = uncertainty_peak(hard), majority([normal_answer(a.text) for a in easy])
    if peak is None or said is None:
        return None
    right = sum(exact(a, answer=a.sampling["expected"]).right for a in easy)
    return _Looked(right / len(easy), agreed, peak)
