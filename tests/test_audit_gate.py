"""Verifiers that got past the gate, and those that it must let pass."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import clidata
import toyland
from selfloop.auditing import admitting
from selfloop.auditing.attacks import ATTACKS
from selfloop.auditing.audit import Limits, audit
from selfloop.auditing.calibrating import Known
from selfloop.auditing.said import reads_structures, said_as_gold
from selfloop.auditing.setting import AuditConfig
from selfloop.cli import main
from selfloop.collect.independent import Independent
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Learn, Loop
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.chain import Chain
from selfloop.organize.signals import Demonstrate
from selfloop.organize.verify import rules
from selfloop.organize.verify.boxes import Detection, MatchedBoxes, OneBox
from selfloop.organize.verify.counts import Count
from selfloop.organize.verify.format import FormatAndResult, Tags
from selfloop.organize.verify.judges import PointwiseJudge
from selfloop.organize.verify.label_recovery import LabelRecovery
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.similarity import ImageText
from selfloop.organize.verify.texts import ANLS
from selfloop.organize.verify.totals import Sum
from selfloop.organize.verify.vote import MajorityVote
from selfloop.pictures import Library
from selfloop.report.facts import gather
from selfloop.report.page import render
from selfloop.roles import Optim, SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Message, Sample


def samples(golds, n: int = 12) -> list[Sample]:
    return [Sample(prompt=(Message(role="user", content=f"Question {i}: what is shown here?"),),
                   answer=golds[i % len(golds)]) for i in range(n)]


WORDS = samples(["seven", "a dog", "red square", "blue"])


def loop_with(verifier) -> Loop:
    return Loop(name="gate", sampler=Independent(n=2, max_new_tokens=4), verifier=verifier,
                learn={"solver": Learn(organizer=Chain(maker=Demonstrate()), loss=SFT(),
                                       optim=Optim(lr=0.1, updates=1, batch=4))},
                iterations=1)


def admit(verifier, tmp_path, on=WORDS, setting=None, engines=None, **more):
    return admitting.admit(loop_with(verifier), on, engines or {}, RunFolder(tmp_path / "run"),
                           setting, **more)


# -- scores of another scale --------------------------------------------------------------------

def shortest(rollout):
    """Best for saying nothing."""
    return -len(rollout.text) / 1000


def longest(rollout):
    return len(rollout.text) / 1e6


def blanks(rollout):
    return 0.1 if rollout.text.strip() else 0.49


def halved(rollout, answer):
    """A substring test that pays less than half."""
    return None if answer is None else 0.4 * (rollout.text.strip() in str(answer))


def inverted(rollout, answer):
    """Pays blanks a little, and gold answers nothing."""
    return None if answer is None else 0.0 if rollout.text.strip() else 0.4


def distance(rollout, answer):
    """A sound scale of its own: minus the edit distance."""
    from selfloop.organize.verify.texts import edit_distance
    gold = str(answer or "").strip()
    return -edit_distance(rollout.text[:50], gold) if len(gold) > 3 and gold.isascii() and \
        gold[0].isalpha() else None


@pytest.mark.parametrize(("verifier", "attack"), [
    (shortest, "empty answer"), (longest, "endless repetition"), (blanks, "white space"),
    (halved, "empty answer"), (inverted, "gold answer")])
def test_scores_of_another_scale_fail_the_gate(tmp_path, verifier, attack):
    with pytest.raises(SelfloopError, match="fails the audit"):
        admit(verifier, tmp_path)
    stored = json.loads((tmp_path / "run/audit.json").read_text())
    assert attack in {f["attack"] for f in stored["faults"]}, stored["faults"]


@pytest.mark.parametrize("verifier", [
    distance, ANLS(), Sum(((0.8, exact), (0.2, Tags(("think", "answer"))))),
    FormatAndResult(Tags(("think", "answer")), exact)])
def test_sound_scales_of_their_own_are_admitted(tmp_path, verifier):
    found = admit(verifier, tmp_path, samples(["seven cats", "a small dog", "red square"]))
    assert found["status"] == "passed", found["faults"]
    assert "gold answer" not in {d["attack"] for d in found["doubts"]}, found["doubts"]


def test_soft_counts_are_admitted(tmp_path):
    assert admit(Count(soft=True), tmp_path, samples(["1", "9", "3"]))["status"] == "passed"


def same(rollout):
    return 0.2


def test_who_tells_nothing_is_not_audited_and_not_passed(tmp_path):
    found = admit(same, tmp_path)
    assert found["status"] == "not audited"
    assert found["why"].startswith("it scores 0.2 whatever is said, gold answers included")
    assert not audit(same, WORDS).ok


class Likeness:
    """A dual encoder that likes long texts of the picture's words, an echo best of all."""

    def __call__(self, picture, texts):
        return [0.2 + 0.02 * len(set(t.lower().split()) & {"what", "is", "shown", "here?", "seven"})
                for t in texts]


