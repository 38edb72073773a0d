"""A miniature proof on the digits testbed: every arm, every field, and a sealed test split."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from selfloop import demo, proof, proving
from selfloop.data import load
from selfloop.evaluate.answers import accuracy
from selfloop.evaluate.arms import shuffled, spent
from selfloop.evaluate.sealed import Sealed
from selfloop.evaluate.statistics import paired_gain
from selfloop.organize.refine.shuffle import ShuffleVerdicts
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder
from selfloop.testbeds import digits

SCALE = demo.Scale(pool=40, dev=30, test=40)
FIELDS = {
    "method", "seed", "labels_full", "labels_answer_only", "heldout_n", "seed_accuracy",
    "final_accuracy", "control_steps", "testtime_vote", "no_image", "gain_over_control", "interval",
    "tokens", "seconds", "control_flops", "shuffled", "supervised_on_answers", "skyline",
}
"""Of demo's and of proof's summary.json, as the issue names them."""


def study(folder, method="star", arms=proof.TRAINED, scale=SCALE) -> proof.Study:
    """A study whose loop takes two iterations of three updates."""
    made = demo.study(method, 0, folder, scale=scale, arms=arms)
    how = made.loop.learn["solver"]
    small = replace(how, optim=replace(how.optim, updates=3, batch=16))
    sampler = replace(made.loop.sampler, **(
        {"n": 3} if method == "star" else {"questions": 2, "views": 1}))
    loop = replace(made.loop, learn={"solver": small}, sampler=sampler, iterations=2, samples=20)
    more = {"skyline_updates": 6} if "skyline_updates" in proof.Study.__dataclass_fields__ else {}
    return replace(made, loop=loop, **more)


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    """(the study, its summary) of a proof with every arm."""
    folder = tmp_path_factory.mktemp("proof")
    made = study(folder)
    return made, proof.prove(made, workers=1)


def test_the_summary_has_every_field_and_is_on_disk(proven):
    made, summary = proven
    assert summary.keys() >= FIELDS
    assert json.loads((made.folder / "summary.json").read_text()) == summary
    assert (summary["method"], summary["seed"], summary["heldout_n"]) == ("star", 0, 40)
    assert summary["labels_full"] == 0 and 20 <= summary["labels_answer_only"] <= 40
    assert summary["iterations"] == 2 and summary["seconds"] > 0
    assert all(summary["tokens"][k] > 0 for k in ("read", "drawn", "learn_read", "learn_trained"))
    low, high = summary["interval"]
    assert low <= summary["gain_over_control"] <= high
    assert summary["words"] and len(summary["test_sha256"]) == 64


def test_every_figure_can_be_recomputed_from_the_stored_answers(proven):
    made, summary = proven
    arms = [*proof.ASKED, *(a for a in proof.TRAINED if a != "loop")]
    stored = {arm: proof.answers(made.folder, arm) for arm in arms}
    questions = {a.sample for a in stored["seed_accuracy"]}
    for arm, answers in stored.items():
        assert len(answers) == 40 and {a.sample for a in answers} == questions
        assert summary[arm] == round(100 * accuracy(answers), 2)
        assert all(a.right == (a.parsed == a.gold) for a in answers if a.parsed), arm
    gain = paired_gain(stored["final_accuracy"], stored["control_steps"])
    assert summary["gain_over_control"] == round(100 * gain.gain, 2)
    assert proof.summarize(made) == {k: v for k, v in summary.items() if k != "seconds"}


def test_the_arms_are_matched_to_what_the_loop_used(proven):
    made, _ = proven
    used = spent(RunFolder(made.place("loop")))
    assert used.updates == 6

    def updates(arm):
        return spent(RunFolder(made.place(arm))).updates

    assert abs(updates("control_steps") - used.updates) <= 2
    assert abs(updates("supervised_on_answers") - used.updates) <= 2
    assert updates("shuffled") == used.updates
    assert updates("control_flops") >= updates("control_steps")
    control = RunFolder(made.place("control_steps")).iterations()[-1]
    assert control.labels_full == 300 and control.tokens["drawn"] == 0
    assert 0.4 < spent(RunFolder(made.place("control_flops"))).flops / used.flops < 2.5


def test_shuffled_verdicts_are_dealt_out_again_at_the_same_rate(proven):
    made, _ = proven
    groups = RunFolder(made.place("loop")).groups(0)
    mixed = ShuffleVerdicts()(groups, "key")

    def scores(gs):
        return [v.score for g in gs for v in g.verdicts]

    assert scores(mixed) != scores(groups)
    assert sorted(map(str, scores(mixed))) == sorted(map(str, scores(groups)))
    assert [len(g.verdicts) for g in mixed] == [len(g.verdicts) for g in groups]
    loop = shuffled(made.loop)
    assert loop.gate is None and loop.fingerprint() != made.loop.fingerprint()
    assert loop.learn["solver"].organizer.steps == (ShuffleVerdicts(),)


def test_a_proof_that_is_done_is_not_done_again(proven):
    made, summary = proven
    before = {p: p.stat().st_mtime_ns for p in made.folder.rglob("*.parquet")}
    again = proof.prove(made, workers=1)
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in summary.items() if k != "seconds"}
    assert again["seconds"] >= summary["seconds"]
    assert {p: p.stat().st_mtime_ns for p in made.folder.rglob("*.parquet")} == before


# -- a second, larger look ----------------------------------------------------------------------

@pytest.fixture
def finished(proven, monkeypatch):
    """The folder of the miniature proof, as `proving` finds it under `runs`."""
    made, _ = proven
    monkeypatch.setattr(proving, "PROOF", SCALE)
    monkeypatch.setattr(proving, "study", lambda method, seed, folder, scale, shared: study(
        made.folder, method, scale=scale))
    return made.folder


def contents(folder):
    """{file: its bytes} of what a second look may not touch."""
    new = ("/again-", "/data/", "/events.jsonl")  # an opening is noted in the runs' logs
    return {p: p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and not any(part in p.as_posix() for part in new)}


def test_finished_runs_are_asked_a_larger_test_and_learn_nothing(finished, proven, tmp_path):
    before = contents(finished)
    summary = proving.again("star", 0, finished, tmp_path, 149, workers=1)
    assert contents(finished) == before
    assert summary["heldout_n"] == 149 and summary["promoted"] == proven[1]["promoted"]
    assert summary["test_sha256"] != proven[1]["test_sha256"]
    kept = tmp_path / "star-0"
    assert json.loads((kept / "summary.json").read_text()) == summary
    asked = {s.id: s for s in load(finished / "data" / f"test-{proving.KEY}-149" / "test.jsonl")}
    assert {s.cluster for s in asked.values()} == {f"test-{i:03d}" for i in range(149)}
    for arm in [*proof.ASKED, *(a for a in proof.TRAINED if a != "loop")]:
        found = proof.answers(kept, arm)
        assert {a.sample for a in found} == set(asked)
        assert all(a.cluster == asked[a.sample].cluster for a in found)
        assert summary[arm] == round(100 * accuracy(found), 2)


def test_the_first_test_once_more_gives_the_first_answers(finished, proven, tmp_path):
    summary = proving.again("star", 0, finished, tmp_path, 40, key=1, workers=1)
    told = {k: v for k, v in proven[1].items() if k != "seconds"}
    assert {k: v for k, v in summary.items() if k != "seconds"} == told
    for arm in proof.ASKED:
        assert proof.answers(tmp_path / "star-0", arm) == proof.answers(finished, arm)


def test_a_picture_of_the_first_test_is_refused(finished, tmp_path):
    digits.write(finished / "data" / "test-7-20", "test", 20, 7)
    first = load(finished / "data" / "test" / "test.jsonl")[3]
    shutil.copy(first.media[0].meta["uri"],
                finished / "data" / "test-7-20" / "images" / "test-7-00005.png")
    with pytest.raises(SelfloopError, match=r"1 pictures are of the first test.*--key"):
        proving.again("star", 0, finished, tmp_path, 20, key=7, workers=1)
    assert not list(tmp_path.iterdir())


def test_the_answers_to_another_test_are_not_overwritten(finished, tmp_path):
    proving.keep(finished, tmp_path / "star-0")
    before = contents(tmp_path)
    with pytest.raises(SelfloopError, match=r"summary\.json is of another test.*--out"):
        proving.again("star", 0, finished, tmp_path, 20, key=8, workers=1)
    assert contents(tmp_path) == before


def test_runs_that_have_not_finished_are_not_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(proving, "PROOF", SCALE)
    with pytest.raises(SelfloopError, match="sealed until"):
        proving.again("agreement", 0, tmp_path / "runs", tmp_path / "out", 50, workers=1)
    assert not (tmp_path / "out").exists()


LARGER = Path(__file__).parent.parent / "proof" / "agreement-larger"
ARMS = {"seed_accuracy", "final_accuracy", "testtime_vote", "no_image", "control_steps",
        "control_flops", "shuffled", "skyline"}


def test_the_larger_test_that_is_told_is_the_one_that_is_stored(tmp_path):
    """Its table in the page follows from the stored answers, and recomputes to the letter."""
    told, summary = (LARGER / "table.md").read_text(), (LARGER / "summary.json").read_text()
    assert told.strip() in (LARGER.parent.parent / "docs" / "proof.md").read_text()
    shutil.copytree(LARGER, tmp_path / "larger")
    (tmp_path / "larger" / "table.md").unlink()
    (tmp_path / "larger" / "summary.json").unlink()
    proving.recompute(tmp_path / "larger")
    assert (tmp_path / "larger" / "table.md").read_text() == told
    assert (tmp_path / "larger" / "summary.json").read_text() == summary


def test_the_larger_test_holds_the_questions_that_were_fixed_before_it():
    rows = digits.rows("test", 4768, proving.KEY)
    sealed = hashlib.sha256("".join(json.dumps(r) + "\n" for r in rows).encode()).hexdigest()
    assert sealed.startswith("fd8d6e3e42b4384a"), "committed before the first answer"
    assert set(Counter(r["cluster"] for r in rows).values()) == {32}
    first = {a.sample for a in proof.answers(LARGER.parent / "agreement-0", "seed_accuracy")}
    for seed in (0, 1, 2):
        kept = LARGER / f"agreement-{seed}"
        assert json.loads((kept / "summary.json").read_text())["test_sha256"] == sealed
        assert {p.stem for p in (kept / "answers").iterdir()} == ARMS
        for arm in ARMS:
            found = proof.answers(kept, arm)
            assert [(a.gold, a.cluster, a.task) for a in found] == [
                (r["answer"], r["cluster"], r["task"]) for r in rows], (seed, arm)
            assert len({a.sample for a in found} - first) == 4768
            assert all(a.right == ((a.parsed or "").replace(" ", "") == a.gold) for a in found)


# -- the seal -----------------------------------------------------------------------------------

def log(folder, *kinds) -> RunFolder:
    found = RunFolder(folder)
    for kind in kinds:
        found.event(kind)
    return found


@pytest.mark.parametrize(("kinds", "opens"), [
    ((), False), (("opened",), False), (("opened", "learned"), False),
    (("opened", "finished"), True), (("opened", "stopped"), True),
    (("opened", "stopped", "opened"), False),              # goes on: it may still learn
    (("opened", "finished", "opened", "learned"), False),  # extended, and killed
    (("opened", "finished", "opened", "finished"), True),
])
def test_the_test_split_opens_only_when_every_run_has_ended(tmp_path, kinds, opens):
    (tmp_path / "test.jsonl").write_text("")
    sealed = Sealed(tmp_path / "test.jsonl", lambda path: [])
    runs = [log(tmp_path / "done", "opened", "finished"), log(tmp_path / "run", *kinds)]
    if opens:
        assert sealed.open(runs, []) == []
    else:
        with pytest.raises(SelfloopError, match=r"sealed until .*run has finished"):
            sealed.open(runs, [])


def test_a_picture_that_the_run_saw_is_a_leak(proven):
    made, _ = proven
    runs = [RunFolder(made.place("loop"))]
    questions = made.test.open(runs, made.pool)
    with pytest.raises(SelfloopError, match=rf"1 of 40 test questions.*{questions[3].id}"):
        made.test.open(runs, [*made.pool, questions[3].model_copy(update={"answer": None})])


def test_asking_before_the_runs_are_finished_is_refused(tmp_path):
    made = study(tmp_path, arms=("loop",))
    with pytest.raises(SelfloopError, match="sealed until"):
        proof.ask(made, "seed_accuracy")
    assert not (tmp_path / "answers").exists()


def test_the_commitment_is_of_the_files_bytes(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("a")
    first = Sealed(path, lambda p: []).commitment()
    path.write_text("b")
    assert Sealed(path, lambda p: []).commitment() != first


# -- what may be said ---------------------------------------------------------------------------

def gains(**low_high):
    return {arm: {"gain": sum(i) / 2, "interval": list(i)} for arm, i in low_high.items()}


FIGURES = {"seed_accuracy": 50.0, "final_accuracy": 60.0, "control_steps": 51.0,
           "testtime_vote": 58.0, "skyline": 90.0, "shuffled": 52.0}


@pytest.mark.parametrize(("found", "said", "unsaid"), [
    (gains(control_steps=(1, 5), testtime_vote=(1, 2), skyline=(-40, -20)),
     "self-improvement", "not"),
    (gains(control_steps=(1, 5), testtime_vote=(-1, 3)), "amortised inference", "self-improvement"),
    (gains(control_steps=(-1, 5), testtime_vote=(1, 3)),
     "does not beat control_steps", "amortised"),
    (gains(control_steps=(0, 5)), "does not beat control_steps", "self-improvement"),
    (gains(control_steps=(1, 5), testtime_vote=(-5, -1)),
     "amortised inference at most: below", "self-imp"),
])
def test_words(found, said, unsaid):
    words = proof.verdict(FIGURES, found)
    assert said in words and unsaid not in words


def test_a_label_free_method_has_no_arm_for_answers_it_never_read(tmp_path):
    made = study(tmp_path, "agreement")
    assert not made.reads_answers() and study(tmp_path).reads_answers()
