"""Does a rationale lead back to the label (primitives V6; Video-STaR, arXiv 2407.06189)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from selfloop.organize.verify.numeric import quantities
from selfloop.organize.verify.texts import accepted
from selfloop.types import Rollout, Verdict

_SPAN = re.compile(
    r"(?<![\d:.])(\d[\d:.]{0,15})\s{0,3}(?:s|sec|seconds)?\s{0,3}(?:-|–|to|until|and)\s{0,3}"
    r"(\d[\d:.]{0,15})", re.I)


def seconds(text: str) -> float | None:
    """"75", "1:15" or "0:01:15" in seconds; None for anything else."""
    if not re.fullmatch(r"\d+(?::[0-5]?\d){0,2}(?:\.\d+)?", text.rstrip(".:")):
        return None
    total = 0.0
    for piece in text.rstrip(".:").split(":"):
        total = total * 60 + float(piece)
    return total


def time_spans(text: str) -> list[tuple[float, float]]:
    """The stretches of time that a text names ("from 0:05 to 0:12", "3 - 4.5 s"), in seconds."""
    found = [(seconds(a), seconds(b)) for a, b in _SPAN.findall(text)]
    return [(a, b) for a, b in found if a is not None and b is not None and a < b]


def time_iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over union of two stretches of time, in [0, 1]."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - shared
    return shared / union if union > 0 else 0.0


@dataclass(frozen=True)
class LabelRecovery:
    """1 if the text of the rationale gives the label back, else 0.

    A text label: it, or one of several accepted ones, stands there as whole words, case and runs of
    white space apart; a number: equals one that is named; [start, end] in seconds: the best named
    stretch of time has an IoU of `overlap` or more. What `<answer>` holds is left out: it is the
    answer and not how it was reached. "Not a cat" names a cat: combine it with the answer rule.
    """

    overlap: float = 0.5

    def __call__(self, rollout: Rollout, answer: Any) -> Verdict:
        """Abstains without a label, or on one that is empty."""
        text = re.sub(r"<answer>.*?(?:</answer>|$)", " ", rollout.text, flags=re.S)
        if isinstance(answer, list | tuple) and len(answer) == 2 and all(
                isinstance(x, int | float) for x in answer):
            best = max((time_iou(s, (answer[0], answer[1])) for s in time_spans(text)), default=0.0)
            return Verdict(score=float(best >= self.overlap), parts={"overlap": best})
        golds = [g for g in accepted(answer) if str(g).strip()]
        if not golds:
            return Verdict(rationale="there is no label to find")
        named = next((str(g) for g in golds if _names(text, g)), "")
        return Verdict(score=float(bool(named)), rationale=named)


def _names(text: str, label: Any) -> bool:
    if isinstance(label, int | float) and not isinstance(label, bool):
        return any(abs(value - label) <= 1e-9 for value, _ in quantities(text))
    words = " ".join(str(label).lower().split())
    plain = " ".join(text.lower().split())
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", plain) is not None