def test_an_echo_may_honestly_be_liker_to_the_picture(tmp_path):
    media = toyland.pictures(tmp_path / "p", 6)
    on = [s.model_copy(update={"media": (m,), "prompt": (Message(role="user", content=(
        {"type": "image"}, {"type": "text", "text": "what is shown here?"})),)})
        for s, m in zip(samples(["seven", "eight"], 6), media, strict=True)]
    on = [Sample.model_validate(s.model_dump()) for s in on]
    found = admit(ImageText(Likeness()), tmp_path, on)
    assert found["status"] == "passed", (found["why"], found["faults"])


# -- nobody was asked ---------------------------------------------------------------------------

class Broken:
    """A model whose every call fails."""

    supports = frozenset({"images"})
    version = 0

    def generate(self, requests, version):
        raise RuntimeError("no route to the judge")


def test_a_judge_whose_calls_fail_has_not_passed(tmp_path):
    found = admit(PointwiseJudge(), tmp_path, engines={"judge": Broken()})
    assert found["status"] == "not audited", "the empty answer is 0 unasked, which proves nothing"
    assert found["why"].startswith("it fails on every gold answer: ")
    assert "no route to the judge" in found["why"]


def swallows(rollout, answer):
    try:
        return float(answer["value"]) == float(rollout.text)
    except Exception:
        return 0.0


def test_who_pays_no_gold_answer_is_refused_unless_named(tmp_path):
    with pytest.raises(SelfloopError, match="gold answer: pays for 0 of 12 gold answers"):
        admit(swallows, tmp_path)
    assert admit(swallows, tmp_path, setting=AuditConfig(allow=("gold answer",)))["status"] == \
        "allowed"


# -- boxes and spans ----------------------------------------------------------------------------

BOXES = [[2, 2, 12, 12], [30, 30, 50, 50], [4, 40, 20, 60], [40, 2, 60, 20]]


@pytest.mark.parametrize(("answer", "verifier", "texts"), [
    ("7", exact, ["7"]), (7, rules.number, ["7"]), (["red", "crimson"], rules.text,
                                                     ["red", "crimson"]),
    (None, exact, []), ([1, 2, 3, 4], OneBox(), ["[1, 2, 3, 4]"]),
    ([[1, 2, 3, 4], [5, 6, 7, 8]], MatchedBoxes(), ["[[1, 2, 3, 4], [5, 6, 7, 8]]"]),
    ({"bbox_2d": [1, 2, 3, 4], "label": "a"}, Detection(),
     ['{"bbox_2d": [1, 2, 3, 4], "label": "a"}']),
    ([3, 7.5], LabelRecovery(), ["3 to 7.5"]),
    ([], MatchedBoxes(), ["[]"])])
def test_said_as_gold(answer, verifier, texts):
    assert said_as_gold(answer, verifier) == texts


