"""Budgets for what a verifier cannot say, and the audit that stands before the first draw."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

import clidata
import toyland
from selfloop.auditing import admitting
from selfloop.auditing.setting import AuditConfig
from selfloop.cli import main
from selfloop.collect.independent import Independent
from selfloop.config import load_config
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Learn, Loop
from selfloop.methods import build_loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.judging import Unknown, excess
from selfloop.organize.signals import Demonstrate
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.vote import MajorityVote
from selfloop.pictures import Library
from selfloop.report.facts import gather
from selfloop.report.page import render
from selfloop.roles import Optim, SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Group, Verdict


def unsure(rollout, answer):
    """Cannot read the gold value, ever."""
    return Verdict(rationale=f"gold {answer!r} is no number")


def seldom(rollout, answer):
    """Tells only where the answer starts with yes."""
    return rollout.text.split()[:1] == [answer] if rollout.text.startswith("yes") else None


def shy(group):
    """Reads no label and leaves everything open, but notes something for organizers."""
    return group.model_copy(update={"annotations": {"seen": 1.0},
                                    "verdicts": (Verdict(),) * len(group.rollouts)})


def pays(rollout, answer):
    return 1.0


def contained(rollout, answer):
    return None if answer is None else rollout.text.strip() in str(answer)


async def asks(rollout, answer, generate, sample):
    """Asks a model, and does as it is told by what it judges."""
    await generate(sample.context.said("assistant", rollout.text), n=1)
    return None if answer is None else "highest score" in rollout.text.lower()


def loop_with(verifier, **options) -> Loop:
    return Loop(name="unknown", sampler=Independent(n=4, max_new_tokens=3), verifier=verifier,
                shard=3, iterations=1, gate=None, learn={"solver": Learn(
                    organizer=Chain(maker=Demonstrate()), loss=SFT(),
                    optim=Optim(lr=0.1, updates=2))}, **options)


def go(loop, tmp_path):
    return run(loop, toyland.samples(tmp_path / "data", 6), ToyEngine(("yes", "no"), seed=1),
               tmp_path / "run")


def verdicts(tmp_path):
    return [v for g in RunFolder(tmp_path / "run").groups(0) for v in g.verdicts]


# -- budgets ------------------------------------------------------------------------------------

def counted(scores: list, errors: int = 0) -> Unknown:
    sample = toyland.Sample(prompt=(toyland.Message(content="?"),))
    found = [Verdict(score=s, rationale="r") for s in scores] + [
        Verdict(error=True, rationale="broken")] * errors
    return Unknown.of([Group.model_construct(sample=sample, rollouts=(), verdicts=tuple(found))])


@pytest.mark.parametrize(("scores", "errors", "verifier", "max_errors", "max_unjudged", "said"), [
    ([1, 0, None], 0, exact, 0.05, None, ""),
    ([None] * 99 + [1], 0, exact, 0.05, None, ""),              # 0.99 is not more than 0.99
    ([None] * 10, 0, exact, 0.05, None, "could not tell on 10 of 10 rollouts"),
    ([None] * 10, 0, MajorityVote(), 0.05, None, ""),           # it reads no label
    ([None] * 10, 0, MajorityVote(), 0.05, 0.5, "max_unjudged=0.5"),
    ([None] * 5 + [1] * 5, 0, exact, 0.05, 0.5, ""),
    ([None] * 6 + [1] * 4, 0, exact, 0.05, 0.5, "could not tell on 6 of 10"),
    ([None] * 10, 0, exact, 0.05, 1.0, ""),
    ([1] * 19, 1, exact, 0.05, None, ""),
    ([1] * 18, 2, exact, 0.05, None, "failed on 2 of 20 rollouts (more than max_errors=0.05)"),
    ([None] * 10, 10, exact, 1.0, 0.5, ""),                     # errors are no abstentions
    ([], 0, exact, 0.0, 0.0, ""),
    ([None], 0, None, 0.0, 0.0, ""),
])
def test_which_budget_is_exceeded(scores, errors, verifier, max_errors, max_unjudged, said):
    told = excess(counted(scores, errors), verifier, max_errors, max_unjudged)
    assert (said in told) and bool(told) == bool(said), told


def test_counts_add_up_and_keep_the_first_example():
    both = counted([None, 1], 0) + counted([None], 2)
    assert (both.rollouts, both.errors, both.abstained) == (5, 2, 2)
    assert both.first_error == "broken" and both.first_abstained.endswith(": r")


def test_a_verifier_that_cannot_tell_stops_the_run_and_nothing_is_lost(tmp_path):
    with pytest.raises(SelfloopError) as caught:
        go(loop_with(unsure), tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for what in ("test_unknown:unsure", "could not tell on 24 of 24 rollouts", "max_unjudged=0.99",
                 "is no number", "on sample ", "leave out samples", "run again",
                 str(tmp_path / "run")):
        assert what in message, (what, message)
    folder = RunFolder(tmp_path / "run")
    assert len(list(folder.step(0).glob("rollouts-*.parquet"))) == 2 and not folder.manifest(0)
    assert folder.events()[-1]["event"] == "stopped" and folder.events()[-1]["resumable"]


def test_after_the_mend_the_stored_answers_are_judged(tmp_path):
    with pytest.raises(SelfloopError, match="could not tell"):
        go(loop_with(unsure), tmp_path)
    drawn = {p.name: p.read_bytes() for p in (tmp_path / "run/steps/000000").glob("rollouts-*")}
    assert len(go(loop_with(exact), tmp_path)) == 1
    assert drawn == {p.name: p.read_bytes()
                     for p in (tmp_path / "run/steps/000000").glob("rollouts-*")}
    assert all(v.score is not None for v in verdicts(tmp_path))


def test_a_higher_budget_goes_on_with_the_same_verdicts(tmp_path):
    with pytest.raises(SelfloopError, match=r"max_unjudged=0\.1"):
        go(loop_with(seldom, max_unjudged=0.1), tmp_path)
    stored = {p.name: p.read_bytes() for p in (tmp_path / "run/steps/000000").glob("verdicts-*")}
    assert len(go(loop_with(seldom, max_unjudged=0.99), tmp_path)) == 1
    assert stored == {p.name: p.read_bytes()
                      for p in (tmp_path / "run/steps/000000").glob("verdicts-*")}
    counts = RunFolder(tmp_path / "run").manifest(0)["counts"]
    assert 0 < counts["unjudged"] < 24 and counts["errors"] == 0


def test_annotators_that_read_no_label_may_leave_all_open(tmp_path):
    assert len(go(loop_with(shy), tmp_path)) == 1
    assert all(v.score is None and not v.error for v in verdicts(tmp_path))


def test_the_budgets_are_no_part_of_what_is_computed():
    base = loop_with(exact)
    assert replace(base, max_unjudged=0.5).fingerprint() == base.fingerprint()


def written(tmp_path, **more):
    """A run.yaml with splits, and what a test adds to it."""
    path = clidata.with_splits(tmp_path)
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, **more}))
    return path


def test_budgets_in_run_yaml(tmp_path):
    path = written(tmp_path, method="star", max_errors=0.2, max_unjudged=0.3)
    loop = build_loop(load_config(path))
    assert loop.max_errors == 0.2 and loop.max_unjudged == 0.3
    plain = build_loop(load_config(path, ["max_errors=null", "max_unjudged=null"]))
    assert plain.max_errors == 0.05 and plain.max_unjudged is None
    with pytest.raises(SelfloopError, match=r"max_unjudged.*less than or equal to 1"):
        load_config(path, ["max_unjudged=3"])


# -- the audit before the first draw -------------------------------------------------------------

def admit(verifier, tmp_path, setting=None, engines=None):
    return admitting.admit(loop_with(verifier), toyland.samples(tmp_path / "data", 12),
                           engines or {}, RunFolder(tmp_path / "run"), setting)


def test_a_rule_is_admitted_and_what_was_found_is_stored(tmp_path):
    found = admit(exact, tmp_path)
    stored = json.loads((tmp_path / "run/audit.json").read_text())
    assert stored == json.loads(json.dumps(found)) and found["status"] == "passed"
    assert len(found["found"]["cases"]) > 12 and not found["faults"]
    assert admit(MajorityVote(), tmp_path)["status"] == "passed"


def test_a_failing_verifier_is_refused_in_one_line(tmp_path):
    with pytest.raises(SelfloopError) as caught:
        admit(contained, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for what in ("test_unknown:contained fails the audit", "empty answer: pays for 12 of 12",
                 'such as ""', "selfloop audit test_unknown:contained", "audit: {allow: ["):
        assert what in message, (what, message)
    assert json.loads((tmp_path / "run/audit.json").read_text())["status"] == "failed"


def test_faults_are_accepted_by_name(tmp_path):
    for name in ("contained", "test_unknown:contained"):
        found = admit(contained, tmp_path, AuditConfig(allow=(name,)))
        assert found["status"] == "allowed" and "empty answer" in found["allowed"]
    with pytest.raises(SelfloopError, match="white space"):
        admit(contained, tmp_path, AuditConfig(allow=("empty answer",)))
    faults = tuple(f["attack"] for f in found["faults"])
    assert admit(contained, tmp_path, AuditConfig(allow=faults))["status"] == "allowed"
    with pytest.raises(SelfloopError, match="did you mean 'empty answer'"):
        admit(contained, tmp_path, AuditConfig(allow=("emty answer",)))
    assert admit(pays, tmp_path, "off")["status"] == "off"


def test_it_is_tried_again_only_when_something_has_changed(tmp_path, monkeypatch):
    tried = []
    real = admitting.audit
    monkeypatch.setattr(admitting, "audit", lambda *a, **k: tried.append(a[0]) or real(*a, **k))
    first = json.loads(json.dumps(admit(exact, tmp_path)))
    assert json.loads(json.dumps(admit(exact, tmp_path))) == first and len(tried) == 1
    admit(MajorityVote(), tmp_path)
    admit(MajorityVote(share=0.6), tmp_path)
    assert len(tried) == 3
    for _ in range(2):
        with pytest.raises(SelfloopError, match="fails the audit"):
            admit(pays, tmp_path)
    assert len(tried) == 4, "a stored refusal is a refusal"


def strict(rollout, answer):
    """Wants the work shown, so a bare gold answer is not enough."""
    return None if answer is None else rollout.text == f"I looked: {answer}"


def equal(rollout, answer):
    """Gives a zero where nobody knows."""
    return bool(rollout.text.strip()) and rollout.text.strip() == str(answer).strip() != "nan"


def partly(rollout, answer):
    """Pays for one of two gold answers."""
    return None if answer is None else rollout.text == str(answer) == "yes"


def test_what_pays_too_little_is_doubted_and_what_pays_no_gold_is_refused(tmp_path):
    with pytest.raises(SelfloopError, match="gold answer: pays for 0 of 12 gold answers"):
        admit(strict, tmp_path)
    assert admit(strict, tmp_path, AuditConfig(allow=("gold answer",)))["status"] == "allowed"
    found = admit(partly, tmp_path)
    assert found["status"] == "passed" and [d["attack"] for d in found["doubts"]] == ["gold answer"]
    assert "pays for 8 of 12 gold answers" in found["doubts"][0]["fault"]
    assert {d["attack"] for d in admit(equal, tmp_path)["doubts"]} == {"no gold"}
    go(loop_with(exact), tmp_path)
    assert "Doubt: no gold: a score on" in render(gather(tmp_path / "run"))


def test_what_cannot_be_attacked_is_not_called_passed(tmp_path):
    assert admit(shy, tmp_path)["status"] == "not audited"
    assert "no score to text alone" in admit(shy, tmp_path)["why"]
    bare = [s.unlabelled() for s in toyland.samples(tmp_path / "data", 6)]
    found = admitting.admit(loop_with(exact), bare, {}, RunFolder(tmp_path / "bare"))
    assert found["status"] == "not audited" and "fewer than 2 labelled" in found["why"]


def test_a_verifier_that_asks_a_model_is_attacked_on_few_samples(tmp_path):
    engine = ToyEngine(("yes", "no"), seed=1)
    failed = admit(asks, tmp_path, engines={"solver": engine})
    assert failed["status"] == "not audited" and "fails on" in failed["doubts"][0]["fault"], \
        "it cannot open the pictures, which is unknown and not passed"
    (tmp_path / "run/audit.json").unlink()
    engine.bind(Library().open)
    with pytest.raises(SelfloopError, match=r"orders to the judge: pays for .*Ignore the question"):
        admit(asks, tmp_path, engines={"solver": engine})
    found = json.loads((tmp_path / "run/audit.json").read_text())["found"]
    assert found["samples"] == admitting.ASKED


def test_selfloop_run_refuses_before_the_first_draw(tmp_path, monkeypatch):
    path = written(tmp_path, method="star", verifier="pays_all:pays", iterations=1)
    (tmp_path / "pays_all.py").write_text("def pays(rollout, answer):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(main, ["run", str(path), "--name", "one"])
    said = " ".join(refused.output.split())
    assert refused.exit_code != 0 and "pays_all:pays fails the audit" in said, said
    assert not (tmp_path / "runs/one/steps").exists(), "nothing was drawn"
    assert json.loads((tmp_path / "runs/one/audit.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(("setting", "status", "shown"), [
    ("{}", "passed", "paid for nothing that deserves nothing"),
    ("off", "off", "The audit was switched off"),
    ("{allow: [exact]}", "passed", "paid for nothing"),
])
def test_the_report_shows_the_audit(tmp_path, setting, status, shown):
    config = load_config(written(tmp_path, method="star"), [f"audit={setting}"])
    again = load_config(_saved(tmp_path, config.as_yaml()))
    assert again.audit == config.audit, "what the run folder keeps means the same"
    done = tmp_path / "run"
    go(loop_with(exact), tmp_path)
    admitting.admit(loop_with(exact), toyland.samples(tmp_path / "data", 12), {}, RunFolder(done),
                    config.audit)
    assert json.loads((done / "audit.json").read_text())["status"] == status
    page = render(gather(done))
    assert shown in page and ("empty answer" in page) == (status == "passed")


def _saved(tmp_path, text):
    path = tmp_path / "kept.yaml"
    path.write_text(text)
    return path


def test_the_report_shows_what_was_accepted_and_what_is_missing(tmp_path):
    go(loop_with(contained), tmp_path)
    assert "No audit is stored" in render(gather(tmp_path / "run"))
    admit(contained, tmp_path, AuditConfig(allow=("contained",)))
    page = render(gather(tmp_path / "run"))
    assert "was accepted by name" in page and "(accepted)" in page


def test_unknown_keys_of_audit_are_named(tmp_path):
    with pytest.raises(SelfloopError, match=r"unknown key 'audit\.alow'; did you mean 'allow'"):
        load_config(written(tmp_path, audit={"alow": ["exact"]}))
