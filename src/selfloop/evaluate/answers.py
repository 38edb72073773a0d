"""One record for every question that was asked, and the pairing of two models' records.

What counts as wrong is decided here once. An answer that could not be parsed is *wrong*
(`right=False`): the question was asked and not answered. `right=None` is kept for a verifier that
could not tell; such an answer is left out of every mean, and its share is reported beside it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfloop import store
from selfloop.keys import generator
from selfloop.organize.verify.vote import vote_of
from selfloop.roles import SelfloopError
from selfloop.types import Word


class Answer(Word):
    """What one model said to one question, and whether it was right."""

    sample: str
    """Id of the question."""
    cluster: str
    """The unit of resampling (`Sample.cluster`), for questions that share a picture."""
    task: str = ""
    gold: str | None = None
    text: str = ""
    parsed: str | None = None
    """The answer found in `text`, or None when none was found."""
    right: bool | None = None
    """None = the verifier could not tell. An unparseable answer is False, not None."""
    score: float | None = None
    """What `right` was rounded from, in [0, 1]: ANLS, VQA accuracy, the share of right parts."""
    tokens: int = 0
    """Tokens drawn."""
    read: int = 0
    """Tokens of the prompt, pictures included; all draws of a question share them."""
    draw: int = 0
    """Which of this question's answers in this arm; 0 for a greedy one."""
    arm: str = ""
    seed: int = 0
    """Seed of the run that made the model."""

    @property
    def vote(self) -> str | None:
        """What was found in the text, as votes are counted (organize/verify/vote.py)."""
        return None if self.parsed is None else vote_of(self.parsed) or self.parsed