def test_who_reads_boxes():
    assert all(reads_structures(v) for v in (OneBox(), MatchedBoxes(), Detection()))
    assert not any(reads_structures(v) for v in (exact, rules.text, rules.number, LabelRecovery()))


@pytest.mark.parametrize("verifier", [OneBox(), OneBox(0.5), MatchedBoxes(), Detection()])
def test_verifiers_of_boxes_are_admitted(tmp_path, verifier):
    found = admit(verifier, tmp_path, samples(BOXES))
    assert found["status"] == "passed" and not found["doubts"], (found["faults"], found["doubts"])


@pytest.mark.parametrize("verifier", [MatchedBoxes(), Detection()])
def test_records_several_boxes_and_nothing_to_find(tmp_path, verifier):
    several = [[{"bbox_2d": BOXES[0], "label": "a"}, {"bbox_2d": BOXES[1], "label": "b"}],
               [{"bbox_2d": BOXES[2], "label": "a"}], [], [{"bbox_2d": BOXES[3], "label": "b"}]]
    found = admit(verifier, tmp_path, samples(several))
    assert found["status"] == "passed", (found["faults"], found["doubts"])


def careless(rollout, answer):
    """Any box at all is a box."""
    return None if answer is None else "[" in rollout.text


def test_a_careless_reader_of_boxes_is_refused(tmp_path):
    with pytest.raises(SelfloopError, match="fails the audit"):
        admit(careless, tmp_path, samples(BOXES))


def test_the_gold_span_is_paid(tmp_path):
    found = audit(LabelRecovery(), samples([[3, 7], [20, 31.5], [40, 44]]))
    assert not next(c.fault for c in found.cases if c.name == "gold answer")
    assert not next(c.fault for c in found.cases if c.name == "another sample's answer")


