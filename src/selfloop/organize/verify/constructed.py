"""Rewards where a program made the problem, so that its answer is known by construction."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from selfloop.calling import as_verdict
from selfloop.organize.verify.rules import number
from selfloop.roles import SelfloopError
from selfloop.types import Group, Rollout, Verdict


@dataclass(frozen=True)
class ByConstruction:
    """What the sampler `Challenge` drew: 1 for the answer that a problem was made with, else 0.

    A program that made no problem earns 0; one that did earns valid + (1 - valid) (1 - |2 s - 1|)
    less `crowding` times the share of programs equal to it among the group's others, at least 0,
    for the share s of right answers to its problem. EVE (arXiv 2604.18320) rewards programs that
    run, problems that are right half of the time, and diversity; the weights are chosen by us. A
    program whose problem nobody answered readably abstains. No label is read: answers are compared
    with the number that the program was run with, by `rules.number`.
    """

    valid: float = 0.25
    crowding: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.valid <= 1 or self.crowding < 0:
            raise SelfloopError(f"ByConstruction(valid={self.valid}, crowding={self.crowding}): "
                                "valid must be in [0, 1] and crowding at least 0")

    def __call__(self, group: Group) -> list[Verdict]:
        """One verdict a rollout."""
        answered = {r.id: self._answered(r) for r in group.rollouts if "constructed" in r.sampling}
        programs = [r for r in group.rollouts if "program" in r.sampling]
        same = Counter(_words(r) for r in programs)
        others = max(1, len(programs) - 1)
        return [answered[r.id] if r.id in answered
                else self._proposed(r, group, answered, (same[_words(r)] - 1) / others)
                for r in group.rollouts]

    @staticmethod
    def _answered(rollout: Rollout) -> Verdict:
        return as_verdict(number(rollout, answer=rollout.sampling["constructed"]),
                          "number by construction")

    def _proposed(self, rollout: Rollout, group: Group, answered: dict[str, Verdict],
                  alike: float) -> Verdict:
        if "program" not in rollout.sampling:
            return Verdict(rationale="neither a program nor an answer to one")
        if why := rollout.sampling.get("why"):
            return Verdict(score=0.0, rationale=str(why))
        judged = [v.right for r in group.rollouts if r.sampling.get("proposal") == rollout.id
                  if (v := answered[r.id]).score is not None]
        if not judged:
            return Verdict(rationale="nobody answered its problem")
        share = sum(judged) / len(judged)
        even = 1 - abs(2 * share - 1)
        return Verdict(score=max(0.0, self.valid + (1 - self.valid) * even - self.crowding * alike),
                       parts={"right": share, "alike": alike})


def _words(rollout: Rollout) -> str:
    return " ".join(str(rollout.sampling.get("program")).split())
