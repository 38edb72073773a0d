"""Statistics against scipy, scikit-learn, brute force and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve

from selfloop.evaluate import statistics as st
from selfloop.evaluate.answers import Answer, accuracy, pair, read, unjudged, write
from selfloop.keys import generator
from selfloop.roles import SelfloopError


def answers(rights, per_cluster=1, seed=0, **more):
    """One greedy answer a question; questions are grouped in clusters in order."""
    return [Answer(sample=f"q{i}", cluster=f"c{i // per_cluster}", right=r, seed=seed, **more)
            for i, r in enumerate(rights)]


# -- answers ------------------------------------------------------------------------------------

def test_answers_survive_parquet_bit_for_bit(tmp_path):
    rows = [
        Answer(sample="a", cluster="c", task="count", gold="3", text="three\n=3", parsed="3",
               right=True, tokens=7, draw=2, arm="draws", seed=5),
        Answer(sample="b", cluster="c"),
    ]
    write(tmp_path / "x.parquet", rows)
    write(tmp_path / "y.parquet", list(rows))
    assert read(tmp_path / "x.parquet") == rows
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()
    write(tmp_path / "nones.parquet", rows[1:])
    assert read(tmp_path / "nones.parquet") == rows[1:]
    write(tmp_path / "empty.parquet", [])
    assert read(tmp_path / "empty.parquet") == []


def test_a_torn_or_foreign_file_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and nothing more")
    pq.write_table(pa.table({"sample": ["a"]}), tmp_path / "foreign.parquet")
    for name, says in (("none", "no readable"), ("torn", "no readable"), ("foreign", "cluster")):
        with pytest.raises(SelfloopError, match=says):
            read(tmp_path / f"{name}.parquet")


def test_unjudged_is_left_out_of_accuracy_and_unparsed_is_wrong():
    rows = answers([True, False, None, None])
    assert accuracy(rows) == 0.5 and unjudged(rows) == 0.5
    assert math.isnan(accuracy(answers([None]))) and unjudged([]) == 0.0
    three = [Answer(sample="q0", cluster="c", right=r, draw=i) for i, r in enumerate([1, 0, 0])]
    once = Answer(sample="q1", cluster="c", right=True)
    assert accuracy([*three, once]) == pytest.approx((1 / 3 + 1) / 2)


# -- intervals ----------------------------------------------------------------------------------

def coverage(seeds, spread, level=0.95, repetitions=300):
    """How often the interval covers a true mean of 0 with cluster, seed and residual noise."""
    rng, hit = generator(f"coverage/{seeds}"), 0
    many, size = 50, 4
    clusters = np.tile(np.repeat(np.arange(many), size), seeds)
    labels = np.repeat(np.arange(seeds), many * size)
    for i in range(repetitions):
        x = (rng.normal(size=many)[clusters] + spread * rng.normal(size=seeds)[labels]
             + rng.normal(size=len(clusters)))
        found = st.bootstrap(x, clusters, labels, n=600, key=f"r{i}", level=level)
        hit += found.low <= 0 <= found.high
    return hit / repetitions


def test_interval_covers_95_percent_on_clustered_data():
    assert 0.92 <= coverage(1, 0.0) <= 0.98


def test_ignoring_the_clusters_would_not_cover():
    rng, hit = generator("naive"), 0
    clusters = np.repeat(np.arange(50), 4)
    for i in range(100):
        x = rng.normal(size=50)[clusters] + 0.3 * rng.normal(size=200)
        found = st.bootstrap(x, np.arange(200), n=400, key=f"r{i}")
        hit += found.low <= 0 <= found.high
    assert hit < 85


def test_seeds_are_resampled_when_there_are_several():
    assert coverage(12, 0.3) >= 0.90
    x = [0.0] * 20 + [1.0] * 20
    clusters, seeds = list(range(20)) * 2, [0] * 20 + [1] * 20
    both = st.bootstrap(x, clusters, seeds)
    assert both.se == pytest.approx(0.5, rel=0.05)  # s / sqrt(2), s = sd of (0, 1)
    assert (both.low, both.high) == (0.0, 1.0)
    assert both.units == "2 seeds x 20 clusters"
    assert st.bootstrap(x, clusters).units == "20 clusters, one seed"


def test_standard_error_matches_the_analytic_one():
    x = generator("se").normal(size=400)
    found = st.bootstrap(x, range(400), n=20_000)
    assert found.se == pytest.approx(x.std(ddof=1) / 20, rel=0.03)
    assert found.estimate == pytest.approx(x.mean())


def test_bootstrap_is_keyed_and_refuses_nonsense():
    x = list(generator("k").normal(size=30))
    assert st.bootstrap(x, range(30), key="a") == st.bootstrap(x, range(30), key="a")
    assert st.bootstrap(x, range(30), key="a") != st.bootstrap(x, range(30), key="b")
    assert st.bootstrap([1.0, 2.0], ["one", "one"]).high == math.inf
    for bad in (([], []), ([1.0], [1, 2])):
        with pytest.raises(SelfloopError, match="bootstrap"):
            st.bootstrap(*bad)


# -- paired tests -------------------------------------------------------------------------------

@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 5), (9, 1), (1, 9), (40, 22), (300, 251)])
def test_mcnemar_is_the_binomial_test(b, c):
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert st.mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


def test_flips_of_single_questions_are_mcnemars_test():
    d = [1] * 14 + [-1] * 5 + [0] * 30
    assert st.permutation(d, range(49)) == pytest.approx(st.mcnemar(14, 5), rel=1e-9)
    greater = stats.binomtest(14, 19, 0.5, alternative="greater").pvalue
    assert st.permutation(d, range(49), "greater") == pytest.approx(greater, rel=1e-9)
    less = stats.binomtest(14, 19, 0.5, alternative="less").pvalue
    assert st.permutation(d, range(49), "less") == pytest.approx(less, rel=1e-9)


def test_flips_of_clusters_match_enumeration_and_scipy():
    sums = np.array([3, -1, 2, 2, 0, -2, 1, 4.0])
    d, clusters = [], []
    for i, s in enumerate(sums):
        d += [s / 2, s / 2]
        clusters += [i, i]
    flips = np.array(list(itertools.product([-1, 1], repeat=8))) @ sums
    assert st.permutation(d, clusters, "greater") == pytest.approx(np.mean(flips >= sums.sum()))
    reference = stats.permutation_test((sums,), np.sum, permutation_type="samples",
                                       alternative="two-sided", n_resamples=np.inf).pvalue
    assert st.permutation(d, clusters) == pytest.approx(reference)


def test_random_flips_agree_with_the_exact_ones():
    sums = generator("flips").integers(-3, 4, size=60) + 0.0
    sums[:25] += 1
    exact = st.permutation(sums, range(60), "greater")
    assert 0.001 < exact < 0.5
    odd = sums * math.pi  # irrational: cannot be put on a grid
    assert st.permutation(odd, range(60), "greater") == pytest.approx(exact, abs=0.015)
    assert st.permutation(odd, range(60), key="a") == st.permutation(odd, range(60), key="a")


def test_paired_gain_figures():
    a = answers([True, True, True, False, None, True])
    b = answers([False, False, True, True, True, None])
    found = st.paired_gain(a, b)
    assert (found.n, found.better, found.worse, found.unjudged) == (4, 2, 1, 2)
    assert (found.a, found.b, found.gain) == (0.75, 0.5, 0.25)
    assert found.p_mcnemar == 1.0 and found.discordant == 3
    assert found.low <= found.gain <= found.high
    assert st.paired_gain(a, b) == found
    back = st.paired_gain(b, a)
    assert back.gain == -found.gain and back.p_better == found.p_worse


def test_clusters_make_a_paired_gain_less_sure():
    rights = [True] * 30 + [False] * 70
    alone = st.paired_gain(answers(rights), answers([False] * 100))
    together = st.paired_gain(answers(rights, 10), answers([False] * 100, 10))
    assert alone.p_better == pytest.approx(0.5**30) and together.p_better == 0.5**3
    assert together.se > 2 * alone.se and together.p_mcnemar == alone.p_mcnemar


def test_several_seeds_that_disagree_are_not_significant():
    n, none = 100, answers([False] * 100)
    wins, loses = [True] * n, [False] * n
    a = [*answers(wins, seed=1), *answers(loses, seed=2), *answers(loses, seed=3)]
    found = st.paired_gain(a, none)  # the lone seed of b serves all seeds of a
    assert found.units == "3 seeds x 100 clusters" and found.gain == pytest.approx(1 / 3)
    assert found.p_better > 0.05 and found.low <= 0
    same = [*answers(wins, seed=1), *answers(wins, seed=2)]
    assert st.paired_gain(same, none).p_better < 1e-6


def test_unequal_questions_are_refused_by_name():
    a, b = answers([True, False, True]), answers([True, False])
    for x, y in ((a, b), (b, a)):
        with pytest.raises(SelfloopError, match="q2"):
            pair(x, y)
    with pytest.raises(SelfloopError, match="twice"):
        pair([*a, a[0]], a)
    with pytest.raises(SelfloopError, match="cluster"):
        pair(a, answers([True, False, True], per_cluster=2))
    two, other = [*a, *answers([True] * 3, seed=1)], [*a, *answers([True] * 3, seed=4)]
    with pytest.raises(SelfloopError, match="seed 1"):
        pair(two, other)
    with pytest.raises(SelfloopError, match="no question was judged"):
        st.paired_gain(answers([None]), answers([True]))


def test_holm_is_closed_bonferroni():
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    subsets = [s for k in range(1, 6) for s in itertools.combinations(range(5), k)]
    closed = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s)
              for i in range(5)]
    assert st.holm(p) == pytest.approx(closed) and st.holm([]) == []


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 17), (250, 1000)])
def test_wilson_is_scipys(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert st.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert st.wilson(0, 0) == (0.0, 1.0)


# -- power and alpha ----------------------------------------------------------------------------

def test_power_formulas_are_inverse():
    for n, discordant, deff in itertools.product((60, 400, 2000), (0.05, 0.25, 1.0), (1.0, 2.5)):
        more = {"discordant": discordant, "design_effect": deff, "alpha": 0.025}
        gain = st.smallest_detectable_gain(n, **more)
        assert st.questions_needed(gain, **more) == n
        assert st.questions_needed(gain * 1.1, **more) < n
    assert st.smallest_detectable_gain(2) == math.inf  # even a gain of 1
    with pytest.raises(SelfloopError, match="fractions"):
        st.questions_needed(8.0)


def test_power_is_what_the_formula_says():
    gain, psi, alpha = 0.08, 0.25, 0.025
    n = st.questions_needed(gain, discordant=psi, alpha=alpha)
    rng = generator("power")
    win, lose = (psi + gain) / 2, (psi - gain) / 2
    counts = rng.multinomial(n, [win, lose, 1 - psi], size=4000)
    p = stats.binom.sf(counts[:, 0] - 1, counts[:, 0] + counts[:, 1], 0.5)
    assert 0.74 < np.mean(p < alpha) < 0.83  # the exact test is a little below its nominal 0.8


def test_alpha_is_never_overspent():
    budget = st.SequentialAlpha(0.05)
    shares = [budget.at(k) for k in range(500)]
    assert shares[0] == st.alpha_at(0) == 0.025 and sum(shares) < 0.05
    assert np.cumsum(shares) == pytest.approx([budget.spent(k) for k in range(500)])
    assert shares == sorted(shares, reverse=True)
    with pytest.raises(SelfloopError, match="from 0"):
        budget.at(-1)


# -- draws and calibration ----------------------------------------------------------------------

@pytest.mark.parametrize(("n", "c"), [(6, 0), (6, 1), (6, 3), (6, 6)])
def test_pass_at_k_by_enumeration(n, c):
    for k in range(1, n + 1):
        hits = [min(s) < c for s in itertools.combinations(range(n), k)]
        assert st.pass_at_k(n, c, k) == pytest.approx(np.mean(hits))
    with pytest.raises(SelfloopError, match="pass_at_k"):
        st.pass_at_k(n, c, n + 1)


def test_majority_at_k_truth_table():
    a, right = ["3", "3", "4", None], [True, True, False, False]
    assert st.maj_at_k(a, right, 4) == 1.0
    assert st.maj_at_k(a, right, 1) == 0.5  # None votes for nothing and is wrong
    assert st.maj_at_k(["3", "4"], [True, False], 2) == 0.5  # a tie is split
    assert st.maj_at_k([None, None, None, "3"], [False, False, False, True], 4) == 1.0
    assert st.maj_at_k([None, None], [False, False], 2) == 0.0
    many, known = ["1"] * 12 + ["2"] * 8, [True] * 12 + [False] * 8
    exact = stats.hypergeom(20, 12, 5).sf(2)
    assert st.maj_at_k(many, known, 5, n=20_000) == pytest.approx(exact)
    assert st.maj_at_k(many, known, 5, n=2_000) == pytest.approx(exact, abs=0.04)
    assert st.maj_at_k(many, known, 5) == st.maj_at_k(many, known, 5)
    with pytest.raises(SelfloopError, match="maj_at_k"):
        st.maj_at_k(a, right, 5)


def test_calibration_error_matches_scikit_learn():
    rng = generator("ece")
    sure = rng.random(500)
    right = rng.random(500) < sure**2
    hit, said = calibration_curve(right, sure, n_bins=10)
    counts = np.histogram(sure, bins=10, range=(0, 1))[0]
    expected = float(np.sum(counts * np.abs(hit - said)) / 500)
    assert st.expected_calibration_error(sure, right) == pytest.approx(expected)
    assert st.expected_calibration_error([1.0, 0.0], [True, False]) == 0.0
    assert st.expected_calibration_error([1.0, 1.0], [True, False]) == 0.5
    apart = st.expected_calibration_error([0.95, 0.85], [True, False])
    assert apart == pytest.approx((0.05 + 0.85) / 2)  # the last two of ten bins
    with pytest.raises(SelfloopError, match="confidence"):
        st.expected_calibration_error([1.2], [True])


def test_equal_answers_leave_doubt():
    """Two of two wrong, or 40 of 40 right, is no certainty; otherwise it is the bootstrap."""
    from selfloop.evaluate.ratios import share_bootstrap

    few = share_bootstrap([0.0, 0.0], ["a", "b"])
    assert (few.low, few.estimate) == (0.0, 0.0) and few.high == pytest.approx(0.6576, abs=1e-4)
    many = share_bootstrap([1.0] * 80, [i // 2 for i in range(80)])
    assert (many.low, many.high) == pytest.approx(st.wilson(40, 40))
    mixed = [0.0, 1.0, 1.0, 0.5]
    assert share_bootstrap(mixed, "abcd") == st.bootstrap(mixed, "abcd")