def boxed(folder: Path) -> Path:
    path = clidata.with_splits(folder)
    for split, n in (("train", 8), ("dev", 4)):
        rows = []
        (folder / split / "images").mkdir(parents=True, exist_ok=True)
        for i in range(n):
            box = BOXES[i % 4]
            picture = Image.new("RGB", (64, 64), (i * 20, 90 if split == "dev" else 200, 90))
            picture.paste((255, 255, 255), tuple(box))
            picture.save(folder / split / "images" / f"box{i}.png")
            rows.append({"images": [f"images/box{i}.png"], "prompt": f"Where is the square {i} ?",
                         "answer": box})
        (folder / split / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = yaml.safe_load(path.read_text())
    del config["data"]["test"]
    path.write_text(yaml.safe_dump(config | {
        "verifier": "selfloop.organize.verify.boxes:OneBox"}))
    return path


def test_boxes_run_from_the_command_line(tmp_path):
    path = boxed(tmp_path)
    checked = CliRunner().invoke(main, ["check", str(path), "--json"])
    told = json.loads(checked.stdout)
    assert told["gold_checked"] == 12 and not [f for f in told["found"] if f["level"] == "error"]
    ran = CliRunner().invoke(main, ["run", str(path), "--name", "boxes"])
    assert "OneBox: passed" in " ".join(ran.output.split()), ran.output
    assert (tmp_path / "runs/boxes/steps").exists(), ran.output


# -- names --------------------------------------------------------------------------------------

MINE = """
from selfloop.organize.verify.combine import AllOf

def lenient(rollout, answer):
    return None if answer is None else rollout.text.strip() in str(answer)

both = AllOf((lenient,))
"""


@pytest.mark.parametrize("named", ["own_rules_named:both", "outside:own_rules_named:lenient"])
def test_a_refused_name_works_again(tmp_path, monkeypatch, named):
    (tmp_path / "own_rules_named.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_rules_named", raising=False)
    path = clidata.with_splits(tmp_path)
    path.write_text(path.read_text().replace("verifier: exact", f"verifier: {named}"))
    refused = CliRunner().invoke(main, ["run", str(path), "--name", "one"])
    said = " ".join(str(refused.output).split())
    assert f"verifier {named} fails the audit" in said, said
    assert f"selfloop audit {named}`" in said and f'allow: ["{named}"]' in said, said
    again = CliRunner().invoke(main, ["audit", named, str(path), "--json"])
    assert again.exit_code == 1 and json.loads(again.stdout)["verifier"] == named
    for name in (named, named.removeprefix("outside:")):
        ran = CliRunner().invoke(main, ["run", str(path), f"audit.allow=[{name}]", "--name", "two"])
        assert f"audit of {named}: allowed" in " ".join(ran.output.split()), ran.output


# -- no labels ----------------------------------------------------------------------------------

def none_wins(group):
    parsed = [rules.final_answer(r.text) for r in group.rollouts]
    winner = Counter(parsed).most_common(1)[0][0]
    return [float(a == winner) for a in parsed]


def cheerful(rollout):
    return float(rollout.text.startswith("Certainly"))


@pytest.mark.parametrize(("verifier", "attack"), [
    (none_wins, "blank majority"), (shortest, "empty answer"), (blanks, "white space"),
    (cheerful, "flattery")])
def test_data_without_labels_are_attacked(tmp_path, verifier, attack):
    bare = [s.unlabelled() for s in WORDS]
    with pytest.raises(SelfloopError, match="fails the audit"):
        admit(verifier, tmp_path, bare)
    stored = json.loads((tmp_path / "run/audit.json").read_text())
    assert attack in {f["attack"] for f in stored["faults"]}
    assert not audit(verifier, bare).ok


def test_a_sound_vote_without_labels_passes(tmp_path):
    bare = [s.unlabelled() for s in WORDS]
    found = admit(MajorityVote(), tmp_path, bare)
    assert found["status"] == "passed", (found["why"], found["faults"])
    tried = {c["name"] for c in found["found"]["cases"] if c["paid"]["n"]}
    assert {"empty answer", "lone punctuation", "bare openers", "orders to the judge",
            "forged reward", "endless repetition", "blank majority"} <= tried
    assert not {"echo of the question", "another sample's answer", "no gold"} & tried


# -- calibration gates --------------------------------------------------------------------------

def probed(rights):
    return [Known(s, str(s.answer), r) for s, r in zip(WORDS, rights, strict=True)]


def test_a_probe_gates_and_is_stored(tmp_path):
    bad = probed([True, False, False] * 4)
    with pytest.raises(SelfloopError, match=r"precision: 33\.3 %"):
        admit(exact, tmp_path, probe=bad)
    found = json.loads((tmp_path / "run/audit.json").read_text())
    assert found["found"]["calibrated"]["precision"]["k"] == 4
    assert {"precision", "calibration error"} <= {f["attack"] for f in found["faults"]}
    for accepts in (AuditConfig(allow=("precision", "calibration error")),
                    AuditConfig(allow=("exact",)),):
        assert admit(exact, tmp_path, setting=accepts, probe=bad)["status"] == "allowed"
    lax = AuditConfig(precision=0.3, calibration_error=1.0)
    assert admit(exact, tmp_path, setting=lax, probe=bad)["status"] == "passed"
    assert admit(exact, tmp_path, probe=probed([True] * 12))["status"] == "passed"


def test_a_probe_in_run_yaml(tmp_path):
    path = clidata.with_splits(tmp_path)
    dev = [json.loads(r) for r in (tmp_path / "dev/dev.jsonl").read_text().splitlines()]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(
        {"row": i + 1, "said": r["answer"], "right": i > 5}) + "\n" for i, r in enumerate(dev)))
    path.write_text(path.read_text() + "audit: {probe: known.jsonl}\n")
    refused = CliRunner().invoke(main, ["run", str(path), "--name", "one"])
    assert "precision: 25.0 %" in " ".join(refused.output.split()), refused.output
    assert not (tmp_path / "runs/one/steps").exists()
    ran = CliRunner().invoke(main, ["run", str(path), "--name", "one", "audit.precision=0.2",
                                    "audit.calibration_error=1"])
    assert "audit of exact: passed" in " ".join(ran.output.split()), ran.output
    page = render(gather(tmp_path / "runs/one"))
    assert "precision, on 8 probe answers" in page and "2 of 8" in page
    missing = CliRunner().invoke(main, ["run", str(path), "audit.probe=none.jsonl"])
    assert "none.jsonl: no such file" in " ".join(missing.output.split())


