"""The label-equivalent against scikit-learn and by hand; the study end to end, and resumed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from clidata import quick_model, with_splits
from selfloop.commands import studying
from selfloop.evaluate.answers import Answer, read
from selfloop.evaluate.statistics import bootstrap
from selfloop.label_study import points
from selfloop.label_study.design import budgets_of
from selfloop.label_study.equivalent import labels_for, over, resampled, rising, worth
from selfloop.label_study.on_digits import digits_study, label_free, rule_checked, supervision
from selfloop.label_study.points import shown_to
from selfloop.label_study.running import collected, study_labels
from selfloop.label_study.summary import summarised, write_summary
from selfloop.report.label_curve import bounded, place
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder, put_folder

HOME = Path(__file__).parent.parent


# -- the curve and its inverse --------------------------------------------------------------------

def test_the_rising_fit_is_scikit_learns():
    from sklearn.isotonic import IsotonicRegression

    rows = np.random.default_rng(0).random((50, 6))
    for row, fitted in zip(rows, rising(rows), strict=True):
        assert np.allclose(fitted, IsotonicRegression().fit_transform(np.arange(6), row))


BUDGETS = (10, 100, 1000)


@pytest.mark.parametrize(("value", "curve", "labels", "side"), [
    (0.4, (0.2, 0.4, 0.8), 100, 0),                       # at a budget
    (0.6, (0.2, 0.4, 0.8), math.sqrt(100 * 1000), 0),     # half way up: half way in log labels
    (0.3, (0.2, 0.4, 0.8), math.sqrt(10 * 100), 0),
    (0.9, (0.2, 0.4, 0.8), 1000, 1),                      # above the curve: a lower bound
    (0.8, (0.2, 0.4, 0.8), 1000, 0),                      # its very end is no bound
    (0.1, (0.2, 0.4, 0.8), 10, -1),                       # below: an upper bound
    (0.2, (0.2, 0.4, 0.8), 10, 0),
    (0.4, (0.2, 0.4, 0.4), 100, 0),                       # flat: the first budget that gets there
    (0.4, (0.4, 0.4, 0.4), 10, 0),
])
def test_labels_for(value, curve, labels, side):
    found, sides = labels_for(np.array([value]), np.array([curve]), BUDGETS)
    assert found[0] == pytest.approx(labels) and sides[0] == side


def test_bounds_stay_bounds():
    inside = np.zeros(101, dtype=int)
    plain = worth(np.full(101, 50.0), inside)
    assert not (plain.at_least or plain.at_most or plain.low_open or plain.high_open)
    above = worth(np.full(101, 1000.0), np.ones(101, dtype=int))
    assert above.at_least and above.high_open
    some = np.concatenate([[0], np.ones(4), np.zeros(96)]).astype(int)  # 4 of 100 resamples
    assert worth(np.full(101, 50.0), some).high_open
    few = np.concatenate([[0], np.ones(2), np.zeros(98)]).astype(int)
    assert not worth(np.full(101, 50.0), few).high_open
    below = worth(np.full(101, 10.0), -np.ones(101, dtype=int)).times(0.1)
    assert below.at_most and below.low_open and below.value == 1.0


@pytest.mark.parametrize(("first", "second", "at_least", "at_most"), [
    (0, 0, False, False), (1, 0, True, False), (-1, 0, False, True),
    (0, 1, False, True),    # divided by "at least" is "at most"
    (0, -1, True, False), (1, -1, True, False), (-1, 1, False, True),
    (1, 1, True, True), (-1, -1, True, True),   # both beyond the same end: not known
])
def test_a_ratio_of_bounds(first, second, at_least, at_most):
    rows = np.full(50, 6.0), np.full(50, first), np.full(50, 2.0), np.full(50, second)
    found = over((rows[0], rows[1]), (rows[2], rows[3]))
    assert found.value == 3.0
    assert (found.at_least, found.at_most) == (at_least, at_most)


# -- the bootstrap --------------------------------------------------------------------------------

def made_answers(curves: dict[tuple[str, int], float], seeds=(0, 1, 2), n=400):
    """Answers whose shares of right ones are the given ones; four questions a cluster."""
    rng = np.random.default_rng(1)
    luck = rng.random((len(seeds), n))  # the same questions are hard for every arm: paired
    return {(arm, b): [
        Answer(sample=f"q{q}", cluster=f"c{q // 4}", right=bool(luck[i, q] < share), seed=seed,
               arm=f"{arm}@{b}") for i, seed in enumerate(seeds) for q in range(n)]
        for (arm, b), share in curves.items()}


KNOWN = {("supervised", 10): 0.2, ("supervised", 100): 0.4, ("supervised", 1000): 0.8,
         ("loop", 10): 0.6, ("loop", 100): 0.95}


def test_a_known_worth_is_found_within_its_interval():
    drawn = resampled(made_answers(KNOWN))
    found = worth(*drawn.labels("loop", 10, BUDGETS))
    assert found.low < math.sqrt(100 * 1000) < found.high
    assert found.low < found.value < found.high < 1000 and not found.high_open
    beyond = worth(*drawn.labels("loop", 100, BUDGETS)).times(1 / 100)
    assert beyond.at_least and beyond.value == 10.0 and beyond.high_open
    itself = worth(*drawn.labels("supervised", 100, BUDGETS)).times(1 / 100)
    # paired: the curve that it is read off moves with it
    assert (itself.low, itself.value, itself.high) == pytest.approx((1, 1, 1))


def test_intervals_are_those_of_the_crossed_bootstrap():
    answers = made_answers(KNOWN)
    value, low, high = resampled(answers).interval("loop", 10)
    found = answers["loop", 10]
    other = bootstrap([float(a.right) for a in found], [a.cluster for a in found],
                      [a.seed for a in found])
    assert value == pytest.approx(other.estimate)
    assert low == pytest.approx(other.low, abs=0.01)
    assert high == pytest.approx(other.high, abs=0.01)


def test_one_seed_is_held_fixed_and_said():
    assert resampled(made_answers(KNOWN, seeds=(7,))).units == "100 clusters, one seed"
    assert resampled(made_answers(KNOWN)).units == "3 seeds x 100 clusters"


def test_what_nobody_could_judge_is_left_out():
    answers = made_answers({("supervised", 10): 0.5})
    some = answers["supervised", 10]
    answers["supervised", 10] = [a.model_copy(update={"right": None}) if not a.right and i % 2
                                 else a for i, a in enumerate(some)]
    kept = [a.right for a in answers["supervised", 10] if a.right is not None]
    assert resampled(answers).interval("supervised", 10)[0] == pytest.approx(np.mean(kept))


def test_points_of_other_questions_are_refused():
    answers = made_answers(KNOWN)
    answers["loop", 10] = answers["loop", 10][1:]
    with pytest.raises(SelfloopError, match="loop at 10 labels answered other questions"):
        resampled(answers)


# -- the study ------------------------------------------------------------------------------------

def small_loop(make, seed):
    """A loop of one iteration of two updates."""
    loop = make(seed)
    how = loop.learn["solver"]
    return replace(loop, samples=6, iterations=1, learn={
        "solver": replace(how, optim=replace(how.optim, updates=2, batch=4))})


def small_study(folder, seeds=(0,)):
    """24 questions, the smallest model, one update or two an arm."""
    if not (folder / "text-only").exists():
        put_folder(folder / "text-only", lambda aside: _quick(aside))
    made = digits_study(folder, shares=(0.25, 1.0), seeds=seeds, pool=24, dev=8, test=12, bare=10,
                        supervise=supervision(2, 2))
    loops = {"agreement": lambda s: small_loop(label_free, s),
             "star": lambda s: small_loop(rule_checked, s)}
    return replace(made, loops=loops)


def _quick(folder: Path) -> None:
    from selfloop.testbeds.tiny_vlm import build

    build(folder, width=32, layers=1)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """(study, its summary)."""
    study = small_study(tmp_path_factory.mktemp("labels"))
    return study, study_labels(study)


def test_every_point_counts_its_labels_and_its_cost(studied):
    _, summary = studied
    assert summary["budgets"] == [6, 24] and summary["missing"] == []
    found = {(p["arm"], p["labels_full"]): p for p in summary["points"]}
    assert set(found) == {(arm, 6) for arm in ("supervised", "agreement", "star", "vote")} | {
        ("supervised", 24), ("vote", 24)}  # at 100 % nothing is left for a loop
    for (arm, budget), p in found.items():
        assert p["labels_answer_only"] == (6 if arm == "star" else 0), (arm, budget)
        assert p["interval"][0] <= p["accuracy"] <= p["interval"][1]
        assert p["flops"] > 0 and p["seconds"] > 0 and p["tokens"]["learn_read"] > 0
    assert found["supervised", 6]["updates"] == 4  # as many as the loop's arm may make in all
    assert found["agreement", 6]["updates"] <= 4


def test_budgets_are_nested_and_the_rest_has_no_labels_to_read(studied):
    study, _ = studied
    less, rest = study.split(6, 0)
    more, _ = study.split(12, 0)
    assert [s.id for s in more[:6]] == [s.id for s in less] and len(rest) == 18
    assert {s.id for s in less}.isdisjoint(s.id for s in rest)
    assert [s.id for s in study.split(6, 1)[0]] != [s.id for s in less]
    bare = shown_to(label_free(0), rest)
    assert all(s.answer is None and s.rationale is None for s in bare)
    more = shown_to(label_free(0), rest, study.bare)
    assert len(more) == 18 + 10 and len({s.id for s in more}) == 28
    assert all(s.answer is None and s.rationale is None for s in more)
    answers = shown_to(rule_checked(0), rest, study.bare)
    assert len(answers) == 18
    assert all(s.answer is not None and s.rationale is None for s in answers)
    with pytest.raises(SelfloopError, match="no question outside the labelled ones has one"):
        shown_to(rule_checked(0), [s.unlabelled() for s in rest])


def test_the_summary_follows_from_what_is_kept(studied, tmp_path):
    study, summary = studied
    for name in ("facts.json", "answers.parquet"):
        (tmp_path / name).write_bytes((study.folder / name).read_bytes())
    assert write_summary(tmp_path) == summary
    for name in ("summary.json", "table.md", "curve.html"):
        assert (tmp_path / name).read_bytes() == (study.folder / name).read_bytes()
    page = (tmp_path / "curve.html").read_text()
    assert page.count('<circle class="spot"') == len(summary["points"]) + 4  # and the legend's
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_a_finished_study_is_not_made_again_and_weights_are_dropped(studied, monkeypatch):
    study, summary = studied
    monkeypatch.setattr(points, "_run", lambda *a, **k: pytest.fail("ran again"))
    assert study_labels(study) == summary
    assert not list(study.folder.glob("points/*/model"))
    assert not list(study.folder.glob("points/*/*/checkpoints"))


def test_a_killed_study_goes_on_to_the_same_answers(studied, tmp_path, monkeypatch):
    study, _ = studied
    again = small_study(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(points, "votes", killed)
    with pytest.raises(KeyboardInterrupt):
        points.point(again, 24, 0)
    assert not points.finished(again, 24, 0)
    with pytest.raises(SelfloopError, match="no seed has all its label budgets yet"):
        collected(again, again.folder)
    monkeypatch.undo()
    before = (again.place(24, 0) / "supervised.parquet").stat().st_mtime_ns
    points.point(again, 24, 0)
    assert (again.place(24, 0) / "supervised.parquet").stat().st_mtime_ns == before
    for arm in again.arms(24):
        ours, theirs = (read(s.place(24, 0) / f"{arm}.parquet") for s in (again, study))
        assert [a.text for a in ours] == [a.text for a in theirs], arm


def test_seeds_that_are_not_done_are_left_out_and_named(studied):
    study, _ = studied
    summary = collected(replace(study, seeds=(0, 1)), study.folder)
    assert summary["seeds"] == [0]
    assert summary["missing"] == [f"{b} labels, seed 1" for b in (6, 24)]
    collected(study, study.folder)


def test_bad_budgets_are_refused(studied):
    study, _ = studied
    assert budgets_of((0.01, 0.011, 1), 100) == (1, 100)
    with pytest.raises(SelfloopError, match=r"share of the pool in \(0, 1\]"):
        budgets_of((5,), 100)
    with pytest.raises(SelfloopError, match="pool's 24"):
        replace(study, budgets=(6, 25))


def test_bounds_in_words_and_places():
    plain = {"value": 3.14159, "low": 2.0, "high": 4.0, "at_least": False, "at_most": False,
             "low_open": False, "high_open": False}
    assert bounded(plain) == "3.14 [2, 4]"
    assert bounded({**plain, "at_least": True, "high_open": True}) == "at least 3.14 [2, ≥ 4]"
    assert bounded({**plain, "at_least": True, "at_most": True}) == "not known"
    assert place(100, BUDGETS) == pytest.approx(50.0)


def test_the_start_is_the_first_stage_of_the_shipped_seed(tmp_path):
    import runpy

    import torch
    from transformers import AutoModelForImageTextToText

    from selfloop.testbeds import tiny_vlm
    from selfloop.testbeds.text_start import text_start

    made = runpy.run_path(str(HOME / "scripts" / "make_seed"))
    tiny_vlm.build(tmp_path / "theirs", seed=0)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    processor, rng = tiny_vlm.make_processor(), made["generator"]("make_seed/text/0")
    made["learn"](model, [lambda: made["text_batch"](processor, rng, 64)], updates=2, lr=2e-3)
    text_start(tmp_path / "ours", updates=2)
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    for (name, a), b in zip(model.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b), name


# -- the command ----------------------------------------------------------------------------------

def call(*args: str):
    app = typer.Typer()
    app.add_typer(studying.study, name="study")
    return CliRunner().invoke(app, ["study", "labels", *args])


def test_the_command_on_own_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("selfloop.commands.running.settled_config", lambda config: config)
    path = with_splits(tmp_path, model=str(quick_model(tmp_path)))
    more = ["--budgets", "0.5", "--seeds", "1", "--out", "kept"]
    found = call(str(path), *more, "--json")
    assert found.exit_code == 0, f"{found.output}{found.exception!r}"
    summary = json.loads(found.stdout)
    assert summary["budgets"] == [6] and summary["pool"] == 12
    arms = {(p["arm"], p["labels_full"]): p for p in summary["points"]}
    assert set(arms) == {("supervised", 6), ("star", 6), ("vote", 6)}
    assert arms["star", 6]["labels_answer_only"] == 6
    shown = call("--recompute", "kept")
    assert shown.exit_code == 0 and "supervised alone" in shown.stdout
    assert "worth in labels" in shown.stdout


@pytest.mark.parametrize(("args", "said"), [
    (["--budgets", "ten"], "expected shares"),
    (["--recompute", "nowhere"], "no such file"),
])
def test_the_command_refuses(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = call(*args)
    assert isinstance(found.exception, SelfloopError) and said in str(found.exception)


def test_own_data_without_a_test_split_or_labels_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("selfloop.commands.running.settled_config", lambda config: config)
    path = with_splits(tmp_path, model=str(quick_model(tmp_path)))
    found = call(str(path), "method=supervised")
    assert "what a study of labels compares with" in str(found.exception)
    path.write_text(path.read_text().replace("  test: test/test.jsonl\n", ""))
    found = call(str(path))
    assert "data.dev and data.test" in str(found.exception)


# -- what is told ---------------------------------------------------------------------------------

@pytest.mark.skipif(not (HOME / "studies" / "labels" / "facts.json").exists(),
                    reason="no results are kept yet")
def test_the_study_that_is_told_is_the_one_that_is_stored():
    kept = HOME / "studies" / "labels"
    facts = json.loads((kept / "facts.json").read_text())
    summary = summarised(facts, read(kept / "answers.parquet"))
    assert summary == json.loads((kept / "summary.json").read_text())
    told = (kept / "table.md").read_text().strip()
    assert told in (HOME / "docs" / "label-efficiency.md").read_text()


def test_an_arm_that_is_missing_is_looked_for_in_its_folder(studied):
    study, _ = studied
    for budget in study.budgets:
        where = RunFolder(study.place(budget, 0))
        for arm in study.arms(budget):
            told = where.json(f"{arm}.json")
            assert told["kept"] in ("start", "last") and told["arm"] == arm
