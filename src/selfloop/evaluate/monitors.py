"""Figures that show how a model answers, not how well: what guards and reports look at.

Every function is pure. A figure that cannot be computed is absent, never zero and never NaN.
Shares are in [0, 1]; lengths are in drawn tokens; entropies are in nats.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import fmean, stdev

from selfloop.evaluate.answers import Answer, accuracy, maj_at_k, pass_at_k, unjudged
from selfloop.organize.judging import answers_it
from selfloop.organize.verify.vote import vote_of
from selfloop.types import Group, Verdict

GREEDY, NO_IMAGE, DRAWS, REWARD = "greedy", "no_image", "draws", "reward"
"""Names of the arms that `of_answers` tells apart; "suite/..." (forgetting.py) are others."""


def entropy(values: Iterable[Hashable]) -> float:
    """Shannon entropy of the empirical distribution, in nats; 0 for none."""
    counts = Counter(values)
    total = sum(counts.values())
    return sum(-c / total * math.log(c / total) for c in counts.values())


def _entropy_error(values: Sequence[Hashable]) -> float:
    """Standard error of `entropy`: sqrt((E[log^2 p] - H^2) / n) (Basharin 1959)."""
    counts = Counter(values)
    total = sum(counts.values())
    squares = sum(c / total * math.log(c / total) ** 2 for c in counts.values())
    return math.sqrt(max(0.0, squares - entropy(values) ** 2) / total) if total else 0.0


def _means(lists: dict[str, list[float]]) -> dict[str, float]:
    return {name: fmean(values) for name, values in lists.items() if values}


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most` itself."""
    return sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most} - {0})


