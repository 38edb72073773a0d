"""What twenty questions show, which method that speaks for, and what a run will cost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from clidata import with_splits
from selfloop.checking import check, shortened
from selfloop.choosing import choose
from selfloop.collect.guided import STRUCTURES
from selfloop.commands.before import probe_rows
from selfloop.config import load_config
from selfloop.evaluate.answers import Answer
from selfloop.organize.verify.rules import choice, exact, final_answer, number, yes_no
from selfloop.planning import assumed, plan, settled
from selfloop.probed import Probed, Share, figures, readable, stored
from selfloop.probing import chosen, probe
from selfloop.roles import SelfloopError
from selfloop.types import Context, Media, Message, Part, Sample

PICTURE = Media(sha256="0" * 64)
MACHINE = {"prompt_tokens": 20.0, "answer_tokens": 8.0, "seconds_per_drawn_token": 1e-3,
           "seconds_per_read_token": 1e-4, "flops_per_read_token": 2e6,
           "flops_per_trained_token": 6e6, "parameters": 1e6, "trainable": 1e6, "bytes": 4.0,
           "width": 64.0, "layers": 2.0, "vocabulary": 200.0, "batch_tokens": 32768.0}


def made(accuracy: int = 6, solved: int = 14, mixed: int = 12, vote: int = 7, n: int = 20,
         **more) -> Probed:
    return Probed(**{
        "identity": "x", "questions": n, "draws": 8, "labelled": 1.0, "train": 100, "dev": 50,
        "accuracy": Share(accuracy, n), "pass_at_draws": Share(solved, n), "vote": Share(vote, n),
        "calibration_error": 0.3, "vote_share": 0.5, "parsed": Share(n, n),
        "truncated": Share(0, 8 * n), "no_image": Share(1, n), "zero_variance": Share(n - mixed, n),
        "related": False, "structures": {"as given": Share(accuracy, n)}, "machine": MACHINE,
        **more})


@pytest.mark.parametrize(("probed", "method", "word"), [
    (made(), "grpo", "fresh draws"),
    (made(solved=9, mixed=4), "star", "verified"),
    (made(solved=9, mixed=10, machine={**MACHINE, "answer_tokens": 200.0}), "dpo", "long"),
    (made(machine={**MACHINE, "seconds_per_drawn_token": 1.0}), "star", "verified"),
    (made(accuracy=0, solved=0, mixed=0, vote=0), "", "label more first"),
    (made(parsed=Share(3, 20)), "", "can read only"),
    (made(labelled=0.0, calibration_error=0.1), "agreement", "vote"),
    (made(labelled=0.0), "", "label more first"),
    (made(labelled=0.1, train=1000), "grpo", "fresh draws"),
    (made(n=0, accuracy=0, solved=0, mixed=0, vote=0, labelled=0.0, calibration_error=None,
          vote_share=0.2), "", "label more first"),
    (made(n=0, accuracy=0, solved=0, mixed=0, vote=0, labelled=0.0, calibration_error=None,
          vote_share=0.7, related=True), "agreement", "related questions"),
    (made(accuracy=12, solved=12, mixed=0, vote=12), "supervised", "labels"),
    (made(accuracy=12, solved=12, mixed=0, vote=14, calibration_error=0.1), "agreement", "vote"),
])
def test_the_choice_and_its_reason(probed: Probed, method: str, word: str) -> None:
    found = choose(probed)
    assert found.method == method and word.lower() in found.why.lower()
    assert method not in found.others


def test_shares_carry_their_uncertainty() -> None:
    assert str(Share(10, 20)) == "50 % [30, 70]"
    assert math.isnan(Share(0, 0).value) and "no labels" in str(Share(0, 0))


def _answers(arm: str, sample: str, said: list[str], gold: str) -> list[Answer]:
    return [Answer(sample=sample, cluster=sample, text=t, parsed=t or None, right=t == gold,
                   tokens=3, draw=i, arm=arm) for i, t in enumerate(said)]


def test_figures_by_hand() -> None:
    found = []
    for arm in ("greedy", "no_image", *STRUCTURES):
        said = "1" if arm == "greedy" else "2"
        found += _answers(arm, "a", [said], "1") + _answers(arm, "b", [said], "1")
    # a: the vote (1, share 3/4) is right; b: the vote (2, share 1/2) is wrong, one draw right
    found += _answers("draws", "a", ["1", "1", "1", "2"], "1")
    found += _answers("draws", "b", ["2", "2", "1", ""], "1")
    got = figures(found, exact, 4, 3)
    assert (got["accuracy"], got["no_image"]) == (Share(2, 2), Share(0, 2))
    assert (got["pass_at_draws"], got["vote"]) == (Share(2, 2), Share(1, 2))
    assert got["vote_share"] == pytest.approx(0.625)
    assert got["calibration_error"] == pytest.approx((0.25 + 0.5) / 2)
    assert (got["zero_variance"], got["truncated"]) == (Share(0, 2), Share(8, 8))


def test_the_probe_prints_how_right_its_majorities_are() -> None:
    draws = [*_answers("draws", "a", ["1", "1", "1", "2"], "1"),
             *_answers("draws", "b", ["2", "2", "2", "1"], "1"),
             *_answers("draws", "c", ["1", "1", "2", "2"], "1")]
    stored = [{k: v for k, v in a.model_dump().items() if k in (
        "sample", "arm", "draw", "gold", "text", "parsed", "right", "tokens")} for a in draws]
    probed = made(answers=stored)
    rows = probe_rows(probed)
    assert ("vote of 70 to 80 %", str(Share(1, 2)), "of 2 majority answers right") in rows
    assert ("no vote", "1 tied", "in no row above") in rows
    told = probed.to_json()["pseudo_labels"]
    assert told["ties"] == 1 and [b["count"] for b in told["bins"]] == [2]
    assert Probed.from_json(json.loads(json.dumps(probed.to_json()))) == probed
    assert probe_rows(made()) and made().to_json()["pseudo_labels"] is None


def test_what_a_verifier_can_read() -> None:
    def said(text: str) -> Answer:
        return Answer(sample="s", cluster="s", parsed=text or None)

    assert readable(number, said("about 12")) and not readable(number, said("many"))
    assert readable(choice, said("B) the cat")) and not readable(choice, said("the cat"))
    assert readable(yes_no, said("Yes, it is")) and not readable(yes_no, said("perhaps"))
    assert readable(exact, said("anything")) and not readable(exact, said(""))


def test_structured_prompts_end_the_question_and_keep_the_picture() -> None:
    context = Context(prompt=(
        Message(role="system", content=(Part(text="be brief"),)),
        Message(role="user", content=(Part(type="image"), Part(text="how many?")))),
        media=(PICTURE,))
    for name, structure in STRUCTURES.items():
        found = structure(context)
        assert found.media == context.media and found.prompt[0] == context.prompt[0], name
        assert found.prompt[1].content[1].text.startswith("how many?\n")
    assert final_answer("<see>two</see><think>..</think>\n<answer>2</answer>") == "2"
    only = Context(prompt=(Message(role="user", content=(Part(type="image"),)),), media=(PICTURE,))
    assert len(STRUCTURES["direct"](only).prompt[0].content) == 2


def test_questions_are_labelled_and_spread_over_clusters(tmp_path: Path) -> None:
    config = load_config(with_splits(tmp_path))
    pool = [Sample(prompt=(Message(role="user", content=(Part(text=f"q{i}"),)),),
                   answer=None if i < 3 else "1", meta={"cluster": str(i // 4)})
            for i in range(16)]
    found = chosen(config, pool[:10], pool[10:], 5)
    assert all(s.answer is not None for s in found)
    assert len({s.cluster for s in found}) >= 3
    assert found == chosen(config, pool[:10], pool[10:], 5)
    with pytest.raises(SelfloopError, match="no samples"):
        chosen(config, [], [], 5)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("probe")
    config = load_config(with_splits(folder, method="auto"))
    config.data.test.unlink()  # a probe never needs it
    return config, probe(config, questions=6, draws=4)


def test_a_probe_of_the_embedded_model_is_kept_beside_the_file(probed) -> None:
    config, found = probed
    assert stored(config) == found and found.accuracy.n == 6
    assert found.pass_at_draws.k >= found.vote.k
    assert {"seconds_per_drawn_token", "flops_per_read_token", "parameters"} <= set(found.machine)
    kept = json.loads((config.home / "probe.json").read_text())
    assert len(kept["answers"]) == 6 * (1 + 4 + 1 + 4)
    other = config.model_copy(update={"verifier": "number"})
    assert stored(other) is None


def test_the_plan_of_a_probe(probed) -> None:
    config, found = probed
    made_plan = plan(config.model_copy(update={"options": {}, "method": "star"}), found)
    assert made_plan.method == "star" and not made_plan.options  # it was named: nothing is set
    assert any("lr=0.0005" in note for note in made_plan.notes)
    free = plan(config.model_copy(update={"options": {}}), replace(
        found, accuracy=Share(2, 6), pass_at_draws=Share(3, 6)))
    assert free.method == "star"
    assert free.options["lr"] == 5e-4 and free.options["updates"] >= 40
    assert made_plan.tokens["drawn"] == pytest.approx(
        12 * 8 * found.machine["answer_tokens"], abs=1)
    assert made_plan.seconds["total"] > 0 and made_plan.flops > 0
    assert made_plan.memory["optimizer"] == 2 * made_plan.memory["gradients"]
    json.dumps(made_plan.to_json())


def test_every_method_has_a_cost(probed) -> None:
    config, found = probed
    for method in ("star", "dpo", "grpo", "agreement", "supervised"):
        made_plan = plan(config.model_copy(update={"method": method, "options": {}}), found)
        assert made_plan.seconds["total"] > 0, method
        assert (made_plan.tokens["drawn"] == 0) == (method == "supervised")


def test_what_the_file_sets_wins_over_the_plan(probed) -> None:
    config, found = probed
    chosen_plan = plan(config, replace(found, pass_at_draws=Share(6, 6), accuracy=Share(3, 6)))
    options = settled(config, chosen_plan.method, chosen_plan.options).options
    assert options["lr"] == config.options["lr"]


def test_without_a_probe_a_plan_says_so(tmp_path: Path) -> None:
    config = load_config(with_splits(tmp_path, method="auto"))
    with pytest.raises(SelfloopError, match=r"selfloop probe.*--assume"):
        plan(config)


def test_assumed_figures_are_timed_here(probed) -> None:
    config, _ = probed
    found = assumed(config)
    assert found.accuracy == Share(6, 20) and found.machine["seconds_per_drawn_token"] > 0


def test_notes_name_what_would_mislead() -> None:
    config_like = made(no_image=Share(6, 20), truncated=Share(40, 160),
                       structures={"as given": Share(6, 20), "direct": Share(12, 20)})
    from selfloop.planning import _notes

    text = " ".join(_notes(config_like))
    for part in ('prompt "direct"', "max_new_tokens", "without the picture"):
        assert part in text


def test_check_of_good_data(tmp_path: Path) -> None:
    found = check(load_config(with_splits(tmp_path)))
    assert found.ok and found.gold_checked == 20 and found.counts["test"] == 4
    assert found.loop.startswith("Loop(")


def test_check_names_every_fault(tmp_path: Path) -> None:
    config = load_config(with_splits(tmp_path))
    train = tmp_path / "train" / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    (train.parent / rows[2]["images"][0]).unlink()
    broken = train.parent / rows[3]["images"][0]
    broken.write_bytes(broken.read_bytes()[:-40])
    rows[5]["answer"] = "..."
    test = tmp_path / "test" / "test.jsonl"
    leaked = json.loads(test.read_text().splitlines()[0])
    leaked["images"] = [str(train.parent / rows[7]["images"][0])]
    test.write_text(json.dumps(leaked) + "\n" + "\n".join(test.read_text().splitlines()[1:]))
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = check(config)
    text = "\n".join(shortened(found.found))
    assert not found.ok
    for part in ("row 3", rows[2]["images"][0], rows[3]["images"][0], "'...'", "also in train"):
        assert part in text


def test_check_names_a_verifier_that_raises(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "raising_rule.py").write_text(
        "def rule(rollout, answer):\n    raise KeyError('no such thing')\n")
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    config = load_config(with_splits(tmp_path), ["verifier=raising_rule:rule"])
    found = check(config)
    assert "raising_rule:rule raised KeyError" in shortened(found.found)[0]
