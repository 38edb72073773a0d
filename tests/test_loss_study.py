"""The study of losses: its statistics by hand and against the others, and end to end, resumed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import toyland
from clidata import quick_model, with_splits
from selfloop.commands import studying
from selfloop.data import load, save
from selfloop.engines.toy import ToyEngine
from selfloop.evaluate.answers import Answer, read
from selfloop.evaluate.ratios import crossed_ratio_bootstrap, ratio_bootstrap
from selfloop.evaluate.sealed import Sealed
from selfloop.evaluate.statistics import bootstrap, paired_gain
from selfloop.loss_study import points
from selfloop.loss_study.beds import bed_study
from selfloop.loss_study.design import SEED, SHUFFLED, VOTE, Asked, Bed, Budget, LossStudy
from selfloop.loss_study.figures import Gap, Table, columns_of, corrected, tables_of, weakest
from selfloop.loss_study.points import Maker, chosen
from selfloop.loss_study.running import collected, study_losses
from selfloop.loss_study.summary import write_summary
from selfloop.loss_study.telling import words
from selfloop.loss_study.ways import ways
from selfloop.optimize.losses.distill import TopK
from selfloop.organize.clear_view import ClearView
from selfloop.organize.refine.shuffle import ShuffleVerdicts
from selfloop.organize.verify.rules import exact
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder, read_table
from selfloop.types import Group, Part, Rollout, Turn, Verdict

HOME = Path(__file__).parent.parent


# -- statistics -----------------------------------------------------------------------------------

def made(shares: dict[str, float], seeds=(0, 1, 2), n=200) -> dict[str, list[Answer]]:
    """Answers with these shares of right ones; four questions a cluster, as hard for all arms."""
    luck = np.random.default_rng(1).random((len(seeds), n))
    return {arm: [Answer(sample=f"q{q}", cluster=f"c{q // 4}", right=bool(luck[i, q] < share),
                         seed=seed, arm=arm) for i, seed in enumerate(seeds) for q in range(n)]
            for arm, share in shares.items()}


def table(answers: dict[str, list[Answer]]) -> Table:
    seeds = sorted({a.seed for found in answers.values() for a in found})
    clusters = sorted({a.cluster for found in answers.values() for a in found})
    sums = {}
    for arm, found in answers.items():
        own = sorted({a.seed for a in found})
        both = np.zeros((2, len(own), len(clusters)))
        for a in found:
            both[:, own.index(a.seed), clusters.index(a.cluster)] += (a.right, 1)
        sums[arm] = {"accuracy": (both[0], both[1])}
    return Table(tuple(seeds), tuple(clusters), sums)


def test_the_crossed_bootstrap_of_a_ratio_is_that_of_a_mean_where_they_are_one():
    found = made({"a": 0.6})["a"]
    mean = bootstrap([float(a.right) for a in found], [a.cluster for a in found],
                     [a.seed for a in found], key="k")
    tops, bottoms = table({"a": found}).sums["a"]["accuracy"]
    ratio = crossed_ratio_bootstrap(tops, bottoms, key="k")
    for name in ("estimate", "low", "high", "se"):
        assert getattr(ratio, name) == pytest.approx(getattr(mean, name), abs=0.003), name
    assert ratio.units == "3 seeds x 50 clusters" == mean.units


def test_with_one_seed_it_is_the_bootstrap_over_clusters():
    rng = np.random.default_rng(0)
    bottoms = rng.integers(1, 6, (1, 80)).astype(float)
    tops = rng.binomial(bottoms.astype(int), 0.3).astype(float)
    one, other = crossed_ratio_bootstrap(tops, bottoms), ratio_bootstrap(tops[0], bottoms[0])
    assert one.estimate == other.estimate == tops.sum() / bottoms.sum()
    assert one.low == pytest.approx(other.low, abs=0.01)
    assert one.high == pytest.approx(other.high, abs=0.01)
    assert one.units == "80 clusters, one seed"
    with pytest.raises(SelfloopError, match="nothing was counted"):
        crossed_ratio_bootstrap(tops, 0 * bottoms)


def test_seeds_that_differ_widen_the_interval():
    """Three seeds of 20, 50 and 80 percent: clusters alone would know nothing of it."""
    bottoms = np.full((3, 40), 4.0)
    spread = crossed_ratio_bootstrap(bottoms * np.array([[0.2], [0.5], [0.8]]), bottoms)
    alike = crossed_ratio_bootstrap(bottoms * 0.5, bottoms)
    assert spread.high - spread.low > 0.4 and alike.high - alike.low < 1e-9


def test_a_gap_in_accuracy_is_the_paired_gain():
    answers = made({"ours": 0.6, "theirs": 0.5})
    gap = table(answers).gap("ours", "theirs")
    gain = paired_gain(answers["ours"], answers["theirs"])
    assert gap.gain == pytest.approx(gain.gain)
    assert gap.low == pytest.approx(gain.low, abs=0.01)
    assert gap.high == pytest.approx(gain.high, abs=0.01)
    assert (gap.p_value < 0.001) == (gain.p_value < 0.001)
    same = table({"ours": answers["ours"], "theirs": answers["ours"]}).gap("ours", "theirs")
    assert same.gain == 0 and same.p_value == 1


def test_an_arm_without_a_seed_is_compared_with_every_seed():
    answers = {**made({"ours": 0.6}), "seed": made({"seed": 0.5}, seeds=(0,))["seed"]}
    gap = table(answers).gap("ours", "seed")
    assert gap.gain == pytest.approx(paired_gain(answers["ours"], answers["seed"]).gain)
    back = tables_of(columns_of({"test": table(answers)}), (0, 1, 2),
                     {"test": table(answers).clusters})["test"]
    assert back.gap("ours", "seed") == gap and len(back.sums["seed"]["accuracy"][0]) == 1


def test_what_was_not_counted_has_no_gap():
    nothing = (np.zeros((3, 50)), np.zeros((3, 50)))
    found = table(made({"ours": 0.6, "theirs": 0.5}))
    found.sums["theirs"]["accuracy"] = nothing
    assert found.gap("ours", "theirs") is None
    assert math.isnan(found.value("theirs", "accuracy")[0])
    gap = Gap(0.1, 0.0, 0.2, 0.02)
    assert corrected([gap, None, gap])[1] is None
    assert [g.p_holm for g in corrected([gap, None, gap]) if g] == [0.04, 0.04]


@pytest.mark.parametrize(("gaps", "p"), [
    ([(0.1, 0.02), (0.2, 0.001)], 0.01),      # the weakest of two, one-sided
    ([(0.1, 0.02), (-0.1, 0.02)], 0.99),      # below one arm: as far from the claim as can be
    ([(0.0, 1.0)], 0.5),
])
def test_a_claim_is_as_strong_as_its_weakest_arm(gaps, p):
    assert weakest([Gap(gain, 0, 0, value) for gain, value in gaps]) == pytest.approx(p)


@pytest.mark.parametrize(("tried", "rate"), [
    ({1e-5: 0.5, 1e-4: 0.7, 1e-3: 0.6}, 1e-4), ({1e-3: 0.6, 1e-5: 0.6, 1e-4: 0.6}, 1e-5)])
def test_the_best_rate_on_dev_and_the_smaller_of_equals(tried, rate):
    assert chosen(tried) == rate


# -- the clearer picture as a teacher -------------------------------------------------------------

def judged(folder: Path, said: list[tuple[str, float | None]], op: str = "") -> Group:
    sample = toyland.samples(folder, 1)[0]
    media = tuple(m.with_op(op, 0.5, "drawn") if op else m for m in sample.media)
    context = sample.context.seen_as(media)
    rollouts = tuple(Rollout(
        id=f"r{i}", sample=sample.id, context=context, output=(Part(text=text),),
        turns=(Turn(prompt_token_ids=(1,), token_ids=(i + 1,), logprobs=(-1.0,)),))
        for i, (text, _) in enumerate(said))
    return Group(sample=sample, rollouts=rollouts,
                 verdicts=tuple(Verdict(score=score) for _, score in said))


def test_the_teacher_sees_the_picture_and_the_student_a_view_of_it(tmp_path):
    group = judged(tmp_path, [("yes", 1.0), ("no", 0.0), ("yes", 1.0), ("left", None)], op="blur")
    signals = ClearView(op="view", severity=1.0)([group], "key")
    assert [s.rollouts for s in signals] == [("r0",)]  # right answers, equal ones once
    teacher, student = signals[0].branches["teacher"], signals[0].branches["student"]
    assert [m.ops for m in teacher.context.media] == [()]
    assert [[o.name for o in m.ops] for m in student.context.media] == [["view"]]
    assert [t.token_ids for t in student.turns] == [t.token_ids for t in teacher.turns] == [(1,)]
    assert student.turns[0].logprobs is None and not student.turns[0].prompt_token_ids
    every = ClearView(at_least=None)([group], "key")
    assert [s.rollouts for s in every] == [("r0",), ("r1",), ("r3",)]


# -- the study ------------------------------------------------------------------------------------

SMALL = Budget(steps=2, samples=6, draws=4, updates=2, batch=8, rates=(0.02, 0.2))


def toy_engine() -> ToyEngine:
    return ToyEngine(("yes", "no", "left", "right"), seed=1)


FEW = ("dpo", "papo", "self_distillation")


def small_study(folder: Path, seeds=(0,), *, names=FEW, **changes) -> LossStudy:
    every = toyland.samples(folder / "data", 40)
    path = folder / "data" / "test.jsonl"
    if not path.exists():
        save(every[28:], path)
    held = Sealed(path, load, look_alike=False)
    bed = Bed(name="toy", make_engine=toy_engine, pool=every[:12], labelled=every[12:20],
              dev=every[20:28], asked={"test": Asked(held), "no picture": Asked(held, blind=True)},
              verifier=exact, metric=exact, max_new_tokens=4)
    few = replace(ways(4)["self_distillation"], loss=TopK(4))  # the toy has few words
    return LossStudy(folder=folder / "study", bed=replace(bed, **changes), budget=SMALL,
                     seeds=seeds, ways={name: {**ways(4), "self_distillation": few}[name]
                                        for name in names})


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """(study, its summary)."""
    study = small_study(tmp_path_factory.mktemp("losses"), seeds=(0, 1))
    return study, study_losses(study)


def test_the_eight_losses_have_one_budget_and_the_same_problems(tmp_path):
    study = small_study(tmp_path, names=list(ways(4)))
    study = replace(study, budget=replace(SMALL, rates=(0.02,)))
    assert [way.name for way in study.ways.values()] == [
        "SFT", "DPO", "mDPO", "SimPO", "GRPO", "Dr. GRPO", "PAPO", "self-distillation"]
    asked, losses = set(), set()
    for way in study.ways:
        told = Maker(study).point(way, 0)
        ran = RunFolder(study.place(way, 0, 0.02) / "run")
        asked.add(json.dumps([ran.manifest(i)["samples"] for i in range(SMALL.steps)]))
        losses.add(ran.json("loop.json")["fingerprint"])
        drawn = [ran.manifest(i)["counts"]["drawn"] for i in range(SMALL.steps)]
        assert drawn == [SMALL.samples * SMALL.draws] * SMALL.steps
        assert told["updates"] == SMALL.total and told["tokens"]["learn_trained"] > 0
        assert told["labels_answer_only"] == 12 and told["labels_full"] == 0
        assert told["monitors"]["grad_norm"] > 0
    assert len(asked) == 1 and len(losses) == 8


def test_an_update_of_pairs_has_as_many_answers(tmp_path):
    study = small_study(tmp_path, names=("sft", "dpo"))
    sizes = [study.loop(way, 0, 0.1).learn["solver"].optim.batch for way in study.ways]
    assert sizes == [SMALL.batch, SMALL.batch // 2]


def test_every_arm_is_there_with_its_gap(studied):
    study, summary = studied
    assert summary["against"] == [SEED, "labels", "answers", "labels_flops", VOTE, "shuffled"]
    for loss in summary["losses"]:
        assert all(loss["gains"][arm] is not None for arm in summary["against"]), loss["name"]
        assert list(loss["others"]) == ["no picture: accuracy"]
    assert len(summary["pairs"]) == 3
    for way in study.ways:
        loop = study.loop(way + SHUFFLED, 0, 0.1)
        assert loop.learn["solver"].organizer.steps == (ShuffleVerdicts(),)
    assert "no picture" not in study.sets(VOTE)


def test_equal_flops_are_those_of_the_costliest_loss(studied):
    study, _ = studied
    maker = Maker(study)
    most = max(maker.kept(way, 1)["flops"] for way in study.ways)
    plain, paid = maker.kept("labels", 1), maker.kept("labels_flops", 1)
    assert plain["updates"] == SMALL.total
    assert abs(paid["flops"] - most) <= plain["flops"] / SMALL.total  # within one update
    assert paid["rate"] == plain["rate"]


def test_rates_are_chosen_on_dev_at_the_first_seed_alone(studied):
    study, summary = studied
    for arm in study.tuned:
        dev = {r: json.loads((study.place(arm, 0, r) / "dev.json").read_text())["accuracy"]
               for r in SMALL.rates}
        assert Maker(study).rate(arm) == chosen(dev)
        assert not [r for r in SMALL.rates if (study.place(arm, 1, r) / "dev.json").exists()]
    assert all(len(loss["tried"]) == 2 and not loss["at_the_edge"] for loss in summary["losses"])


def test_the_summary_follows_from_what_is_kept(studied, tmp_path):
    study, summary = studied
    for name in ("facts.json", "tallies.parquet"):
        (tmp_path / name).write_bytes((study.folder / name).read_bytes())
    assert write_summary(tmp_path) == summary
    for name in ("summary.json", "table.md", "gains.html"):
        assert (tmp_path / name).read_bytes() == (study.folder / name).read_bytes()
    page = (tmp_path / "gains.html").read_text()
    assert page.count('<circle class="spot"') == 3 * 6
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_figures_follow_from_the_stored_answers(studied):
    study, summary = studied
    tables = tables_of(read_table(study.folder / "tallies.parquet")[0], study.seeds,
                       json.loads((study.folder / "facts.json").read_text())["clusters"])
    for loss in summary["losses"]:
        found = [a for s in study.seeds
                 for a in read(study.place(loss["way"], s, loss["rate"]) / "test.parquet")]
        assert tables["test"].value(loss["way"], "accuracy")[0] == pytest.approx(
            sum(bool(a.right) for a in found) / len(found))


def test_a_finished_study_is_not_made_again_and_weights_are_dropped(studied, monkeypatch):
    study, summary = studied
    monkeypatch.setattr(points, "run", lambda *a, **k: pytest.fail("ran again"))
    assert study_losses(study) == summary
    assert not list(study.folder.glob("points/*/run/checkpoints"))


def test_a_killed_study_goes_on_to_the_same_figures(studied, tmp_path, monkeypatch):
    _, summary = studied
    again = small_study(tmp_path)
    again = replace(again, ways={name: again.ways[name] for name in FEW[:2]})
    calls = []

    def killed(*args, **more):
        calls.append(args)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return plain(*args, **more)

    plain = points.final_answers
    monkeypatch.setattr(points, "final_answers", killed)
    with pytest.raises(KeyboardInterrupt):
        study_losses(again)
    with pytest.raises(SelfloopError, match="no seed has all its arms yet"):
        collected(again, again.folder)
    found = study_losses(again)
    whole = {loss["way"]: loss for loss in summary["losses"]}
    for ours in found["losses"]:
        assert ours["by_seed"]["0"] == whole[ours["way"]]["by_seed"]["0"], ours["name"]
        assert ours["rate"] == whole[ours["way"]]["rate"]
    assert found["units"] == "12 clusters, one seed"


def test_seeds_that_are_not_done_are_left_out_and_named(studied):
    study, _ = studied
    summary = collected(replace(study, seeds=(0, 1, 2)), study.folder)
    assert summary["seeds"] == [0, 1] and len(summary["missing"]) == len(study.arms)
    assert summary["missing"][0] == "dpo, seed 2"
    assert "Not finished, left out: 10 points" in (study.folder / "table.md").read_text()
    collected(study, study.folder)


def test_without_labels_there_is_no_arm_on_labels(tmp_path):
    study = small_study(tmp_path, labelled=())
    assert "labels" not in study.arms and "labels_flops" not in study.arms
    assert study.shared() == (SEED, "answers", VOTE)


def test_loops_are_shown_no_worked_solutions(tmp_path):
    study = small_study(tmp_path)
    assert all(s.rationale is None and s.answer is not None for s in study.given("papo"))
    assert all(s.rationale is not None for s in study.given("labels"))


@pytest.mark.parametrize(("change", "said"), [
    (partial(replace, budget=Budget(steps=9, samples=9)), "draws for 81 problems"),
    (partial(replace, seeds=()), "needs seeds"),
])
def test_a_study_that_cannot_be_is_refused(change, said, tmp_path):
    with pytest.raises(SelfloopError, match=said):
        change(small_study(tmp_path))


@pytest.mark.parametrize(("options", "said"), [
    ({"draws": 1}, "at least 2"), ({"rates": ()}, "learning rate"),
    ({"rates": (0.0,)}, "positive")])
def test_a_budget_that_cannot_be_is_refused(options, said):
    with pytest.raises(SelfloopError, match=said):
        Budget(**options)


# -- words ----------------------------------------------------------------------------------------

def gain(value: float, shown: bool) -> dict:
    return {"gain": value, "interval": [value - 1, value + 1], "shown": shown, "p_holm": 0.01}


@pytest.mark.parametrize(("gains", "above", "said"), [
    ({"seed": gain(3, True), "vote": gain(2, True)}, True, "above every arm (p = 0.01"),
    ({"seed": gain(3, True), "vote": gain(2, True)}, False, "not shown to be above all of them"),
    ({"seed": gain(3, True), "vote": gain(0.5, False)}, False,
     "DPO: above seed; not shown to differ from seed's vote; other"),
    ({"seed": gain(3, True), "vote": gain(-2, True)}, False, "DPO: above seed; below seed's vote;"),
    ({"seed": gain(3, True), "vote": None}, False, "above seed; not shown to differ from seed's"),
])
def test_words_carry_no_more_than_the_intervals(gains, above, said):
    loss = {"name": "DPO", "rate": 0.1, "gains": gains, "others": {
        "test: chair_i": {"seed": gain(-4, True)}, "test: recall": {"seed": gain(1, False)}},
        "claim": {"p_holm": 0.01, "above_all": above}, "at_the_edge": True}
    told = words({"against": list(gains)}, loss)
    assert said in told and "CHAIR_i on test -4.0 [-5.0, -3.0]" in told and "recall" not in told
    assert "its rate 0.1 lies at the edge" in told


# -- the command ----------------------------------------------------------------------------------

def call(*args: str):
    app = typer.Typer()
    app.add_typer(studying.study, name="study")
    return CliRunner().invoke(app, ["study", "losses", *args])


def test_the_command_computes_figures_again(studied, tmp_path):
    study, summary = studied
    (tmp_path / "toy").mkdir()
    for name in ("facts.json", "tallies.parquet"):
        (tmp_path / "toy" / name).write_bytes((study.folder / name).read_bytes())
    shown = call("--on", "toy", "--recompute", str(tmp_path))
    assert shown.exit_code == 0, f"{shown.output}{shown.exception!r}"
    assert "minus seed's vote" in shown.stdout and summary["words"][0] in shown.stdout
    found = call("--on", "toy", "--recompute", str(tmp_path), "--json")
    assert json.loads(found.stdout) == {"toy": summary}


@pytest.mark.slow
def test_the_command_on_own_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = with_splits(tmp_path, model=str(quick_model(tmp_path)))
    more = ["--seeds", "1", "--steps", "1", "--samples", "6", "--draws", "2", "--updates", "1",
            "--batch", "4", "--rates", "1e-4", "--out", "kept"]
    found = call(str(path), *more, "--json")
    assert found.exit_code == 0, f"{found.output}{found.exception!r}"
    name, summary = next(iter(json.loads(found.stdout).items()))
    assert len(summary["losses"]) == 8 and summary["missing"] == [] and summary["pool"] == 6
    assert json.loads((tmp_path / "kept" / name / "summary.json").read_text()) == summary


def test_own_data_without_a_test_split_or_answers_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = with_splits(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train/train.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("answer"), row.pop("chain", None)
    (tmp_path / "train/train.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    assert "no row has an answer" in str(call(str(path)).exception)
    path.write_text(path.read_text().replace("  test: test/test.jsonl\n", ""))
    assert "data.dev and data.test" in str(call(str(path)).exception)


@pytest.mark.parametrize(("args", "said"), [
    (["--on", "letters"], "expected one of digits, scenes"),
    (["--rates", "fast"], "expected learning rates"),
    (["--steps", "0"], "must be at least 1"),
    (["--recompute", "nowhere"], "no such file"),
])
def test_the_command_refuses(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = call(*args)
    assert isinstance(found.exception, SelfloopError) and said in str(found.exception)


@pytest.mark.slow
@pytest.mark.parametrize("bed", ["digits", "scenes"])
def test_the_study_of_a_testbed_from_end_to_end(bed, tmp_path):
    """The command's own study, smaller: real pictures, the shipped seed, every arm."""
    budget = Budget(steps=1, samples=6, draws=4, updates=1, batch=8, rates=(1e-4,))
    made_ = bed_study(bed, tmp_path, seeds=(0,), budget=budget)
    summary = study_losses(made_)
    assert summary["missing"] == [] and len(summary["losses"]) == 8
    names = list(summary["losses"][0]["others"])
    assert names == ["no picture: accuracy"] if bed == "digits" else {
        "test: chair_i", "test: pope_f1", "shifted: accuracy", "shifted: misled"} <= set(names)
    assert not {"no picture: misled", "test: words"} & set(names)
    assert all(loss["labels_answer_only"] == 6 for loss in summary["losses"])


# -- what is told ---------------------------------------------------------------------------------

@pytest.mark.parametrize("bed", ["digits", "scenes"])
def test_the_study_that_is_told_is_the_one_that_is_stored(bed, tmp_path):
    kept = HOME / "studies" / "losses" / bed
    if not (kept / "facts.json").exists():
        pytest.skip("no results are kept yet")
    for name in ("facts.json", "tallies.parquet"):
        (tmp_path / name).write_bytes((kept / name).read_bytes())
    assert write_summary(tmp_path) == json.loads((kept / "summary.json").read_text())
    told = (kept / "table.md").read_text()
    assert (tmp_path / "table.md").read_text() == told
    assert told.strip() in (HOME / "docs" / "loss-study.md").read_text()