def _solved(counts: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Mean pass@k over problems of (judged draws, right draws).

    k runs up to the most draws that at least half of the problems have, and every k is averaged
    over the same problems: otherwise pass@k could fall in k.
    """
    sizes = sorted((n for n, _ in counts if n), reverse=True)
    if not sizes:
        return {}
    most = sizes[(len(sizes) - 1) // 2]
    enough = [(n, c) for n, c in counts if n >= most]
    return {f"pass@{k}": fmean(pass_at_k(n, c, k) for n, c in enough) for k in _powers(most)}


def monitors(groups: Sequence[Group], parse: Callable[[str], str | None] = vote_of
             ) -> dict[str, float]:
    """Figures of one step's judged groups.

    Of rollouts: `drawn` (how many), `unjudged`, `truncated`, `empty` (shares), `mean_score` (of
    judged ones), `mean_tokens`, `tokens_right`, `tokens_wrong`. Of groups: `zero_variance` (share
    whose judged scores are all equal, among those with at least two), `distinct` (different
    parsed answers a rollout), `vote_share` (of the plurality, unparsed answers in the
    denominator), `entropy` (of parsed answers; a critique or a description, which is no answer, has
    no vote), `pass@k` for k = 1, 2, 4, ..., and of combined
    verdicts `disagreement` (share of rollouts on whose two sides of 0.5 their judges fall).
    """
    of: dict[str, list[float]] = {name: [] for name in (
        "unjudged", "truncated", "empty", "mean_score", "mean_tokens", "tokens_right",
        "tokens_wrong", "zero_variance", "distinct", "vote_share", "entropy", "disagreement")}
    counts: list[tuple[int, int]] = []
    for group in groups:
        scores = dict((r.id, s) for r, s in group.scored())
        for rollout in group.rollouts:
            of["unjudged"].append(rollout.id not in scores)
            of["truncated"].append(rollout.finish_reason == "length")
            of["empty"].append(not rollout.text.strip())
            of["mean_tokens"].append(rollout.tokens)
        for rollout, score in group.scored():
            of["mean_score"].append(score)
            of["tokens_right" if score >= 0.5 else "tokens_wrong"].append(rollout.tokens)
        of["disagreement"] += [split for v in group.verdicts if (split := _split(v)) is not None]
        judged = [s for _, s in group.scored()]
        if len(judged) > 1:
            of["zero_variance"].append(max(judged) - min(judged) < 1e-9)
        counts.append((len(judged), sum(s >= 0.5 for s in judged)))
        if said := [parse(r.text) for r in group.rollouts if answers_it(r)]:
            _spread(of, said)
    return {"drawn": float(len(of["unjudged"])), **_means(of), **_solved(counts)}


_NO_JUDGES = frozenset({"vote_share"})
"""Parts of a verdict that are a figure about the group, and no opinion on the answer."""


def _split(verdict: Verdict) -> bool | None:
    """Whether the judges of a combined verdict disagree; None with fewer than two of them."""
    sides = [score >= 0.5 for name, score in verdict.parts.items()
             if name not in _NO_JUDGES and 0 <= score <= 1]
    return len(set(sides)) > 1 if len(sides) > 1 else None


def _spread(of: dict[str, list[float]], answers: Sequence[str | None]) -> None:
    """Add one group's variety of answers. None never wins a vote, but counts against it."""
    votes = Counter(a for a in answers if a is not None)
    of["distinct"].append(len(votes) / len(answers))
    of["vote_share"].append(max(votes.values(), default=0) / len(answers))
    of["entropy"].append(entropy(votes.elements()))


def of_answers(answers: Sequence[Answer]) -> dict[str, float]:
    """Figures of one model's evaluation: what the gate's guards read.

    Of the arm "greedy" (or, without it, of all but the named ones): `questions`, `accuracy`,
    `unjudged`, `parsed` (share; absent when the metric evidently does not parse: nothing is
    parsed and something is right), `empty`, `mean_tokens`, `tokens_right`, `tokens_wrong`,
    `distinct` and `distinct_gold` (different answers, and gold answers, a question), `entropy`
    and `entropy_gold` (over questions, with `entropy_se`), `yes_share` and `yes_gold` (of
    `yes_questions` yes/no questions answered with one of the two). Of the arm "no_image":
    `no_image` (accuracy) and `visual_gain`. Of the arm "draws": `pass@k`, `maj@k`, `vote_share`,
    `draw_entropy` with `draw_entropy_se`. Of the arm "reward": `reward` (mean score by the loop's
    verifier) and `disagreement` (share on which it and the metric differ).
    """
    arms = {a.arm for a in answers}
    main = [a for a in answers if (a.arm == GREEDY if GREEDY in arms else a.arm not in (
        NO_IMAGE, DRAWS, REWARD) and "/" not in a.arm)]
    found = _of_main(main) if main else {}
    blind = accuracy([a for a in answers if a.arm == NO_IMAGE])
    if math.isfinite(blind):
        found["no_image"] = blind
        if "accuracy" in found:
            found["visual_gain"] = found["accuracy"] - blind
    drawn = [a for a in answers if a.arm == DRAWS]
    paid = [a for a in answers if a.arm == REWARD]
    return found | _of_draws(drawn) | _of_reward(paid, [*main, *drawn])


def _of_main(answers: Sequence[Answer]) -> dict[str, float]:
    said = [a.parsed for a in answers if a.parsed is not None]
    gold = [a.gold for a in answers if a.gold is not None]
    found = {
        "questions": float(len({a.sample for a in answers})), "unjudged": unjudged(answers),
        "empty": fmean(not a.text.strip() for a in answers),
        **_means({
            "mean_tokens": [a.tokens for a in answers],
            "tokens_right": [a.tokens for a in answers if a.right is True],
            "tokens_wrong": [a.tokens for a in answers if a.right is False],
        }),
    }
    if math.isfinite(right := accuracy(answers)):
        found["accuracy"] = right
    if said or not any(a.right for a in answers):
        found["parsed"] = len(said) / len(answers)
        found["distinct"] = len(set(said)) / len(answers)
        found["entropy"], found["entropy_se"] = entropy(said), _entropy_error(said)
        if len(gold) == len(answers):
            found["distinct_gold"] = len(set(gold)) / len(answers)
            found["entropy_gold"] = entropy(gold)
    return found | _of_yes_no(answers)


_YES_NO = re.compile(r"\W*(yes|no)\b", re.I)


def _of_yes_no(answers: Sequence[Answer]) -> dict[str, float]:
    """The share of "yes" where yes or no was asked for and one of them was said first."""
    pairs = [(said[1].lower(), gold[1].lower()) for a in answers
             if (gold := _YES_NO.fullmatch(a.gold or "")) is not None
             and (said := _YES_NO.match(a.parsed or "")) is not None]
    if not pairs:
        return {}
    return {"yes_questions": float(len(pairs)), "yes_share": fmean(s == "yes" for s, _ in pairs),
            "yes_gold": fmean(g == "yes" for _, g in pairs)}


def _of_reward(paid: Sequence[Answer], judged: Sequence[Answer]) -> dict[str, float]:
    """The loop's own verdicts beside the metric's on the same answers."""
    metric = {(a.seed, a.sample, a.draw, a.text): a.right for a in judged}
    both = [(a.right, metric.get((a.seed, a.sample, a.draw, a.text))) for a in paid]
    told = [ours != theirs for ours, theirs in both if ours is not None and theirs is not None]
    return _means({"reward": [a.score for a in paid if a.score is not None],
                   "disagreement": [float(differ) for differ in told]})


def _of_draws(answers: Sequence[Answer]) -> dict[str, float]:
    questions: dict[tuple[int, str], list[Answer]] = {}
    for answer in answers:
        questions.setdefault((answer.seed, answer.sample), []).append(answer)
    drawn = list(questions.values())
    found = _solved([(sum(a.right is not None for a in q), sum(a.right is True for a in q))
                     for q in drawn])
    if any(a.parsed is not None for a in answers):
        k = min(len(q) for q in drawn)
        said = [[a.vote for a in q] for q in drawn]
        spread = [entropy(a for a in own if a is not None) for own in said]
        found["draw_entropy"] = fmean(spread)
        found["draw_entropy_se"] = stdev(spread) / math.sqrt(len(spread)) if k and spread[1:] \
            else 0.0
        found[f"maj@{k}"] = fmean(
            maj_at_k(own, [a.right for a in q], k, key=q[0].sample)
            for own, q in zip(said, drawn, strict=True))
        found["vote_share"] = fmean(
            max(Counter(a for a in own if a is not None).values(), default=0) / len(own)
            for own in said)
    return found