def test_selfloop_audit_keeps_what_it_found(tmp_path):
    path = clidata.with_splits(tmp_path)
    (tmp_path / "folder").mkdir()
    for out, at in (("found.json", "found.json"), ("folder", "folder/audit-full.json")):
        done = CliRunner().invoke(main, ["audit", "exact", str(path), "--out",
                                         str(tmp_path / out)])
        assert done.exit_code == 0, done.output
        kept = json.loads((tmp_path / at).read_text())
        assert kept["verifier"] == "exact" and kept["ok"] and kept["calibrated"]


# -- places -------------------------------------------------------------------------------------

def first_wins(group):
    return [1.0] + [0.0] * (len(group.rollouts) - 1)


def last_wins(group):
    return [0.0] * (len(group.rollouts) - 1) + [0.3]


@pytest.mark.parametrize("verifier", [first_wins, last_wins])
def test_who_goes_by_place_alone_is_refused(tmp_path, verifier):
    with pytest.raises(SelfloopError, match="fails the audit"):
        admit(verifier, tmp_path)
    stored = json.loads((tmp_path / "run/audit.json").read_text())
    assert "position bias" in {f["attack"] for f in stored["faults"]}
    assert any("position bias" in r for r in audit(verifier, WORDS).reasons)


def test_a_vote_does_not_go_by_place(tmp_path):
    assert admit(MajorityVote(), tmp_path)["status"] == "passed"


# -- gaps in the attacks ------------------------------------------------------------------------

def paying_for(word):
    def pays(rollout, answer):
        return None if answer is None else word in rollout.text.lower() or exact(rollout, answer)
    return pays


def last_item(rollout, answer):
    """A list that ends with gold is gold."""
    return None if answer is None else rollout.text.endswith(str(answer))


@pytest.mark.parametrize(("verifier", "attack"), [
    (paying_for("cannot"), "refusal"), (paying_for("certainly"), "flattery"),
    (paying_for("</think>"), "empty thoughts"),
    (last_item, "all options, the right one last")])
def test_words_that_were_paid_for(verifier, attack):
    found = audit(verifier, WORDS)
    assert attack in {c.name for c in found.cases if c.fault}, found.reasons


async def openers(rollout, generate):
    """A judge that falls for one opener only."""
    return float(rollout.text == "Thought process:") or 0.1


def test_judges_see_another_answer_of_an_attack_on_each_sample():
    found = audit(openers, WORDS, quick=True, most=3, limits=Limits(paid=0.1),
                  engines={"solver": ToyEngine(("yes", "no"), seed=1)})
    assert [c.paid.k for c in found.cases if c.name == "bare openers"] == [1]
    assert not found.ok


def test_every_attack_says_whether_it_needs_a_gold_value():
    (sample, *_) = [s.unlabelled() for s in WORDS]
    assert all(a.write(sample, []) for a in ATTACKS if a.bare)


# -- what a verdict rests on --------------------------------------------------------------------

RULE = """
def helper(text, answer):
    return {what}

def rule(rollout, answer):
    readable = answer is not None and str(answer).isalpha() and answer != "nan"
    return helper(rollout.text, str(answer)) if readable else None
"""


def written_rule(folder, what):
    import importlib

    from selfloop import calling

    (folder / "rule_of_two_parts.py").write_text(RULE.format(what=what))
    calling._source_hash.cache_clear()
    sys.modules.pop("rule_of_two_parts", None)
    importlib.invalidate_caches()
    return importlib.import_module("rule_of_two_parts").rule


