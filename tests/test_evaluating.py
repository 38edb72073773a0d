"""`selfloop eval`: asked once, kept, marked by anybody's rules, compared pair by pair."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from selfloop.cli import main
from selfloop.data import load
from selfloop.evaluate import asking
from selfloop.evaluate.answers import Answer
from selfloop.evaluate.asking import Plan
from selfloop.evaluate.benchmark import OWN, added, ending_with, reworded, styled, words
from selfloop.evaluate.benchmarks import benchmark
from selfloop.evaluate.comparing import adjusted, compare
from selfloop.evaluate.scoring import How, Score, figures, mark, score, solved, tallies
from selfloop.evaluating import engine_of, evaluate, given, own_questions, paired, remarked
from selfloop.roles import SelfloopError
from selfloop.types import Media, Message, Part, Sample

HOW = How("", "", "", "", "", "")


def pope_files(folder: Path, n: int = 12) -> Path:
    """The authors' layout: one object a line, pictures beside it, three questions a picture."""
    for i in range(n // 3):
        Image.new("RGB", (32, 32), (20 * i, 99, 7)).save(folder / f"COCO_val2014_{i}.jpg")
    lines = [{"question_id": i + 1, "image": f"COCO_val2014_{i // 3}.jpg",
              "text": f"Is there a {['dog', 'cat', 'car'][i % 3]} in the image?",
              "label": "yes" if i % 2 else "no"} for i in range(n)]
    path = folder / "coco_pope_popular.json"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def pope(folder: Path) -> dict[str, Sample]:
    found = load(benchmark("pope").rows(pope_files(folder)))
    return {s.id: s for s in found}


def said(samples, texts, arm="greedy"):
    return [Answer(sample=s.id, cluster=s.cluster, gold=str(s.answer), text=t, arm=arm, tokens=2)
            for s, t in zip(samples.values(), texts, strict=True)]


@pytest.fixture(scope="module")
def engine():
    return engine_of("embedded")


def test_the_published_file_becomes_samples(tmp_path):
    samples = list(pope(tmp_path).values())
    assert len(samples) == 12 and len({s.cluster for s in samples}) == 4
    assert samples[1].answer == "yes" and samples[0].meta["task"] == "popular"
    assert words(samples[0]) == "Is there a dog in the image?" and len(samples[0].media) == 1


@pytest.mark.parametrize(("change", "says"), [
    ({"label": "maybe"}, "label"), ({"image": None}, "image"), ({"text": ""}, "text")])
def test_a_row_that_does_not_fit_is_named(tmp_path, change, says):
    path = pope_files(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[4] |= change
    path.write_text("\n".join(json.dumps(r) for r in rows))
    with pytest.raises(SelfloopError, match=rf"row 5.*{says}"):
        load(benchmark("pope").rows(path))


def test_the_rules_differ_where_the_tools_do(tmp_path):
    samples = pope(tmp_path)
    one = next(s for s in samples.values() if s.answer == "yes")
    texts = ["yes", "Yes.", "Yes, there is one, no doubt", "There is not", "", "a dog"]
    got = {rules: [benchmark("pope").way(rules).mark(t, one).score for t in texts]
           for rules in ("selfloop", "lmms-eval", "vlmevalkit", "authors")}
    assert got == {"selfloop": [1, 1, 1, 0, 0, 0], "lmms-eval": [1, 0, 0, 0, 0, 0],
                   "vlmevalkit": [1, 1, None, None, None, None], "authors": [1, 1, 0, 0, 1, 1]}


def test_a_score_keeps_its_six_parts_and_survives_json(tmp_path):
    samples = pope(tmp_path)
    way = benchmark("pope").way()
    marked, errors = mark(way, samples, said(samples, ["yes"] * 12) + said(
        samples, ["no"] * 12, "no_image"))
    found = score(benchmark("pope"), samples, marked, replace(HOW, judge="none"))
    assert not errors and found.figures["accuracy"].value == 0.5
    assert found.figures["recall"].value == 1 and found.figures["yes_rate"].value == 1
    assert found.figures["multimodal_gain"].value == 0
    assert found.figures["recall"].low < 1, "twelve right answers are no certainty"
    assert Score.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(SelfloopError, match="not a stored score"):
        Score.from_json({"benchmark": "pope"})


def test_a_rule_that_fails_is_an_error_and_never_a_zero(tmp_path):
    samples = pope(tmp_path)

    def broken(text, sample):
        if text == "boom":
            raise ValueError("cannot read this")
        return benchmark("pope").way().mark(text, sample)

    way = replace(benchmark("pope").way(), mark=broken)
    marked, errors = mark(way, samples, said(samples, ["boom"] + ["yes"] * 11))
    assert len(errors) == 1 and "ValueError: cannot read this" in errors[0]
    assert marked[0].right is None and marked[0].score is None


def test_answers_of_other_data_are_refused(tmp_path):
    stray = [Answer(sample="nowhere", cluster="c", text="yes")]
    with pytest.raises(SelfloopError, match="nowhere"):
        mark(benchmark("pope").way(), pope(tmp_path), stray)


def test_figures_do_not_depend_on_how_answers_are_grouped(tmp_path):
    samples = pope(tmp_path)
    rng = np.random.default_rng(0)
    marked, _ = mark(benchmark("pope").way(), samples, said(
        samples, rng.choice(["yes", "no", "perhaps"], 12)))
    whole = benchmark("pope").count([(samples[a.sample], a) for a in marked])
    parts = tallies(benchmark("pope"), samples, marked).values()
    assert added(parts) == {k: (float(a), float(b)) for k, (a, b) in whole.items()}


def test_pass_at_k_rises_in_k_and_stops_at_the_draws():
    answers = [Answer(sample=f"q{i}", cluster=f"c{i}", text="", parsed=str(d), right=d <= i % 4,
                      draw=d, arm="draws") for i in range(8) for d in range(4)]
    found = solved(answers)
    assert list(found) == ["pass@1", "pass@2", "pass@4", "maj@4", "calibration_error"]
    assert found["pass@1"].value == pytest.approx(0.625) and found["pass@4"].value == 1.0
    assert found["pass@1"].value <= found["pass@2"].value <= found["pass@4"].value


def test_a_model_is_no_better_than_itself_and_a_better_one_is_named(tmp_path):
    samples = {s.id: s for s in (pope(tmp_path) | {}).values()}
    right = said(samples, [str(s.answer) for s in samples.values()])
    wrong = said(samples, ["no"] * 12)
    way, known = benchmark("pope").way(), benchmark("pope")
    a, b = (mark(way, samples, x)[0] for x in (right, wrong))
    same = compare(known, samples, a, a)
    assert same.gain == 0 and same.p_value == 1 and same.better == "not shown"
    found = compare(known, samples, a, b)
    assert found.gain == 0.5 and found.low > 0 and found.clusters == 4
    assert found.p_value == pytest.approx(2 * 0.5 ** 4), "four clusters: all signs equal"
    two = adjusted([found, same], {"pope": known})
    assert two[0].p_adjusted == pytest.approx(2 * found.p_value)
    with pytest.raises(SelfloopError, match="one model only"):
        compare(known, samples, a, b[:-1])
    with pytest.raises(SelfloopError, match="expected one of holm, bh"):
        adjusted([found], {"pope": known}, how="none")


def test_more_questions_show_less(tmp_path):
    samples = pope(tmp_path)
    way = benchmark("pope").way()
    a = mark(way, samples, said(samples, [str(s.answer) for s in samples.values()]))[0]
    b = mark(way, samples, said(samples, ["no", "yes", "yes"] * 4))[0]
    found = compare(benchmark("pope"), samples, a, b)
    assert found.needed(found.detectable) == found.questions
    assert found.needed(found.detectable / 2) == 4 * found.questions


def test_one_cluster_has_an_infinite_interval(tmp_path):
    samples = pope(tmp_path)
    marked, _ = mark(benchmark("pope").way(), samples, said(samples, ["yes"] * 12))
    lone = [a.model_copy(update={"cluster": "one"}) for a in marked]
    found = figures(benchmark("pope"), list(tallies(benchmark("pope"), samples, lone).values()))
    assert found["accuracy"].low is None and found["accuracy"].high is None


def test_prompts_keep_pictures_first_and_styles_end_the_question():
    sample = Sample(prompt=(Message(role="user", content=(
        Part(type="image"), Part(text="what is this ?"))),), media=(Media(sha256="0" * 64),),
        answer="x")
    asked = ending_with("One word.")(sample)
    assert asked.text == "what is this ?\nOne word." and asked.media == sample.media
    assert asked.prompt[0].content[0].type == "image"
    shaped = styled("direct", ending_with("One word."))(sample)
    assert shaped.text.endswith("One word.\nAnswer with the final answer only.")
    assert reworded(sample, "new").text == "new"
    with pytest.raises(SelfloopError, match="chain of thought"):
        styled("shout", ending_with("x"))


def test_what_was_answered_is_not_asked_again(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(asking, "SHARD", 8)
    sets = [given("digits", limit=20, folder=tmp_path / "data")]
    plan = Plan(draws=2, corruptions=("noise",), max_new_tokens=12)
    first = evaluate(engine, sets, plan, tmp_path)
    place = tmp_path / "embedded" / "digits"
    stored = {p.name: p.read_bytes() for p in (place / "answers").iterdir()}
    (place / "answers" / "greedy-0001.parquet").unlink()
    asked = []
    again = evaluate(engine, sets, plan, tmp_path, asked.append)
    assert {p.name: p.read_bytes() for p in (place / "answers").iterdir()} == stored
    assert again.scores["digits"].figures == first.scores["digits"].figures
    assert set(first.scores["digits"].robustness["noise"]) == {"0.2", "0.4", "0.6", "0.8", "1"}
    assert first.scores["digits"].figures["pass@2"].value >= \
        first.scores["digits"].figures["pass@1"].value
    with pytest.raises(SelfloopError, match="another max_new_tokens"):
        evaluate(engine, sets, replace(plan, max_new_tokens=5), tmp_path)
    other = [replace(sets[0], samples=dict(list(sets[0].samples.items())[:3]))]
    with pytest.raises(SelfloopError, match="another data"):
        evaluate(engine, other, plan, tmp_path)


def test_stored_answers_are_marked_again_under_other_rules(tmp_path, engine):
    files = tmp_path / "files"
    files.mkdir()
    sets = [given(f"pope={pope_files(files)}")]
    found = evaluate(engine, sets, Plan(no_image=False), tmp_path).scores["pope"]
    place = tmp_path / "embedded" / "pope"
    again = remarked(place, OWN)
    assert again.figures == found.figures and again.how.rules == "selfloop"
    shown = CliRunner().invoke(main, ["eval", str(place), "--as", "authors", "--json"])
    assert json.loads(shown.stdout)[0]["how"]["rules"] == "authors"
    theirs = remarked(place, "authors")
    assert theirs.how.extractor != found.how.extractor and theirs.figures["unparsed"].value == 0
    with pytest.raises(SelfloopError, match="no rules as 'nobody'"):
        remarked(place, "nobody")


def test_own_questions_are_marked_by_the_rule_that_fits():
    samples = [Sample(prompt=(Message(role="user", content=(Part(text=f"q{i} ?"),)),),
                      answer=str(i)) for i in range(4)]
    made = own_questions("mine", samples)
    assert made.way().extractor.endswith(":number")
    assert made.way().mark("Answer: 2", samples[2]).score == 1
    assert made.way().mark("Answer: 3", samples[2]).score == 0
    with pytest.raises(SelfloopError, match="no question has an answer"):
        own_questions("mine", [s.unlabelled() for s in samples])


@pytest.mark.parametrize(("args", "says"), [
    (["embedded"], "at least one --on"),
    (["embedded", "--on", "pope"], "where are its files"),
    (["embedded", "--on", "popee=x"], "did you mean pope"),
    (["embedded", "--on", "digits", "--limit", "4", "--corrupt", "fog"], "no picture operation"),
    (["embedded", "--on", "digits", "--limit", "4", "--as", "lmms-eval"], "no rules as"),
    (["nowhere", "--on", "digits", "--limit", "4"], "nowhere"),
])
def test_mistakes_are_one_line(tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["eval", *args])
    assert result.exit_code == 2
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_two_models_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from selfloop.testbeds.tiny_vlm import build

    build(tmp_path / "blank")
    args = ["eval", "embedded", "blank", "--on", "digits", "--limit", "60", "--style", "direct",
            "--max-new-tokens", "12", "--no-no-image"]
    result = CliRunner().invoke(main, [*args, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [m["model"] for m in found["models"]] == ["embedded", "blank"]
    assert found["differences"][0]["better"] == "first"
    assert found["differences"][0]["low"] > 0 and len(found["styles"]) == 2
    how = found["models"][0]["scores"][0]["how"]
    assert all(how[k] for k in ("data", "prompt", "decoding", "extractor", "judge", "fallback"))
    shown = CliRunner().invoke(main, args)
    assert shown.exit_code == 0 and "questions for 2 points" in shown.stdout
    assert "60 questions" in shown.stdout and "accuracy" in shown.stdout


def test_paired_needs_the_same_sets(tmp_path, engine):
    sets = [given("digits", limit=6, folder=tmp_path / "data")]
    a = evaluate(engine, sets, Plan(no_image=False, max_new_tokens=8), tmp_path)
    assert paired(a, a, sets)[0].better == "not shown"


def test_scenes_count_what_is_made_up(tmp_path):
    """Captions, existence and the pull of the prior, exact by construction; splits of their own."""
    sets = [given(name, limit=70, folder=tmp_path / "data") for name in ("scenes", "scenes-broken")]
    scores = evaluate("scenes", sets, Plan(max_new_tokens=24), tmp_path / "out").scores
    usual, broken = (scores[name].figures for name in ("scenes", "scenes-broken"))
    assert {"chair_i", "recall", "pope", "pope_f1", "yes_rate", "misled"} <= set(broken)
    assert 0 < usual["chair_i"].value < broken["chair_i"].value < 1
    assert broken["misled"].n > 0 and usual["pope"].value > 0.5
