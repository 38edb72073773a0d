"""Whether the place of an answer decides what it is paid, whatever it says."""

from __future__ import annotations

from collections.abc import Sequence

from selfloop.auditing.attacks import wrong_for
from selfloop.auditing.calibrating import Measured, Share, resampled
from selfloop.auditing.putting import Asked
from selfloop.auditing.said import said
from selfloop.doors import Doors
from selfloop.organize.judging import judge
from selfloop.roles import Verifier, parameters
from selfloop.types import Sample


def _pairs(samples: Sequence[Asked], golds: Sequence[str]) -> list[tuple[Sample, str, str]]:
    return [(a.sample, g, w) for a in samples for g in a.gold
            for w in wrong_for(a.known, golds)[:1]]


def position_bias(verifier: Verifier, samples: Sequence[Asked], golds: Sequence[str],
                  doors: Doors) -> Measured | None:
    """Two answers in both orders; None for verifiers of single answers."""
    if "group" not in parameters(verifier):
        return None
    groups = [said(s, both) for s, g, w in _pairs(samples, golds) for both in ((g, w), (w, g))]
    ahead: list[float] = []
    names: list[str] = []
    for found in judge(verifier, groups, doors).groups:
        scores = [v.score for v in found.verdicts]
        if len(scores) == 2 and scores[0] is not None and scores[1] is not None:
            ahead.append(scores[0] - scores[1])
            names.append(found.sample.id)
    return resampled(lambda at: sum(ahead[i] for i in at) / len(at), names)


def order_decides(verifier: Verifier, samples: Sequence[Asked], golds: Sequence[str],
                  doors: Doors) -> Share | None:
    """The share of samples on which two gold answers and a wrong one are paid by place alone: the
    same unequal scores by place, wherever the wrong one stands. None for verifiers of single
    answers. Two against one leave no tie, so that a vote is not taken for one that counts places.
    """
    if "group" not in parameters(verifier):
        return None
    groups = [said(s, three) for s, g, w in _pairs(samples, golds)
              for three in ((w, g, g), (g, w, g), (g, g, w))]
    scores = [tuple(v.score for v in g.verdicts) for g in judge(verifier, groups, doors).groups]
    triples = [scores[i:i + 3] for i in range(0, len(scores), 3)]
    told = [t for t in triples if all(len(s) == 3 and None not in s for s in t)]
    return Share(sum(len(set(t)) == 1 and len(set(t[0])) > 1 for t in told), len(told))