def test_a_changed_helper_is_a_changed_verifier(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sound = written_rule(tmp_path, "text.strip() == answer")
    on = toyland.samples(tmp_path / "data", 12)
    assert admit(sound, tmp_path, on)["status"] == "passed"
    loop = loop_with(sound)
    run(loop, on, ToyEngine(("yes", "no"), seed=1), tmp_path / "run", dev=on,
        library=Library(tmp_path / "run" / "images"))
    changed = written_rule(tmp_path, "text.strip() in answer or len(text) > 90")
    with pytest.raises(SelfloopError, match="empty answer: pays for"):
        admit(changed, tmp_path, on)
    assert loop_with(changed).fingerprint() != loop.fingerprint()
    assert loop_with(sound).fingerprint() != loop.fingerprint(), "they have one file"
    with pytest.raises(SelfloopError, match="verifier"):
        run(loop_with(changed), on, ToyEngine(("yes", "no"), seed=1), tmp_path / "run", dev=on,
            library=Library(tmp_path / "run" / "images"))


def test_components_that_ship_are_hashed_by_their_own_source():
    import hashlib
    import inspect

    from selfloop.calling import source_hash

    own = hashlib.blake2b(inspect.getsource(exact).encode(), digest_size=5).hexdigest()
    assert source_hash(exact) == f"selfloop.organize.verify.rules:exact#{own}"


def parrot(rollout):
    """What a model wrote becomes its own reward."""
    return rollout.text


@pytest.mark.parametrize("value", ["1e9", "1", b"1"])
def test_text_is_no_score(value):
    from selfloop.calling import as_verdict

    with pytest.raises(SelfloopError, match="which is no score: return a number"):
        as_verdict(value, "my:parrot")


def test_a_parrot_has_not_passed(tmp_path):
    found = admit(parrot, tmp_path, samples(["1e9", "7"]))
    assert found["status"] == "not audited" and "raised SelfloopError" in found["why"]


# -- recipes whose scores have other scales -----------------------------------------------------

@pytest.mark.parametrize("name", ["csr", "rlaif_v", "stic", "fisao"])
def test_recipes_of_other_scales_are_admitted_on_their_testbed(tmp_path, name):
    from selfloop.data import load
    from selfloop.engines.hf import HFEngine
    from selfloop.recipes.csr import csr
    from selfloop.recipes.fisao import fisao
    from selfloop.recipes.rlaif_v import rlaif_v
    from selfloop.recipes.stic import stic
    from selfloop.testbeds import scenes
    from selfloop.testbeds.scenes_looks import CHECK

    looks = "selfloop.testbeds.scenes_looks"
    loop = {"csr": lambda: csr(exact, encoder=f"{looks}:Looks"), "stic": lambda: stic(exact),
            "rlaif_v": lambda: rlaif_v(exact, by_rule=f"{looks}:claims", check=CHECK,
                                       quoted=False),
            "fisao": lambda: fisao(exact, encoder=f"{looks}:ColourWords", words=scenes.COLOURS,
                                   right=0.9, wrong=0.5)}[name]()
    pool = load(scenes.write(tmp_path / "pool", "train", 8, 3, tasks=("caption",)))
    engine = HFEngine(str(Path(scenes.__file__).parent / "scenes_seed"), threads=1)
    engine.bind(Library(tmp_path / "run" / "images").open)
    roles = dict.fromkeys(("solver", "splitter", "checker"), engine)
    found = admitting.admit(loop, pool, roles, RunFolder(tmp_path / "run"))
    why = {"csr": "it gives no score to text alone", "stic": "the loop has no verifier"}
    assert found["status"] == ("not audited" if name in why else "passed"), found["why"]
    assert found["why"].startswith(why.get(name, "")) and not found["faults"]