def write(path: str | Path, answers: Sequence[Answer]) -> None:
    """Write answers as parquet, one plain column a field; equal answers give equal bytes.

    Raises SelfloopError when the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"right": pa.bool_(), "score": pa.float64(),
             **dict.fromkeys(("tokens", "read", "draw", "seed"), pa.int64())}
    # A written-out schema: inferred types would make a column of Nones another type of file.
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in Answer.model_fields])
    columns = {name: [getattr(a, name) for a in answers] for name in Answer.model_fields}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    store.put(Path(path), sink.getvalue().to_pybytes())


def read(path: str | Path) -> list[Answer]:
    """The inverse of `write`. Raises SelfloopError for a file that is missing, torn or foreign."""
    found = store.read_table(Path(path))
    if found is None:
        raise SelfloopError(f"{path}: no readable parquet file of answers; evaluate again")
    columns = found[0]
    lacking = [name for name in Answer.model_fields if name not in columns]
    if set(lacking) - {"score", "read"}:  # absent from files of version 0.1
        raise SelfloopError(
            f"{path}: column {lacking[0]!r} is missing, so these are not answers: "
            "give a file that selfloop.evaluate.answers.write wrote")
    names = [name for name in Answer.model_fields if name in columns]
    rows = zip(*(columns[name] for name in names), strict=True)
    return [Answer(**dict(zip(names, row, strict=True))) for row in rows]


def accuracy(answers: Sequence[Answer]) -> float:
    """Mean over questions of the mean over that question's judged draws, in [0, 1].

    Unparseable answers are wrong and counted; `right=None` is left out and reported by
    `unjudged`, whose value belongs beside every accuracy. NaN when nothing was judged.
    """
    draws: dict[tuple[str, int, str], list[bool]] = {}
    for answer in answers:
        if answer.right is not None:
            draws.setdefault((answer.arm, answer.seed, answer.sample), []).append(answer.right)
    means = [sum(rights) / len(rights) for rights in draws.values()]
    return sum(means) / len(means) if means else math.nan


def unjudged(answers: Sequence[Answer]) -> float:
    """Share of answers for which the verifier could not tell; 0 for none."""
    return sum(a.right is None for a in answers) / len(answers) if answers else 0.0


@dataclass(frozen=True)
class Pairs:
    """The same questions under two models; row i is one question at one seed."""

    a: np.ndarray[Any, Any]
    """(N,) share of right draws of the first model, in [0, 1]; 0 or 1 with one draw."""
    b: np.ndarray[Any, Any]
    """(N,) the same of the second model."""
    samples: list[str]
    clusters: list[str]
    seeds: list[int]
    unjudged: int
    """Questions left out because one of the models had no judged draw there."""


_Table = dict[int, dict[str, tuple[str, list[bool]]]]


def _table(answers: Sequence[Answer], which: str) -> _Table:
    """{seed: {sample: (cluster, judged draws)}}; the same draw twice is refused."""
    seen: set[tuple[int, str, int]] = set()
    table: _Table = {}
    for answer in answers:
        place = (answer.seed, answer.sample, answer.draw)
        if place in seen:
            raise SelfloopError(
                f"the {which} answers hold question {answer.sample} twice (seed {answer.seed}, "
                f"draw {answer.draw}): give one arm of one model, and data without duplicates")
        seen.add(place)
        rights = table.setdefault(answer.seed, {}).setdefault(
            answer.sample, (answer.cluster, []))[1]
        if answer.right is not None:
            rights.append(answer.right)
    return table


def _seed_pairs(a: _Table, b: _Table) -> list[tuple[int, int]]:
    """Which seed of `b` each seed of `a` is compared with; one lone seed serves all others."""
    if set(a) == set(b):
        return [(seed, seed) for seed in sorted(a)]
    if len(b) == 1:
        return [(seed, next(iter(b))) for seed in sorted(a)]
    if len(a) == 1:
        return [(next(iter(a)), seed) for seed in sorted(b)]
    odd = min(set(a) ^ set(b))
    raise SelfloopError(
        f"seed {odd} was evaluated for the {'first' if odd in a else 'second'} model only: "
        "evaluate both at the same seeds, or one of them at a single seed")


def pair(a: Sequence[Answer], b: Sequence[Answer]) -> Pairs:
    """Lay two models' answers side by side, by seed and question.

    A model evaluated at one seed only (the untrained one) is compared with every seed of the
    other. Questions where either has no judged draw are left out and counted. Raises
    SelfloopError when the questions, the clusters or the seeds of the two differ.
    """
    first, second = _table(a, "first"), _table(b, "second")
    rows: list[tuple[float, float, str, str, int]] = []
    skipped = 0
    seeds = _seed_pairs(first, second)
    for seed_a, seed_b in seeds:
        ours, theirs = first[seed_a], second[seed_b]
        _same_questions(ours, theirs, seed_a)
        for sample, (cluster, rights) in ours.items():
            others = theirs[sample][1]
            if not rights or not others:
                skipped += 1
                continue
            label = seed_a if len(first) > 1 else seed_b if len(second) > 1 else seed_a
            rows.append((sum(rights) / len(rights), sum(others) / len(others),
                         sample, cluster, label))
    return Pairs(
        a=np.array([r[0] for r in rows]), b=np.array([r[1] for r in rows]),
        samples=[r[2] for r in rows], clusters=[r[3] for r in rows],
        seeds=[r[4] for r in rows], unjudged=skipped)


def _same_questions(ours: dict[str, tuple[str, list[bool]]],
                    theirs: dict[str, tuple[str, list[bool]]], seed: int) -> None:
    for here, there, has, lacks in ((ours, theirs, "first", "second"),
                                    (theirs, ours, "second", "first")):
        missing = next((sample for sample in here if sample not in there), None)
        if missing is not None:
            raise SelfloopError(
                f"question {missing} (seed {seed}) is among the {has} answers and missing from "
                f"the {lacks}: a paired test needs the same questions, so evaluate both on them")
    for sample, (cluster, _) in ours.items():
        if theirs[sample][0] != cluster:
            raise SelfloopError(
                f"question {sample} is in cluster {cluster!r} in the first answers and in "
                f"{theirs[sample][0]!r} in the second: evaluate both on the same data")


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k draws is right, c of n being so: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), eq. 1. Needs 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise SelfloopError(f"pass_at_k(n={n}, c={c}, k={k}): needs 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool | None], k: int,
             n: int = 1000, key: str = "maj_at_k") -> float:
    """Chance that the plurality of k of these draws (without replacement) is right.

    None never votes, ties are split evenly, and no vote at all is wrong. Exact when there are at
    most `n` subsets, else the mean over `n` random ones. Self-consistency: arXiv 2203.11171.
    """
    if len(answers) != len(right) or not 1 <= k <= len(answers):
        raise SelfloopError(f"maj_at_k: k={k} of {len(answers)} answers with {len(right)} verdicts")
    truth: dict[str, bool] = {a: bool(r) for a, r in zip(answers, right, strict=True)
                              if a is not None and r is not None}
    if math.comb(len(answers), k) <= n:
        subsets = [list(s) for s in itertools.combinations(range(len(answers)), k)]
    else:
        rng = generator(key)
        subsets = [rng.choice(len(answers), size=k, replace=False).tolist() for _ in range(n)]
    total = 0.0
    for subset in subsets:
        votes = Counter(a for i in subset if (a := answers[i]) is not None)
        best = [a for a, count in votes.items() if count == max(votes.values())]
        total += sum(truth.get(a, False) for a in best) / len(best) if best else 0.0
    return total / len(subsets)


def expected_calibration_error(confidence: Sequence[float], right: Sequence[bool],
                               bins: int = 10) -> float:
    """Mean |accuracy - confidence| over equal-width bins (lo, hi], weighted by their counts.

    Guo et al. 2017 (arXiv 1706.04599), eq. 3. Both (N,); confidence in [0, 1].
    """
    sure, hit = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    if len(sure) != len(hit) or not len(sure) or sure.min() < 0 or sure.max() > 1:
        raise SelfloopError("expected_calibration_error: give one confidence in [0, 1] a verdict")
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=hit - sure, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))
