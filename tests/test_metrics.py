"""Every figure against an independent computation: scikit-learn, scipy, statsmodels, pycocotools,
or the definition written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from selfloop.evaluate import boxes
from selfloop.evaluate.answers import Answer, expected_calibration_error, maj_at_k, pass_at_k
from selfloop.evaluate.benchmark import added
from selfloop.evaluate.benchmarks import benchmark
from selfloop.evaluate.boxes import Boxes, giou, iou, mean_average_precision
from selfloop.evaluate.calibration import (
    auroc,
    between_shares,
    brier,
    not_counted,
    reliability,
    vote_precision,
)
from selfloop.evaluate.ratios import benjamini_hochberg, ratio_bootstrap, ratio_p_value
from selfloop.evaluate.scoring import figures, solved
from selfloop.evaluate.statistics import holm, mcnemar, permutation, wilson
from selfloop.keys import generator
from selfloop.probed import _vote
from selfloop.roles import SelfloopError
from selfloop.types import Message, Part, Sample

# -- yes/no figures -----------------------------------------------------------------------------


def question(i: int, gold: str, cluster: str = "c", **meta) -> Sample:
    return Sample(prompt=(Message(role="user", content=(Part(text=f"question {i} ?"),)),),
                  answer=gold, meta={"cluster": cluster, **meta})


def marked(gold, said, clusters=None, **meta):
    found = []
    for i, (g, s) in enumerate(zip(gold, said, strict=True)):
        sample = question(i, g, str(clusters[i]) if clusters is not None else "c", **meta)
        found.append((sample, Answer(sample=sample.id, cluster=sample.cluster, parsed=s,
                                     right=g == s, score=float(g == s), text=s or "")))
    return found


def ratios(tally):
    return {name: top / bottom for name, (top, bottom) in tally.items() if bottom}


def yes_no(rng, n, choices=("yes", "no")):
    return rng.choice(["yes", "no"], n).tolist(), rng.choice(choices, n).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_popes_figures_are_sklearns(seed):
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

    gold, said = yes_no(generator(f"pope/{seed}"), 200)
    found = ratios(benchmark("pope").count(marked(gold, said)))
    assert found["accuracy"] == pytest.approx(accuracy_score(gold, said))
    for name, theirs in (("precision", precision_score), ("recall", recall_score),
                         ("f1", f1_score)):
        assert found[name] == pytest.approx(theirs(gold, said, pos_label="yes"))
    amber = ratios(benchmark("amber").count(marked(gold, said, task="existence")))
    for name, theirs in (("precision", precision_score), ("recall", recall_score),
                         ("f1", f1_score)):
        assert amber[name] == pytest.approx(theirs(gold, said, pos_label="no"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no", None]),
                          st.integers(0, 4)), min_size=1, max_size=40),
       st.sampled_from(["pope", "amber", "hallusionbench"]))
def test_tallies_add_up(rows, name):
    """Counting cluster by cluster and adding is counting all at once."""
    gold, said, clusters = zip(*rows, strict=True)
    meta = {"task": "VD", "figure_id": "0", "question_id": "0"} if name == "hallusionbench" else {
        "task": "existence"}
    whole = marked(gold, said, clusters, **meta)
    count = benchmark(name).count
    parts = [count([m for m in whole if m[0].cluster == c])
             for c in dict.fromkeys(map(str, clusters))]
    together = count(whole)
    assert added(parts) == {k: pytest.approx(v) for k, v in together.items()}
    shown = figures(benchmark(name), parts)
    assert {k: f.value for k, f in shown.items() if f.n} == pytest.approx(
        {k: v for k, v in ratios(together).items() if shown[k].n})


def test_tallies_of_captions_add_up():
    rng, found = generator("captions"), []
    names = ["cat", "dog", "tv", "bed"]
    for i in range(30):
        there, named = (rng.choice(names, int(k)).tolist() for k in rng.integers(0, 5, 2))
        sample = question(i, "", f"c{i % 7}").model_copy(update={"answer": sorted(set(there))})
        found.append((sample, Answer(sample=sample.id, cluster=sample.cluster, score=1.0,
                                     text=" ".join(named), parsed=", ".join(named) or None)))
    count = benchmark("chair").count
    parts = [count([m for m in found if m[0].cluster == f"c{c}"]) for c in range(7)]
    assert added(parts) == count(found) and count(found)["chair_i"][1] > 30


# -- several draws ------------------------------------------------------------------------------

@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 0, 2), (6, 6, 1), (7, 3, 5), (8, 1, 8)])
def test_pass_at_k_by_brute_force(n, c, k):
    draws = [i < c for i in range(n)]
    subsets = list(itertools.combinations(draws, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("seed", range(4))
def test_maj_at_k_by_brute_force(seed):
    rng = generator(f"maj/{seed}")
    said = [None if x == "-" else str(x) for x in rng.choice(["a", "b", "c", "-"], 7)]
    right = [None if s is None else s == "a" for s in said]
    for k in (1, 3, 4, 7):
        total = 0.0
        for subset in itertools.combinations(said, k):
            votes = [s for s in subset if s is not None]
            top = {v for v in votes if votes.count(v) == max(map(votes.count, votes))}
            total += ("a" in top) / len(top) if top else 0.0
        assert maj_at_k(said, right, k) == pytest.approx(total / math.comb(7, k))


# -- confidence ---------------------------------------------------------------------------------

def confident(seed, n=300, levels=None):
    rng = generator(f"confidence/{seed}")
    sure = rng.random(n) if levels is None else rng.integers(0, levels, n) / (levels - 1)
    return sure, rng.random(n) < 0.2 + 0.6 * sure


@pytest.mark.parametrize(("seed", "levels"), [(0, None), (1, None), (2, 5), (3, 11)])
def test_calibration_against_sklearn(seed, levels):
    from sklearn.metrics import brier_score_loss, roc_auc_score

    sure, right = confident(seed, levels=levels)
    assert brier(sure, right) == pytest.approx(brier_score_loss(right, sure))
    assert auroc(sure, right) == pytest.approx(roc_auc_score(right, sure))
    curve = reliability(sure, right)
    ece = sum(b.count * abs(b.accuracy - b.confidence) for b in curve) / len(sure)
    assert expected_calibration_error(sure, right) == pytest.approx(ece)
    assert sum(b.count for b in curve) == len(sure)
    for b in curve:
        inside = [(s, r) for s, r in zip(sure, right, strict=True)
                  if (b.above < s <= b.upto) or (s == 0 == b.above)]
        assert b.count == len(inside) and b.low <= b.accuracy <= b.high
        assert b.accuracy == pytest.approx(np.mean([r for _, r in inside]))
        assert b.confidence == pytest.approx(np.mean([s for s, _ in inside]))


def test_calibration_at_its_ends():
    assert brier([1, 0], [True, False]) == 0 and brier([0.5] * 4, [1, 0, 0, 1]) == 0.25
    assert auroc([1, 2, 3], [False, True, True]) == 1 and auroc([1, 1], [True, False]) == 0.5
    assert math.isnan(auroc([0.1, 0.9], [True, True]))
    for call in (lambda: brier([1.5], [True]), lambda: auroc([], []),
                 lambda: reliability([0.5], [True, False]), lambda: brier([0.5], [None]),
                 lambda: auroc([math.nan], [True]), lambda: reliability([0.5], [True], bins=0)):
        with pytest.raises(SelfloopError):
            call()


def voted(sample: str, said: str, gold: str, judged: bool = True, **more) -> list[Answer]:
    """Draws of one question, a letter each; "-" could not be read."""
    return [Answer(sample=sample, cluster=sample, parsed=None if t == "-" else t, draw=i,
                   right=(t == gold) if judged else None, **more) for i, t in enumerate(said)]


def test_votes_are_compared_in_normal_form_as_those_that_train_are():
    """Four spellings of one answer are one vote in every figure."""
    drawn = [Answer(sample="a", cluster="a", parsed=t, draw=i, right=t != "7")
             for i, t in enumerate(["7", "1,200", "1200", "1200.", "7", "**1200**"])]
    assert vote_precision(drawn).bins[0].confidence == pytest.approx(4 / 6)
    found = solved(drawn)
    assert found["maj@6"].value == 1.0
    assert found["calibration_error"].value == pytest.approx(1 - 4 / 6)
    assert _vote(drawn) == (pytest.approx(4 / 6), True)


def test_pseudo_label_precision_by_hand():
    answers = [
        *voted("a", "xxxx", "x"), *voted("b", "yyyy", "x"),      # share 1, one of two right
        *voted("c", "xxyz", "x"), *voted("d", "xx--", "x"),      # share 1/2, both right
        *voted("e", "xxyy", "x"),                                # tied: no label
        *voted("f", "----", "x"),                                # nothing to vote on
        *voted("g", "xxxy", "x", judged=False),                  # nobody knows
        *voted("h", "x", "x"),                                   # drawn once: no vote
        *voted("a", "yyyy", "x", seed=1),                        # another seed votes apart
    ]
    found = vote_precision(answers)
    assert [(p.above, p.upto, p.count, p.confidence, p.accuracy) for p in found.bins] \
        == [(0.4, 0.5, 2, 0.5, 1.0), (0.9, 1.0, 3, 1.0, pytest.approx(1 / 3))]
    assert [(p.low, p.high) for p in found.bins] == [wilson(2, 2), wilson(1, 3)]
    assert (found.ties, found.silent, found.unjudged, found.questions) == (1, 1, 1, 5)
    assert between_shares(found.bins[0]) == "40 to 50"
    assert not_counted(found) == "1 tied, 1 without a readable answer, 1 without a verdict"
    assert vote_precision(voted("h", "x", "x")) is None
    assert vote_precision(voted("e", "xy", "x")).bins == ()


# -- tests and intervals ------------------------------------------------------------------------

@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 9), (10, 10), (25, 4), (1, 0)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    want = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(want)


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_permutation_is_scipys(alternative):
    rng = generator(f"flips/{alternative}")
    a, b = rng.integers(0, 2, 11).astype(float), rng.integers(0, 2, 11).astype(float)
    want = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), n_resamples=np.inf,
                                  permutation_type="samples", alternative=alternative).pvalue
    assert permutation(a - b, range(11), alternative) == pytest.approx(want)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 10), (97, 200)])
def test_wilson_is_scipys(k, n):
    want = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    assert wilson(k, n) == pytest.approx((want.low, want.high))


@pytest.mark.parametrize("seed", range(4))
def test_adjusted_p_values(seed):
    p = generator(f"p/{seed}").random(9).round(2).tolist()
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p).tolist())
    order = sorted(range(9), key=lambda i: p[i])
    for place, i in enumerate(order):  # Holm 1979, by its definition
        want = min(1.0, max((9 - j) * p[order[j]] for j in range(place + 1)))
        assert holm(p)[i] == pytest.approx(want)


@pytest.mark.parametrize("seed", range(4))
def test_adjusted_p_values_are_those_of_statsmodels(seed):
    tests = pytest.importorskip("statsmodels.stats.multitest")
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    rng = generator(f"statsmodels/{seed}")
    p = rng.random(12).tolist()
    assert holm(p) == pytest.approx(tests.multipletests(p, method="holm")[1].tolist())
    assert benjamini_hochberg(p) == pytest.approx(
        tests.multipletests(p, method="fdr_bh")[1].tolist())
    b, c = rng.integers(0, 20, 2).tolist()
    assert mcnemar(b, c) == pytest.approx(
        contingency.mcnemar([[5, b], [c, 5]], exact=True).pvalue)
    assert wilson(b, 25) == pytest.approx(
        proportion.proportion_confint(b, 25, method="wilson"))


def counted(rng, clusters):
    """Counts of a ratio whose truth is 0.3, with 1 to 6 mentions a cluster."""
    bottoms = rng.integers(1, 7, clusters).astype(float)
    share = np.clip(rng.normal(0.3, 0.1, clusters), 0, 1)
    return rng.binomial(bottoms.astype(int), share).astype(float), bottoms


def test_ratio_intervals_cover():
    rng, hit, times = generator("ratio coverage"), 0, 300
    for i in range(times):
        found = ratio_bootstrap(*counted(rng, 60), n=500, key=f"cover {i}")
        hit += found.low <= 0.3 <= found.high
    assert 0.91 <= hit / times <= 0.985


def test_ratio_intervals_agree_with_scipys():
    rng = generator("ratio against scipy")
    tops, bottoms = counted(rng, 150)
    ours = ratio_bootstrap(tops, bottoms, n=8000)
    theirs = stats.bootstrap(
        (tops, bottoms), lambda x, y, axis=-1: x.sum(axis) / y.sum(axis), paired=True,
        n_resamples=8000, method="percentile", rng=np.random.default_rng(0))
    width = ours.high - ours.low
    assert ours.estimate == pytest.approx(tops.sum() / bottoms.sum())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)
    assert ours.se == pytest.approx(theirs.standard_error, rel=0.05)


def test_the_paired_ratio_test_is_uniform_under_the_null_and_sees_a_difference():
    rng, small, times = generator("ratio null"), 0, 200
    for i in range(times):
        small += ratio_p_value(counted(rng, 30), counted(rng, 30), n=400, key=f"null {i}") <= 0.1
    assert 0.04 <= small / times <= 0.17
    tops, bottoms = counted(rng, 80)
    assert ratio_p_value((tops, bottoms), (np.minimum(tops + 1, bottoms), bottoms), n=2000) < 0.01


# -- boxes --------------------------------------------------------------------------------------

def some_boxes(rng, n, grid=12):
    low = rng.integers(0, grid, (n, 2))
    return np.hstack([low, low + rng.integers(1, 6, (n, 2))]).astype(float)


def cells(box):
    return {(x, y) for x in range(int(box[0]), int(box[2]))
            for y in range(int(box[1]), int(box[3]))}


def test_iou_and_giou_count_cells():
    rng = generator("iou")
    a, b = some_boxes(rng, 12), some_boxes(rng, 15)
    shared, crowded, general = iou(a, b), iou(a, b, np.ones(15, bool)), giou(a, b)
    for i, j in itertools.product(range(12), range(15)):
        ours, theirs = cells(a[i]), cells(b[j])
        want = len(ours & theirs) / len(ours | theirs)
        both = ours | theirs
        hull = ((max(x for x, _ in both) - min(x for x, _ in both) + 1)
                * (max(y for _, y in both) - min(y for _, y in both) + 1))
        assert shared[i, j] == pytest.approx(want)
        assert crowded[i, j] == pytest.approx(len(ours & theirs) / len(ours))
        assert general[i, j] == pytest.approx(want - (hull - len(both)) / hull)
    assert iou([[0, 0, 0, 0]], [[0, 0, 0, 0]]) == 0 and iou([], a).shape == (0, 12)


def scene(rng, pictures, crowds=True):
    """What is there, and detections that are those boxes moved, missed or made up."""
    found, there = [], []
    for _ in range(pictures):
        gold = some_boxes(rng, int(rng.integers(0, 6)))
        labels = rng.choice(["cat", "dog", "tv"], len(gold)).tolist()
        crowd = (rng.random(len(gold)) < (0.15 if crowds else 0)).tolist()
        there.append(Boxes(gold, labels, crowd=crowd))
        kept = rng.random(len(gold)) < 0.8
        moved = gold[kept] + rng.integers(-1, 2, (int(kept.sum()), 4)) * 0.5
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 0.5)
        extra = some_boxes(rng, int(rng.integers(0, 4)))
        names = [label for label, k in zip(labels, kept, strict=True) if k]
        names += rng.choice(["cat", "dog", "bus"], len(extra)).tolist()
        scores = rng.integers(1, 20, len(names)) / 20  # ties on purpose
        found.append(Boxes(np.vstack([moved, extra]), names, scores.tolist()))
    return found, there


def by_the_definition(found, there, label, threshold):
    """Average precision without any array: greedy matching, then the best precision at or beyond
    each of 101 recalls. Crowds are not handled."""
    drawn, objects = [], 0
    for ours, theirs in zip(found, there, strict=True):
        gold = [b for b, name in zip(theirs.boxes, theirs.labels, strict=True) if name == label]
        objects += len(gold)
        taken: set[int] = set()
        own = [(s, b) for b, name, s in zip(ours.boxes, ours.labels, ours.scores, strict=True)
               if name == label]
        for s, b in sorted(own, key=lambda x: -x[0]):
            best, place = min(threshold, 1 - 1e-10), None
            for j, g in enumerate(gold):
                overlap = float(iou([b], [g])[0, 0])
                if j not in taken and overlap >= best:
                    best, place = overlap, j
            taken |= {place} - {None}
            drawn.append((s, place is not None))
    if not objects:
        return math.nan
    drawn.sort(key=lambda x: -x[0])
    points, right = [], 0
    for n, (_, hit) in enumerate(drawn, 1):
        right += hit
        points.append((right / objects, right / n))
    return sum(max((p for r, p in points if r >= at), default=0.0)
               for at in np.linspace(0, 1, 101)) / 101


@pytest.mark.parametrize("seed", range(4))
def test_map_by_its_definition(seed):
    found, there = scene(generator(f"map/{seed}"), 12, crowds=False)
    result = mean_average_precision(found, there, (0.5, 0.75))
    want = {(label, t): by_the_definition(found, there, label, t)
            for label in ("cat", "dog", "tv") for t in (0.5, 0.75)}
    for t in (0.5, 0.75):
        assert result.by_threshold[t] == pytest.approx(
            np.nanmean([want[label, t] for label in ("cat", "dog", "tv")]))
    assert result.mean == pytest.approx(np.nanmean(list(want.values())))
    assert "bus" not in result.by_label, "no bus was there to be found"


def as_coco(found, there):
    names = ["cat", "dog", "tv", "bus"]

    def rows(pictures, scored):
        made = []
        for i, p in enumerate(pictures, 1):
            for n, (x1, y1, x2, y2) in enumerate(np.asarray(p.boxes).reshape(-1, 4).tolist()):
                row = {"id": len(made) + 1, "image_id": i, "bbox": [x1, y1, x2 - x1, y2 - y1],
                       "category_id": names.index(p.labels[n]) + 1,
                       "area": (x2 - x1) * (y2 - y1)}
                made.append(row | ({"score": p.scores[n]} if scored
                                   else {"iscrowd": int(p.crowd[n])}))
        return made

    return {"info": {}, "images": [{"id": i + 1} for i in range(len(there))],
            "annotations": rows(there, False),
            "categories": [{"id": i + 1, "name": n} for i, n in enumerate(names)]
            }, rows(found, True)


@pytest.mark.parametrize("seed", range(3))
def test_map_is_that_of_pycocotools(seed):
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    found, there = scene(generator(f"coco/{seed}"), 60)
    annotations, detections = as_coco(found, there)
    gold = coco.COCO()
    gold.dataset = annotations
    gold.createIndex()
    ran = evaluation.COCOeval(gold, gold.loadRes(detections), "bbox")
    ran.evaluate()
    ran.accumulate()
    ran.summarize()
    ours = mean_average_precision(found, there)
    assert [ours.mean, ours.by_threshold[0.5], ours.by_threshold[0.75]] == pytest.approx(
        ran.stats[:3].tolist(), abs=1e-9)


def test_map_at_its_ends():
    one = Boxes([[0, 0, 4, 4]], ["cat"], crowd=[False])
    sure = Boxes([[0, 0, 4, 4]], ["cat"], [0.9])
    none = Boxes([], [], [])
    assert mean_average_precision([sure], [one]).mean == pytest.approx(1)
    assert mean_average_precision([none], [one]).mean == 0
    assert math.isnan(mean_average_precision([sure], [none]).mean)
    wrong = Boxes([[0, 0, 4, 4], [8, 8, 9, 9]], ["cat", "cat"], [0.5, 0.9])
    assert mean_average_precision([wrong], [one]).mean == pytest.approx(0.5)
    crowd = Boxes([[0, 0, 8, 8], [10, 10, 12, 12]], ["cat", "cat"], crowd=[True, False])
    many = Boxes([[0, 0, 2, 2], [4, 4, 6, 6], [10, 10, 12, 12]], ["cat"] * 3, [0.9, 0.8, 0.1])
    assert mean_average_precision([many], [crowd]).mean == pytest.approx(1), "crowds count neither"
    few = Boxes(many.boxes[:2], ["cat"] * 2, [0.9, 0.8])
    assert mean_average_precision([few], [crowd]).mean == 0, "nor do they find an object"
    assert boxes.interpolated(np.array([], bool), 3) == 0


def test_an_object_is_found_once_and_of_equal_overlaps_the_later_is_taken():
    two = Boxes([[0, 0, 4, 4], [8, 8, 12, 12]], ["cat", "cat"])
    twice = Boxes([[0, 0, 4, 4], [0, 0, 4, 4], [8, 8, 12, 12]], ["cat"] * 3, [0.9, 0.8, 0.7])
    assert mean_average_precision([twice], [two], (0.5,)).mean == pytest.approx(
        (51 + 50 * 2 / 3) / 101)
    sides = Boxes([[0, 0, 4, 2], [0, 2, 4, 4]], ["cat", "cat"])
    both = Boxes([[0, 0, 4, 4], [0, 2, 4, 4]], ["cat", "cat"], [0.9, 0.8])
    assert mean_average_precision([both], [sides], (0.5,)).mean == pytest.approx(51 / 101)


@pytest.mark.parametrize(("found", "there", "says"), [
    ([Boxes([[4, 4, 1, 1]], ["cat"], [1.0])], [Boxes([], [])], "x1 <= x2"),
    ([Boxes([[0, 0, 1, 1]], ["cat"])], [Boxes([], [])], "no scores"),
    ([Boxes([[0, 0, 1, 1]], ["cat", "dog"], [1.0])], [Boxes([], [])], "2 labels"),
    ([], [Boxes([], [])], "0 pictures and objects of 1"),
])
def test_map_names_what_is_wrong(found, there, says):
    with pytest.raises(SelfloopError, match=says) as error:
        mean_average_precision(found, there)
    assert "\n" not in str(error.value)
