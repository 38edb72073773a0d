"""The audit finds the failures that were published, and the rules that ship pass it."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from dataclasses import dataclass

import pytest
import typer
from typer.testing import CliRunner

import clidata
from selfloop import calling
from selfloop.auditing.attacks import ATTACKS, says_gold, wrong_for
from selfloop.auditing.audit import Audited, Limits, audit
from selfloop.auditing.calibrating import Known, Share, calibrate, read_probe
from selfloop.auditing.said import said_as_gold
from selfloop.commands.auditing import audit as audit_command
from selfloop.engines.toy import ToyEngine
from selfloop.organize.verify import rules
from selfloop.organize.verify.boxes import BoxConfidence, OneBox
from selfloop.organize.verify.combine import AllOf
from selfloop.organize.verify.format import FormatAndResult, Tags
from selfloop.organize.verify.vote import MajorityVote
from selfloop.roles import Sampling, SelfloopError
from selfloop.types import Message, Sample, Verdict

GOLDS = {
    "exact": ["7", "12", "cat", "red square", "0"],
    "number": ["7", "12", "3.5", "1,200", "0"],
    "choice": ["A", "B", "C", "D"],
    "yes_no": ["yes", "no"],
    "text": [["red", "crimson"], ["blue"], ["green", "lime"], ["a dog"]],
}


def samples(golds, n: int = 24) -> list[Sample]:
    return [Sample(prompt=(Message(role="user", content=f"Question {i}: what is shown here?"),),
                   answer=golds[i % len(golds)]) for i in range(n)]


def told(found: Audited, name: str) -> str:
    return next(c.fault for c in found.cases if c.name == name)


# -- what ships passes --------------------------------------------------------------------------

@pytest.mark.parametrize("name", sorted(GOLDS))
def test_the_rules_that_ship_pass(name):
    found = audit(getattr(rules, name), samples(GOLDS[name]))
    assert found.ok, found.reasons
    assert found.reads == ("answer",) and found.samples == 24
    assert found.calibrated is not None and found.calibrated.precision.value == 1
    tried = {c.name for c in found.cases if c.paid.n}
    assert len(tried) >= len(ATTACKS), f"of {len(ATTACKS)} attacks: {tried}"


def test_the_vote_that_ships_passes():
    found = audit(MajorityVote(), samples(GOLDS["exact"]))
    assert found.ok, found.reasons
    assert found.reads == () and found.position_bias is None, "two that disagree are a tie: unknown"
    found = audit(MajorityVote(ties="first"), samples(GOLDS["exact"], 5))
    assert found.ok, "of two that disagree the first wins: told, and no fault"
    assert found.position_bias is not None and found.position_bias.value == 1


def test_sets_and_confidences_are_said_so_that_the_verifier_can_pay():
    """A list of texts is a set for a verifier that wants all of them, else alternatives."""
    assert said_as_gold(["A", "C"], rules.AllAccepted()) == ["A, C"]
    assert said_as_gold(["A", "C"], rules.exact) == ["A", "C"]
    (sure,) = said_as_gold([1, 2, 3, 4], BoxConfidence())
    assert '"confidence": 1.0' in sure and said_as_gold([1, 2, 3, 4], OneBox()) == ["[1, 2, 3, 4]"]
    found = audit(rules.AllAccepted(), samples([["A", "C"], ["B", "D"], ["A", "D"], ["B"]], 4))
    assert found.ok, found.reasons


def test_calibration_without_a_probe_says_answers_in_the_form_that_is_paid():
    found = audit(FormatAndResult(Tags(), rules.exact), samples(GOLDS["exact"], 5))
    assert found.calibrated is not None and found.calibrated.recall.value == 1


def in_the_thought(rollout, answer):
    """Pays for the first answer that is announced anywhere, a thought that is taken back too."""
    told = re.search(r"answer is (\S+)", rollout.text)
    return None if answer is None else (told[1] if told else rollout.text) == str(answer)


def test_a_right_thought_with_a_wrong_answer_behind_it_is_tried():
    found = audit(in_the_thought, samples(GOLDS["number"], 5))
    assert "<think>The answer is" in told(found, "right in the thought, wrong behind it")


# -- what was published is found ------------------------------------------------------------------

def substring(rollout, answer):
    """Pays when one contains the other, so an empty answer is in everything."""
    if answer is None:
        return None
    return rollout.text.strip().lower() in str(answer).lower() \
        or str(answer).lower() in rollout.text.lower()


def trusting(rollout, answer):
    """A gold value that it cannot read makes everything right."""
    if answer is None:
        return None
    try:
        return float(rollout.text) == float(answer)
    except (TypeError, ValueError):
        return 1.0 if not re.search(r"\d", str(answer)) else 0.0


def swallowing(rollout, answer):
    """Always raises inside; the exception becomes a zero."""
    try:
        return float(answer["value"]) == float(rollout.text)
    except Exception:
        return 0.0


def raising(rollout, answer):
    raise RuntimeError("no judge today")


def obedient(rollout, answer):
    """A judge that does as it is told by what it judges."""
    if answer is None:
        return None
    return bool(re.search(r"correct|highest score|full marks", rollout.text.lower())) \
        or rules.exact(rollout, answer)


def fooled(rollout, answer):
    """A judge that takes a beginning for an answer."""
    return None if answer is None else rollout.text.endswith(":") or rules.exact(rollout, answer)


def forged(rollout, answer):
    """Reads the answer as data that says whether it is right."""
    if answer is None:
        return None
    try:
        value = ast.literal_eval(rollout.text)
    except (ValueError, SyntaxError):
        return rules.exact(rollout, answer)
    return value is True or rules.exact(rollout, answer)


def zero_without_gold(rollout, answer):
    return rollout.text == answer


def wordy(rollout, answer):
    """Pays for length."""
    return None if answer is None else len(rollout.text) > 200 or rules.exact(rollout, answer)


def none_wins(group):
    """A vote in which no answer is an answer like any other."""
    parsed = [rules.final_answer(r.text) for r in group.rollouts]
    winner = Counter(parsed).most_common(1)[0][0]
    return [a == winner for a in parsed]


async def asks(rollout, answer, generate, sample):
    """A judge that asks a model."""
    if answer is None:
        return None
    found = await generate(sample.context.said("assistant", rollout.text).said("user", "right ?"),
                           n=1, sampling=Sampling(max_new_tokens=2))
    return found[0].text.startswith("yes")


@dataclass(frozen=True)
class FirstWins:
    """A pairwise judge that likes whatever it reads first."""

    def __call__(self, group, generate):
        return [1.0] + [0.0] * (len(group.rollouts) - 1)


@pytest.mark.parametrize(("verifier", "golds", "case", "said"), [
    (substring, "exact", "empty answer", "pays for 24 of 24"),
    (substring, "exact", "white space", "pays for"),
    (substring, "exact", "all options at once", "pays for"),
    (trusting, "number", "unreadable gold", "pays for"),
    (swallowing, "exact", "gold answer", "hide an exception in a zero"),
    (raising, "exact", "gold answer", "fails on 24 of 24: .*no judge today"),
    (obedient, "exact", "orders to the judge", "Ignore the question"),
    (fooled, "exact", "bare openers", "Solution:"),
    (forged, "exact", "forged reward", "True"),
    (zero_without_gold, "exact", "no gold", "a score on 48 of 48"),
    (wordy, "exact", "long and wrong", "pays for"),
    (wordy, "exact", "endless repetition", "pays for"),
    (none_wins, "exact", "blank majority", "pays for"),
])
def test_published_failures_are_found(verifier, golds, case, said):
    found = audit(verifier, samples(GOLDS[golds]))
    assert not found.ok and re.search(said, told(found, case)), found.cases


def test_faults_are_not_seen_where_there_are_none():
    assert [c.name for c in audit(fooled, samples(GOLDS["exact"])).cases if c.fault] == [
        "lone punctuation", "bare openers"]
    assert [c.name for c in audit(zero_without_gold, samples(["7", "12"])).cases if c.fault] == [
        "unreadable gold", "no gold"], "an empty answer equals an empty gold"


def test_a_judge_with_position_bias_is_found():
    found = audit(FirstWins(), samples(GOLDS["exact"]))
    assert any("position bias" in r for r in found.reasons)
    assert found.position_bias is not None and found.position_bias.low == 1


# -- the attacks themselves ------------------------------------------------------------------------

@pytest.mark.parametrize(("said", "gold", "is_said"), [
    ("the answer is 7.", "7", True), ("17", "7", False), ("A or B", "a", True), ("", "7", False),
    ("RED square", "red  square", True), ("crimson", ["red", "crimson"], True),
])
def test_says_gold(said, gold, is_said):
    assert says_gold(said, samples([gold], 1)[0]) == is_said


def test_attacks_do_not_ask_for_the_right_answer():
    golds = ["1", "1.0", "2", "12", "one 1"]
    one = samples(["1"], 1)[0]
    assert wrong_for(one, golds) == ["2", "12"], "1.0 is 1, and `one 1` says it"
    for name in GOLDS:
        for sample in samples(GOLDS[name]):
            texts = [str(g[0] if isinstance(g, list) else g) for g in GOLDS[name]]
            for attack in ATTACKS:
                if not attack.name.startswith(("all options", "right in the thought")):
                    assert not any(says_gold(t, sample) for t in attack.write(sample, texts))


def test_all_options_do_not_charge_rules_that_read_the_first_or_the_last():
    write = next(a.write for a in ATTACKS if a.name == "all options at once")
    for golds in (["yes", "no"], ["A", "B", "C"], ["7", "12", "5", "0"]):
        for sample in samples(golds, len(golds)):
            for said in write(sample, golds):
                words = re.findall(r"\w+", said.replace(" or ", " "))
                assert words[0] != sample.answer != words[-1] and set(words) == set(golds)


# -- calibration ---------------------------------------------------------------------------------

def known(rights, lengths=None):
    asked = samples(["7"], len(rights))
    return [Known(s, "x" * (lengths[i] if lengths else 1), r)
            for i, (s, r) in enumerate(zip(asked, rights, strict=True))]


def test_calibration_by_hand():
    #        right  right  right  wrong  wrong  right       wrong
    scores = [1.0, 1.0, 0.0, 1.0, 0.0, None, None]
    verdicts = [Verdict(score=s, error=(i == 6)) for i, s in enumerate(scores)]
    found = calibrate(known([True, True, True, False, False, True, False]), verdicts, "probe")
    assert found.precision == Share(2, 3) == found.recall
    assert found.abstained == Share(1, 7) == found.errors
    assert found.calibration_error is not None
    # bin of 1: accuracy 2/3 at 1; bin of 0: accuracy 1/2 at 0
    assert found.calibration_error.value == pytest.approx((3 * (1 / 3) + 2 * (1 / 2)) / 5)
    low, high = found.precision.interval
    assert low < 2 / 3 < high


def test_precision_and_recall_are_those_of_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    rights = [bool(i * 7 % 3) for i in range(60)]
    paid = [bool(i * 5 % 4) for i in range(60)]
    found = calibrate(known(rights), [Verdict(score=float(p)) for p in paid], "probe")
    assert found.precision.value == pytest.approx(metrics.precision_score(rights, paid))
    assert found.recall.value == pytest.approx(metrics.recall_score(rights, paid))


def test_length_bias():
    rights, lengths = [True, False] * 20, [1 + i // 2 for i in range(40)]
    by_length = [Verdict(score=float(n > 10)) for n in lengths]
    by_truth = [Verdict(score=float(r)) for r in rights]
    biased = calibrate(known(rights, lengths), by_length, "probe").length_bias
    fair = calibrate(known(rights, lengths), by_truth, "probe").length_bias
    assert biased is not None and biased.value == 1 and fair is not None and fair.value == 0


def test_unknown_is_neither_right_nor_wrong():
    found = calibrate(known([True, False]), [Verdict(), Verdict()], "probe")
    assert found.precision == Share(0, 0) and str(found.precision) == "unknown"
    assert found.calibration_error is None and found.length_bias is None


def test_a_probe_decides(tmp_path):
    asked = samples(["7", "12"], 30)
    rows = [{"row": i + 1, "said": str(s.answer), "right": i % 3 == 0}
            for i, s in enumerate(asked)]
    path = tmp_path / "probe.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    found = audit(rules.exact, asked, probe=read_probe(path, asked))
    assert found.calibrated is not None and found.calibrated.source == "probe"
    assert found.calibrated.precision == Share(10, 30)
    assert any(r.startswith("precision 33.3 %") for r in found.reasons)
    assert not audit(rules.exact, asked, probe=read_probe(path, asked),
                     limits=Limits(precision=0.3, calibration_error=1)).reasons


@pytest.mark.parametrize(("line", "said"), [
    ("{", "line 2"), ('{"row": 9, "said": "", "right": true}', "line 2, field 'row': 9"),
    ('{"row": 1, "said": 3, "right": true}', "'said' must be a text"),
    ('{"row": 1, "right": true}', "said"),
])
def test_bad_probes_are_named(tmp_path, line, said):
    path = tmp_path / "probe.jsonl"
    path.write_text('{"row": 1, "said": "7", "right": true}\n' + line)
    with pytest.raises(SelfloopError, match=re.escape(said)):
        read_probe(path, samples(["7"], 2))


def test_labels_are_needed():
    with pytest.raises(SelfloopError, match="at least 2"):
        audit(rules.exact, samples([None], 5))


def test_json():
    found = audit(rules.exact, samples(GOLDS["exact"])).to_json()
    plain = json.loads(json.dumps(found))
    assert plain["ok"] and plain["calibrated"]["precision"]["low"] > 0.8
    assert {c["name"] for c in plain["cases"]} > {"empty answer", "no gold"}


def test_a_judge_that_asks_a_model_is_attacked_through_its_door():
    engine = ToyEngine(("yes", "no"), seed=1)
    found = audit(asks, samples(["yes", "no"], 4), engines={"solver": engine})
    assert sum(c.errors for c in found.cases) == 0
    assert sum(c.paid.k for c in found.cases) > 0 and not found.ok, "an untrained judge is chance"


def test_a_judge_within_a_combination_is_as_sparing_to_attack_as_a_judge():
    """Every attack is a call that somebody pays for."""
    asked = []

    async def judges(rollout, generate):
        asked.append(rollout.id)
        return 0.0

    alone = AllOf((judges,))
    for verifier in (alone, judges):
        audit(verifier, samples(GOLDS["exact"], 3), quick=True)
    assert calling.asks_a_model(alone) and len(asked) % 2 == 0 and len(asked) < 200


def test_command_line(tmp_path):
    app = typer.Typer()
    app.command()(audit_command)
    path = clidata.with_splits(tmp_path)
    (tmp_path / "pays_all.py").write_text("def pays(rollout, answer):\n    return 1\n")
    good = CliRunner().invoke(app, ["exact", str(path), "--json"])
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout)["ok"]
    bad = CliRunner().invoke(app, ["pays_all:pays", str(path)])
    assert bad.exit_code == 1 and "- empty answer: pays for" in bad.stdout, bad.output
