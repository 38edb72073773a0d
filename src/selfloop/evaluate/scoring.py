"""From stored answers to figures with intervals: marking, counting, resampling clusters.

Answers are stored with their whole text, so everything here can be done again, under other rules,
without the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from selfloop.evaluate.answers import (
    Answer,
    expected_calibration_error,
    maj_at_k,
    pass_at_k,
)
from selfloop.evaluate.benchmark import OWN, Benchmark, Marked, Tally, Way, added
from selfloop.evaluate.monitors import DRAWS, NO_IMAGE
from selfloop.evaluate.ratios import ratio_bootstrap, share_bootstrap
from selfloop.evaluate.statistics import Interval, wilson
from selfloop.organize.verify.vote import vote_of
from selfloop.roles import SelfloopError
from selfloop.types import Sample

GREEDY = "greedy"


@dataclass(frozen=True)
class How:
    """The six things that a score is made of, and what else decides it."""

    data: str
    """Name, number of questions, and the hash of what they say."""
    prompt: str
    decoding: str
    extractor: str
    judge: str
    fallback: str
    rules: str = OWN
    """Whose rules: "selfloop", "lmms-eval", "vlmevalkit"."""
    style: str = "as it is"


@dataclass(frozen=True)
class Figure:
    """One figure of one model: a share or mean in its own unit, with a 95 % interval."""

    value: float
    low: float | None
    """None where nothing can be said: a lone cluster, a figure made of others."""
    high: float | None
    n: float
    """The denominator: questions, mentions, objects."""


@dataclass(frozen=True)
class Score:
    """What one model reached on one benchmark, asked and marked in one way."""

    benchmark: str
    main: str
    lower_is_better: bool
    how: How
    figures: Mapping[str, Figure]
    by: Mapping[str, Mapping[str, Mapping[str, Figure]]]
    """{field of meta: {value: figures}}."""
    robustness: Mapping[str, Mapping[str, Figure]]
    """{picture operation: {severity: main figure}}."""
    questions: int
    clusters: int
    units: str
    unjudged: int
    errors: int
    """Answers on which the rule itself failed: unjudged, never zeros."""
    tokens: int
    """Drawn greedily."""
    seconds: float = 0.0
    flops: float = 0.0
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Score:
        """The inverse of `to_json`. Raises SelfloopError for what is not a stored score."""
        try:
            made = dict(found)
            made["how"] = How(**made["how"])
            made["figures"] = _figures(made["figures"])
            made["by"] = {f: {v: _figures(x) for v, x in values.items()}
                          for f, values in made["by"].items()}
            made["robustness"] = {op: _figures(x) for op, x in made["robustness"].items()}
            made["notes"] = tuple(made["notes"])
            return cls(**made)
        except (KeyError, TypeError, AttributeError) as error:
            raise SelfloopError(f"not a stored score ({error}); evaluate again") from error


def _figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    return {name: Figure(**figure) for name, figure in found.items()}


def mark(way: Way, samples: Mapping[str, Sample], answers: Sequence[Answer]
         ) -> tuple[list[Answer], list[str]]:
    """The answers marked by these rules, and what went wrong: one line a rule that failed.

    Raises SelfloopError when an answer's question is not among `samples`.
    """
    marked, errors = [], []
    for answer in answers:
        sample = samples.get(answer.sample)
        if sample is None:
            raise SelfloopError(f"stored answer to question {answer.sample}, which the data do "
                                "not hold: evaluate again, or give the data that it was asked on")
        try:
            verdict = way.mark(answer.text, sample)
        except Exception as error:
            errors.append(f"question {answer.sample}: {type(error).__name__}: {error}")
            marked.append(answer.model_copy(
                update={"right": None, "score": None, "parsed": None}))
            continue
        marked.append(answer.model_copy(update={
            "score": verdict.score, "parsed": verdict.rationale or None,
            "right": None if verdict.score is None else verdict.right}))
    return marked, errors


def tallies(benchmark: Benchmark, samples: Mapping[str, Sample], answers: Sequence[Answer]
            ) -> dict[str, Tally]:
    """One tally a cluster, in order of first appearance."""
    found: dict[str, list[Marked]] = {}
    for answer in answers:
        found.setdefault(answer.cluster, []).append((samples[answer.sample], answer))
    return {cluster: benchmark.count(marked) for cluster, marked in found.items()}


def figures(benchmark: Benchmark, counted: Sequence[Tally]) -> dict[str, Figure]:
    """Every figure with its interval over clusters; one without a denominator is left out."""
    found = {}
    for name, (top, bottom) in added(counted).items():
        if bottom <= 0:
            continue
        low, high = _around(counted, name, f"{benchmark.name}/{name}")
        found[name] = Figure(top / bottom, low, high, bottom)
    if benchmark.derived is not None:
        made = benchmark.derived({name: figure.value for name, figure in found.items()})
        found |= {name: Figure(value, None, None, 0.0) for name, value in made.items()}
    return found


def _around(counted: Sequence[Tally], name: str, key: str) -> tuple[float | None, float | None]:
    """The interval of one ratio of sums, clusters resampled.

    Where all clusters say 0, or all say 1, resampling sees no spread and would claim certainty:
    there Wilson's interval over clusters is given.
    """
    pairs = np.array([t.get(name, (0.0, 0.0)) for t in counted]).reshape(-1, 2)
    pairs = pairs[pairs[:, 1] > 0]
    if len(pairs) > 1 and (not pairs[:, 0].any() or np.array_equal(pairs[:, 0], pairs[:, 1])):
        return wilson(len(pairs) if pairs[:, 0].any() else 0, len(pairs))
    return _ends(ratio_bootstrap(pairs[:, 0], pairs[:, 1], key=key))


def _ends(found: Interval) -> tuple[float | None, float | None]:
    return (found.low, found.high) if math.isfinite(found.se) else (None, None)


def score(benchmark: Benchmark, samples: Mapping[str, Sample], answers: Sequence[Answer],
          how: How, *, errors: int = 0, seconds: float = 0.0, flops: float = 0.0,
          notes: Sequence[str] = ()) -> Score:
    """The figures of marked answers: those of the greedy arm, and beside them `no_image` and
    `multimodal_gain` (main figure with minus without the picture) and `pass@k`, `maj@k`.

    MMG is Chen et al. 2024 (MMStar, arXiv 2403.20330), section 4, with the model's own answers
    without the picture in both terms.
    """
    main = [a for a in answers if a.arm == GREEDY]
    if not main:
        raise SelfloopError(f"{benchmark.name}: no greedy answers to score; evaluate first")
    counted = tallies(benchmark, samples, main)
    found = figures(benchmark, list(counted.values()))
    blind = [a for a in answers if a.arm == NO_IMAGE]
    if blind:
        found |= _beside(benchmark, counted, tallies(benchmark, samples, blind))
    drawn = [a for a in answers if a.arm == DRAWS]
    if drawn:
        found |= solved(drawn)
    return Score(
        benchmark=benchmark.name, main=benchmark.main, how=how, figures=found,
        lower_is_better=benchmark.lower_is_better, by=_by(benchmark, samples, main),
        robustness=_robustness(benchmark, samples, answers),
        questions=len({a.sample for a in main}), clusters=len(counted),
        units=f"{len(counted)} clusters", unjudged=sum(a.right is None for a in main),
        errors=errors, tokens=sum(a.tokens for a in main), seconds=seconds, flops=flops,
        notes=(*benchmark.notes, *notes))


def _beside(benchmark: Benchmark, seen: Mapping[str, Tally], blind: Mapping[str, Tally]
            ) -> dict[str, Figure]:
    """The main figure without pictures, and what the pictures add (paired by cluster)."""
    name = benchmark.main
    clusters = [c for c in seen if c in blind]
    with_, without = [seen[c] for c in clusters], [blind[c] for c in clusters]
    alone = figures(benchmark, without).get(name)
    if alone is None or added(with_).get(name, (0.0, 0.0))[1] <= 0:
        return {} if alone is None else {"no_image": alone}
    gain = difference(with_, without, name, f"{benchmark.name}/multimodal_gain")
    return {"no_image": alone, "multimodal_gain": Figure(gain.estimate, *_ends(gain), alone.n)}


def difference(a: Sequence[Tally], b: Sequence[Tally], name: str, key: str) -> Interval:
    """Figure `name` of `a` minus that of `b`, with the paired bootstrap over clusters."""
    first, second = (np.array([t.get(name, (0.0, 0.0)) for t in x]).reshape(-1, 2) for x in (a, b))
    return ratio_bootstrap(first[:, 0], first[:, 1], key=key,
                           minus=(second[:, 0], second[:, 1]))


def _by(benchmark: Benchmark, samples: Mapping[str, Sample], answers: Sequence[Answer]
        ) -> dict[str, dict[str, dict[str, Figure]]]:
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    for name in benchmark.by:
        parts: dict[str, list[Answer]] = {}
        for answer in answers:
            value = samples[answer.sample].meta.get(name)
            for one in value if isinstance(value, list) else [value]:
                if one is not None and str(one):
                    parts.setdefault(str(one), []).append(answer)
        if len(parts) > 1:
            found[name] = {value: figures(benchmark, list(tallies(benchmark, samples, own)
                                                          .values()))
                           for value, own in sorted(parts.items())}
    return found


def _robustness(benchmark: Benchmark, samples: Mapping[str, Sample], answers: Sequence[Answer]
                ) -> dict[str, dict[str, Figure]]:
    """The main figure under each picture operation at each severity (primitives: E8)."""
    found: dict[str, dict[str, Figure]] = {}
    for arm in dict.fromkeys(a.arm for a in answers):
        name, _, severity = arm.partition(" ")
        if not severity:
            continue
        own = [a for a in answers if a.arm == arm]
        figure = figures(benchmark, list(tallies(benchmark, samples, own).values())
                         ).get(benchmark.main)
        if figure is not None:
            found.setdefault(name, {})[severity] = figure
    return found


def solved(drawn: Sequence[Answer]) -> dict[str, Figure]:
    """`pass@k` for k = 1, 2, 4, ... (at most 64) and `maj@k` at the most draws, over questions."""
    questions: dict[str, list[Answer]] = {}
    for answer in drawn:
        if answer.right is not None:
            questions.setdefault(answer.sample, []).append(answer)
    if not questions:
        return {}
    most = min(64, min(len(q) for q in questions.values()))
    clusters = [q[0].cluster for q in questions.values()]
    found = {}

    def put(name: str, values: list[float]) -> None:
        interval = share_bootstrap(values, clusters, key=name)
        found[name] = Figure(interval.estimate, *_ends(interval), float(len(values)))

    for k in sorted({2 ** i for i in range(7) if 2 ** i <= most} | {most}):
        put(f"pass@{k}", [pass_at_k(len(q), sum(bool(a.right) for a in q), k)
                          for q in questions.values()])
    if any(a.parsed is not None for a in drawn):
        put(f"maj@{most}", [maj_at_k([vote_of(a.parsed) for a in q], [a.right for a in q], most,
                                     key=q[0].sample) for q in questions.values()])
        found |= _calibration(list(questions.values()))
    return found


def _calibration(questions: Sequence[Sequence[Answer]]) -> dict[str, Figure]:
    """How far the share of draws that agree is from the chance that their answer is right."""
    sure, right = [], []
    for drawn in questions:
        votes = Counter(v for a in drawn if (v := vote_of(a.parsed)) is not None)
        if votes:
            answer, count = votes.most_common(1)[0]
            sure.append(count / len(drawn))
            right.append(next(bool(a.right) for a in drawn if vote_of(a.parsed) == answer))
    if len(questions[0]) < 2 or not sure:
        return {}
    error = expected_calibration_error(sure, right)
    return {"calibration_error": Figure(error, None, None, 0.0)}
