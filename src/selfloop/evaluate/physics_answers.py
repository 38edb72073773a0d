r"""PHYSICS as its authors mark it (yale-nlp/Physics): their boxes, their symbolic check, their
stored verdicts, and how far other verdicts agree with those."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfloop.evaluate.latex.claims import claims
from selfloop.evaluate.latex.values import same_formula
from selfloop.organize.verify.boxed import boxed
from selfloop.roles import SelfloopError
from selfloop.sources import jsonl_rows

Verdict3 = bool | None
"""True, False, or None: could not tell."""


@dataclass(frozen=True)
class Comparison:
    """One answer against one part of the key, as the authors stored it."""

    row: str
    said: str
    gold: str
    symbolic: Verdict3
    """None where their check failed or was not tried."""
    judged: Verdict3
    """None where the judge was not asked."""
    verdict: bool


@dataclass(frozen=True)
class Stored:
    """A model's stored evaluation."""

    comparisons: tuple[Comparison, ...]
    accuracies: Mapping[str, float]
    """{row: share of its extracted answers that the authors count as right}."""
    counted: Mapping[str, int]
    """{row: extracted answers}."""

    @property
    def accuracy(self) -> float:
        """The mean over rows, as the authors report it: rows without an answer are 0."""
        return sum(self.accuracies.values()) / len(self.accuracies)

    def recounted(self) -> float:
        """The same from the verdicts alone: right answers over extracted ones, row by row."""
        right = Counter(c.row for c in self.comparisons if c.verdict)
        shares = [right[row] / n if n else 0.0 for row, n in self.counted.items()]
        return sum(shares) / len(shares)


def stored(path: str | Path) -> Stored:
    """The authors' `final_evaluation.jsonl` of one model and subject.

    Raises SelfloopError naming the file and the row that is not of that layout.
    """
    comparisons: list[Comparison] = []
    accuracies: dict[str, float] = {}
    counted: dict[str, int] = {}
    for number, found in jsonl_rows(Path(path)):
        try:
            if isinstance(found, str):
                raise ValueError(found)
            name = str(found["id"])
            if name in accuracies:
                name = f"{name} (row {number})"
            accuracies[name] = float(found["accuracy"])
            counted[name] = len(found["final_answers"])
            comparisons += [_comparison(name, one) for one in found["equivalency_results"]]
        except (KeyError, TypeError, ValueError) as error:
            raise SelfloopError(
                f"{path}, row {number}: not a stored evaluation ({error!r}); expected the fields "
                "id, final_answers, equivalency_results, accuracy") from error
    if not accuracies:
        raise SelfloopError(f"{path}: no rows; expected a stored evaluation")
    return Stored(tuple(comparisons), accuracies, counted)


def _comparison(row: str, found: Mapping[str, object]) -> Comparison:
    both = found["input_expressions"]
    if not isinstance(both, Mapping):
        raise TypeError("input_expressions is no object")
    return Comparison(row, str(both["expr1"]), str(both["expr2"]), _three(found["sympy_result"]),
                      _three(found["llm_result"]), bool(found["final_result"]))


def _three(found: object) -> Verdict3:
    return None if found is None else bool(found)


# -- their rules -----------------------------------------------------------------------------------

def authors_boxes(text: str) -> list[str]:
    r"""What they take from an answer: every \boxed{}, and the inner one where boxes nest.

    Theirs is a pattern that reads two levels of braces and cuts deeper ones off; the contents are
    taken whole here. As in theirs, no space may stand before the brace.
    """
    text = re.sub(r"\\fbox|\\boxed\s+(?=\{)", "", text)
    return [inner[0] if (inner := boxed(box)) else box for box in boxed(text)]


def symbolically_equal(said: str, gold: str) -> bool:
    r"""Their symbolic check: indices dropped, what follows the last "=", equal as formulas.

    They simplify with SymPy; here the formulas are evaluated at points, which needs no time limit.
    Answers with \text go to their judge unchecked, so False is all that is known of them.
    """
    if r"\text" in said or r"\text" in gold:
        return False
    sides = []
    for latex in (said, gold):
        plain = re.sub(r"_\\?\w", "", re.sub(r"_\{.*?\}", "", latex))
        read = claims(plain.split(r"\implies")[-1].split("=")[-1].strip())
        if len(read) != 1 or len(read[0].sides) != 1 or not read[0].sides[0].readings:
            return False
        sides.append(read[0].sides[0].readings[-1][0])
    return same_formula(sides[1], sides[0]) is True


# -- agreement -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Agreement:
    """Two judges on the same answers; the second may abstain."""

    table: Mapping[tuple[bool, Verdict3], int]
    """{(the first's verdict, the second's): answers}."""

    @property
    def decided(self) -> int:
        """Answers on which the second gave a verdict."""
        return sum(n for (_, b), n in self.table.items() if b is not None)

    @property
    def undecided(self) -> float:
        """The share on which it gave none."""
        return 1 - self.decided / sum(self.table.values())

    @property
    def rate(self) -> float:
        """The share of equal verdicts among the decided."""
        return sum(n for (a, b), n in self.table.items() if a is b) / self.decided

    @property
    def kappa(self) -> float:
        """Cohen's kappa (1960) among the decided; 0 where both gave one verdict throughout."""
        def share(place: int) -> float:
            return sum(n for both, n in self.table.items()
                       if both[1] is not None and both[place]) / self.decided
        first, second = share(0), share(1)
        chance = first * second + (1 - first) * (1 - second)
        return (self.rate - chance) / (1 - chance) if chance < 1 else 0.0


def agreement(comparisons: Sequence[Comparison], judge: Callable[[str, str], Verdict3]
              ) -> tuple[Agreement, list[tuple[Comparison, Verdict3]]]:
    """How `judge(gold, said)` agrees with the stored verdicts, and where it decides otherwise."""
    verdicts = [(c, judge(c.gold, c.said)) for c in comparisons]
    table = Counter((c.verdict, v) for c, v in verdicts)
    return Agreement(dict(table)), [(c, v) for c, v in verdicts
                                    if v is not None and v is not c.verdict]
