"""A miniature proof on the digits testbed: every arm, every field, and a sealed test split."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from selfloop import demo, proof
from selfloop.evaluate.answers import accuracy
from selfloop.evaluate.arms import shuffled, spent
from selfloop.evaluate.sealed import Sealed
from selfloop.evaluate.statistics import paired_gain
from selfloop.organize.refine.shuffle import ShuffleVerdicts
from selfloop.roles import SelfloopError
from selfloop.store import RunFolder

SCALE = demo.Scale(pool=40, dev=30, test=40)
FIELDS = {
    "method", "seed", "labels_full", "labels_answer_only", "heldout_n", "seed_accuracy",
    "final_accuracy", "control_steps", "testtime_vote", "no_image", "gain_over_control", "interval",
    "tokens", "seconds", "control_flops", "shuffled", "supervised_on_answers", "skyline",
}
"""Of demo's and of proof's summary.json, as the issue names them."""


def study(folder, method="star", arms=proof.TRAINED) -> proof.Study:
    """A study whose loop takes two iterations of three updates."""
    made = demo.study(method, 0, folder, scale=SCALE, arms=arms)
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
