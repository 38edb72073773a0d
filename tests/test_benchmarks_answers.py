"""Benchmarks with gold answers: published layouts as samples, and each tool's rules on answers."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from selfloop.data import load
from selfloop.evaluate.answers import Answer
from selfloop.evaluate.benchmark import styled, words
from selfloop.evaluate.benchmarks import benchmark
from selfloop.evaluate.benchmarks.mmstar import split_options
from selfloop.evaluate.benchmarks.yes_no import in_final_answer
from selfloop.evaluate.cells import texts_of
from selfloop.evaluate.matchers import (
    LONGEST,
    anls,
    edit_distance,
    lmms_eval_option,
    number,
    option,
    relaxed,
    same_maths,
    same_numbers,
    same_quantity,
    vlmevalkit_option,
)
from selfloop.evaluate.scoring import How, mark, score
from selfloop.evaluate.vqa_accuracy import normal, vqa_accuracy
from selfloop.roles import SelfloopError

HOW = How("", "", "", "", "", "")
ANIMALS = {"A": "a cat", "B": "a dog", "C": "a bird", "D": "vitamin C"}


def png(shade: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (24, 24), (shade, 60, 120)).save(held, "PNG")
    return held.getvalue()


def picture(shade: int = 10) -> dict[str, object]:
    """A picture as the Hub's parquet files hold it."""
    return {"bytes": png(shade), "path": None}


def text64(shade: int = 10) -> str:
    """A picture as VLMEvalKit's tables hold it."""
    return base64.b64encode(png(shade)).decode()


def parquet(folder: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")
    return folder / "test.parquet"


def table(folder: Path, rows: list[dict]) -> Path:
    path = folder / "table.tsv"
    quoted = [["\"" + str(r.get(c, "")).replace("\"", "\"\"") + "\"" for c in rows[0]]
              for r in rows]
    path.write_text("\n".join("\t".join(line) for line in [list(rows[0]), *quoted]))
    return path


def samples_of(name: str, path: Path) -> list:
    return list(load(benchmark(name).rows(path), root=path.parent))


def marks(name: str, rules: str, sample, texts) -> list:
    way = benchmark(name).way(rules)
    return [way.mark(text, sample).score for text in texts]


# -- ScienceQA -------------------------------------------------------------------------------------

SCIENCE = {"image": picture(), "question": "Which is a mammal?",
           "choices": ["a frog", "a cow", "a fish"], "answer": 1, "hint": "Mammals give milk.",
           "task": "closed choice", "grade": "grade2", "subject": "natural science",
           "topic": "biology", "category": "Classification", "skill": "Identify mammals",
           "lecture": "Animals are ...", "solution": "A cow gives milk."}


def science(folder: Path) -> list:
    other = SCIENCE | {"image": None, "choices": ["a hen", "a cow"], "hint": "", "answer": 1,
                       "subject": "language science"}
    return samples_of("scienceqa", parquet(folder, [SCIENCE, other]))


def test_scienceqa_reads_its_columns_and_knows_questions_without_a_picture(tmp_path):
    with_, without = science(tmp_path)
    assert with_.answer == "B" and len(with_.media) == 1 and not without.media
    assert words(with_) == "Mammals give milk.\nWhich is a mammal?\nA. a frog\nB. a cow\nC. a fish"
    assert with_.meta["picture"] == "with" and without.meta["picture"] == "without"
    assert with_.meta["subject"] == "natural science" and "solution" not in with_.meta
    assert with_.id != without.id, "options are part of what is asked"


def test_scienceqa_is_asked_as_each_tool_does(tmp_path):
    one, other = science(tmp_path)
    bench = benchmark("scienceqa")
    lmms = bench.way("lmms-eval")
    text = words(one.model_copy(update={"prompt": lmms.ask(one).prompt}))
    assert text == ("Context: Mammals give milk.\nWhich is a mammal?\nA. a frog\nB. a cow\n"
                    "C. a fish\nAnswer with the option's letter from the given choices directly.")
    assert lmms.max_new_tokens == 16
    kit = bench.way("vlmevalkit").ask(other).prompt[-1].content[-1].text
    assert kit == ("Question: Which is a mammal?\nOptions:\nA. a hen\nB. a cow\n"
                   "Please select the correct answer from the options above. \n")


def test_scienceqa_rules_differ_where_the_tools_do(tmp_path):
    one = science(tmp_path)[0]
    texts = ["B", " b ", "B. a cow", "(B)", "The answer is B.", "a cow", "C", "", "B or C",
             "Because cows give milk I would go for the second one"]
    assert marks("scienceqa", "selfloop", one, texts) == [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert marks("scienceqa", "lmms-eval", one, texts) == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert marks("scienceqa", "vlmevalkit", one, texts) == [
        1, None, 1, 1, 1, 1, 0, None, None, None]


def test_a_vlmevalkit_table_shares_pictures_by_index(tmp_path):
    row = {"index": 7, "question": "Which?", "hint": "Look.", "A": "red", "B": "blue",
           "answer": "B", "category": "colours", "split": "test", "image": text64()}
    rows = [row, row | {"index": 8, "question": "Which one?", "image": "7"}]
    first, second = samples_of("scienceqa", table(tmp_path, rows))
    assert first.media[0].sha256 == second.media[0].sha256 and second.answer == "B"
    assert first.meta["category"] == "colours" and words(first) == "Look.\nWhich?\nA. red\nB. blue"
    with pytest.raises(SelfloopError, match="row 2"):
        samples_of("scienceqa", table(tmp_path, [row, row | {"index": 8, "image": "99"}]))


def test_scores_are_counted_by_picture_subject_and_grade(tmp_path):
    samples = {s.id: s for s in science(tmp_path)}
    said = [Answer(sample=s.id, cluster=s.cluster, text=t, arm="greedy", tokens=1)
            for s, t in zip(samples.values(), ["B", "A"], strict=True)]
    marked, errors = mark(benchmark("scienceqa").way(), samples, said)
    found = score(benchmark("scienceqa"), samples, marked, HOW)
    assert not errors and found.figures["accuracy"].value == 0.5
    assert found.by["picture"]["with"]["accuracy"].value == 1
    assert found.by["subject"]["language science"]["accuracy"].value == 0


# -- MMStar ----------------------------------------------------------------------------------------

STAR = {"index": 0, "question": "What is on the book?\nOptions: A: A suitcase., B: A cat, D: no, "
        "C: Nothing, D: A pen", "image": picture(), "answer": "B", "category": "coarse perception",
        "l2_category": "image scene and topic",
        "meta_info": {"source": "MMBench", "split": "val", "image_path": "images/0.jpg"}}


def test_mmstar_reads_options_out_of_the_question(tmp_path):
    one, = samples_of("mmstar", parquet(tmp_path, [STAR]))
    assert one.meta["options"] == ["A suitcase.", "A cat, D: no", "Nothing", "A pen"]
    assert words(one) == ("What is on the book?\nA. A suitcase.\nB. A cat, D: no\nC. Nothing\n"
                          "D. A pen")
    assert (one.meta["task"], one.meta["skill"], one.meta["origin"]) == (
        "coarse perception", "image scene and topic", "MMBench")
    lmms = benchmark("mmstar").way("lmms-eval").ask(one).prompt[-1].content[-1].text
    assert lmms == (STAR["question"]
                    + "\nAnswer with the option's letter from the given choices directly")


@pytest.mark.parametrize(("text", "options"), [
    ("Q\nOptions: A: 1, B: 2", ["1", "2"]), ("Q Options: (A) x (B) y", ["x", "y"]),
    ("Which? A: 1, B: 2", []), ("Q\nOptions: B: 1, C: 2", []), ("Q\nOptions: A: alone", [])])
def test_options_are_split_only_where_they_are_in_order(text, options):
    assert split_options(text)[1] == options


def test_mmstar_rules(tmp_path):
    one, = samples_of("mmstar", parquet(tmp_path, [STAR]))
    texts = ["B", "b", "Because of the light, D", "It is (B), not A", "A cat, D: no", "The answer"
             " is B because D is not there", ""]
    assert marks("mmstar", "selfloop", one, texts) == [1, 1, 0, 1, 1, 0, 0]
    assert marks("mmstar", "lmms-eval", one, texts) == [1, 0, 0, 0, 0, 0, 0]
    assert marks("mmstar", "vlmevalkit", one, texts) == [1, None, 0, None, 1, None, None]


def test_mmstar_without_separable_options_is_still_asked_and_marked(tmp_path):
    one, = samples_of("mmstar", parquet(tmp_path, [STAR | {"question": "Pick A or B as drawn."}]))
    assert words(one) == "Pick A or B as drawn."
    assert marks("mmstar", "selfloop", one, ["B", "A"]) == [1, 0]
    assert marks("mmstar", "vlmevalkit", one, ["B", "A", "the left one"]) == [1, 0, None]


# -- V* --------------------------------------------------------------------------------------------

def vstar_line(**changed) -> dict:
    return {"image": "direct_attributes/sa_1.jpg", "text": "What is the material of the glove?\n"
            "(A) rubber\n(B) cotton\nAnswer with the option's letter from the given choices "
            "directly.", "category": "direct_attributes", "label": "A", "question_id": 0} | changed


def vstar(folder: Path, **changed) -> list:
    (folder / "direct_attributes").mkdir(exist_ok=True)
    Image.new("RGB", (32, 24), (9, 9, 9)).save(folder / "direct_attributes" / "sa_1.jpg")
    path = folder / "test_questions.jsonl"
    path.write_text(json.dumps(vstar_line(**changed)))
    return samples_of("vstar", path)


def test_vstar_reads_the_authors_lines(tmp_path):
    one, = vstar(tmp_path)
    assert one.meta["task"] == "direct_attributes" and one.meta["options"] == ["rubber", "cotton"]
    assert words(one) == "What is the material of the glove?\nA. rubber\nB. cotton"
    lmms = benchmark("vstar").way("lmms-eval").ask(one).prompt[-1].content[-1].text
    assert lmms.count("Answer with the option's letter") == 2, "lmms-eval says it twice"
    assert lmms.startswith("What is the material of the glove?\nA. rubber\nB. cotton\nAnswer")


def test_vstar_rules(tmp_path):
    one, = vstar(tmp_path)
    texts = ["A", "A.", "all of cotton", "The answer is (A)", "rubber", "cotton", "It is rubber."]
    assert marks("vstar", "selfloop", one, texts) == [1, 1, 0, 1, 1, 0, 0]
    assert marks("vstar", "lmms-eval", one, texts) == [1, 1, 1, 1, 0, 0, 0]
    assert marks("vstar", "vlmevalkit", one, texts) == [1, 1, 0, 1, 1, 0, 1]


# -- ChartQA ---------------------------------------------------------------------------------------

def chart_files(folder: Path) -> list[Path]:
    Image.new("RGB", (20, 20)).save(folder / "41.png")
    authors = folder / "test_human.json"
    authors.write_text(json.dumps([{"imgname": "41.png", "query": "How many?", "label": "14"}]))
    (folder / "m4").mkdir()
    m4 = parquet(folder / "m4", [{"image": picture(), "query": "How many?", "label": ["14"],
                                  "human_or_machine": 0}])
    (folder / "lab").mkdir()
    lab = parquet(folder / "lab", [{"type": "human_test", "question": "How many?", "answer": "14",
                                    "image": picture()}])
    kit = table(folder, [{"index": 1, "question": "How many?", "answer": "14",
                          "split": "test_human", "image": text64()}])
    return [authors, m4, lab, kit]


def test_chartqa_reads_all_published_layouts(tmp_path):
    for path in chart_files(tmp_path):
        one, = samples_of("chartqa", path)
        assert (words(one), one.meta["task"], texts_of(one.answer)) == (
            "How many?", "human", ["14"]), path


@pytest.mark.parametrize(("gold", "texts", "ours", "lmms", "kit"), [
    ("14", ["14", "14.7", "14.8", "14%", "14 ", "14.", "about 14 people", "13 or 14", ""],
     [1, 1, 0, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0, 0, 0], [1, 1, 0, 0, 1, 1, 0, 0, 0]),
    ("1200", ["1,200", "$1200", "1.2 thousand"], [1, 1, 1], [0, 0, 0], [0, 0, 0]),
    ("0.14", ["14%", "14"], [1, 0], [1, 0], [1, 0]),
    ("0", ["0", "0.0", "0.01"], [1, 1, 0], [1, 0, 0], [1, 0, 0]),
    ("Japan", ["japan", "Japan.", " Japan", "Answer: Japan", "Japan, mostly"],
     [1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 0]),
    ("[2010, 2014]", ["2010 and 2014", "[2010, 2014]", "2014"], [1, 1, 0], [0, 1, 0], [0, 1, 0]),
])
def test_chartqa_rules(tmp_path, gold, texts, ours, lmms, kit):
    rows = [{"type": "human_test", "question": "How many?", "answer": gold, "image": picture()}]
    one, = samples_of("chartqa", parquet(tmp_path, rows))
    assert marks("chartqa", "selfloop", one, texts) == ours
    assert marks("chartqa", "lmms-eval", one, texts) == lmms
    assert marks("chartqa", "vlmevalkit", one, texts) == kit


# -- DocVQA ----------------------------------------------------------------------------------------

DOC = {"questionId": "337", "question": "What is the date?", "question_types": ["handwritten"],
       "image": picture(), "docId": 279, "ucsf_document_id": "xnbl0037",
       "ucsf_document_page_no": "1", "answers": ["3 May 1999", "3/5/1999"], "data_split": "val"}


def test_docvqa_reads_the_hub_the_authors_and_the_table(tmp_path):
    hub, = samples_of("docvqa", parquet(tmp_path, [DOC]))
    (tmp_path / "documents").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "documents" / "xnbl0037_1.png")
    authors = tmp_path / "val_v1.0.json"
    authors.write_text(json.dumps({"dataset_name": "docvqa", "dataset_split": "val", "data": [
        DOC | {"image": "documents/xnbl0037_1.png"}]}))
    own, = samples_of("docvqa", authors)
    kit, = samples_of("docvqa", table(tmp_path, [{
        "index": 1, "question": DOC["question"], "answer": str(DOC["answers"]),
        "image": text64()}]))
    assert hub.answer == own.answer == kit.answer == DOC["answers"]
    assert hub.cluster == own.cluster == "xnbl0037" and hub.meta["kinds"] == ["handwritten"]


def test_docvqa_rules_and_figures(tmp_path):
    one, = samples_of("docvqa", parquet(tmp_path, [DOC]))
    texts = ["3 may  1999", "Answer: 3 May 1999", "3 May 1998", "tomorrow", ""]
    assert marks("docvqa", "selfloop", one, texts) == [1, 1, 0.9, 0, 0]
    assert marks("docvqa", "vlmevalkit", one, texts) == [1, pytest.approx(10 / 18), 0.9, 0, 0]
    assert marks("docvqa", "lmms-eval", one, ["   3 may 1998   "]) == [pytest.approx(15 / 16)]
    marked, _ = mark(benchmark("docvqa").way(), {one.id: one}, [
        Answer(sample=one.id, cluster=one.cluster, text="3 May 1998", arm="greedy", tokens=1)])
    found = score(benchmark("docvqa"), {one.id: one}, marked, HOW).figures
    assert found["anls"].value == 0.9 and found["exact"].value == 0


# -- MathVista -------------------------------------------------------------------------------------

def problem(**changed) -> dict:
    metadata = {"category": "math-targeted-vqa", "context": "geometry diagram", "grade": "high "
                "school", "img_height": 24, "img_width": 24, "language": "english",
                "skills": ["geometry reasoning", "algebraic reasoning"], "source": "Geometry3K",
                "split": "testmini", "task": "geometry problem solving"}
    return {"pid": "1", "question": "How wide is it?", "image": "images/1.jpg",
            "decoded_image": picture(), "choices": None, "unit": None, "precision": None,
            "answer": "4", "question_type": "free_form", "answer_type": "integer",
            "metadata": metadata, "query": "Hint: ...\nQuestion: How wide is it?"} | changed


CHOICE = {"question_type": "multi_choice", "answer_type": "text", "choices": ["3", "4.5", "12"],
          "answer": "4.5"}
FLOAT = {"answer_type": "float", "precision": 2.0, "answer": "1.45", "unit": "$"}


def maths(folder: Path, **changed):
    return samples_of("mathvista", parquet(folder, [problem(**changed)]))[0]


def test_mathvista_reads_the_hub_the_authors_and_the_table(tmp_path):
    hub = maths(tmp_path, **CHOICE)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (24, 24)).save(tmp_path / "images" / "1.jpg")
    bare = {k: v for k, v in problem(**CHOICE).items()
            if k not in ("decoded_image", "query", "pid")}
    (tmp_path / "testmini.json").write_text(json.dumps({"1": bare}))
    own, = samples_of("mathvista", tmp_path / "testmini.json")
    query = benchmark("mathvista").way("vlmevalkit").ask(own).prompt[-1].content[-1].text
    kit, = samples_of("mathvista", table(tmp_path, [{
        "index": 1, "image": text64(), "question": query, "choices": str(CHOICE["choices"]),
        "answer": "4.5", "answer_option": "B", "question_type": "multi_choice",
        "answer_type": "text", "task": "geometry problem solving",
        "skills": "['geometry reasoning', 'algebraic reasoning']"}]))
    for sample in (hub, own, kit):
        assert words(sample) == "How wide is it?\nA. 3\nB. 4.5\nC. 12" and sample.answer == "4.5"
        assert sample.meta["task"] == "geometry problem solving"
        assert sample.meta["skills"] == ["geometry reasoning", "algebraic reasoning"]
    assert hub.meta["origin"] == "Geometry3K" and kit.meta["published"] == query
    assert query == ("Hint: Please answer the question and provide the correct option letter, e.g.,"
                     " A, B, C, D, at the end.\nQuestion: How wide is it?\nChoices:\n(A) 3\n"
                     "(B) 4.5\n(C) 12")


def test_mathvista_choices(tmp_path):
    one = maths(tmp_path, **CHOICE)
    texts = ["B", "(B)", "4.5", "The answer is B", "12", "", "perhaps four and a half"]
    assert marks("mathvista", "selfloop", one, texts) == [1, 1, 1, 1, 0, 0, 0]
    assert marks("mathvista", "lmms-eval", one, texts) == [1, 1, 1, None, 0, 0, None]
    assert marks("mathvista", "vlmevalkit", one, texts) == [1, 1, 1, 1, 0, None, None]


@pytest.mark.parametrize(("changed", "texts", "ours", "lmms", "kit"), [
    ({}, ["4", " 4", "4.0", "It is 4 cm", "5", "four", ""],
     [1, 1, 1, 1, 0, 0, 0], [1, 1, None, None, 0, None, 0], [1, 1, None, None, 0, None, None]),
    (FLOAT, ["1.45", "1.449", "$1.45", "1.5", ""],
     [1, 1, 1, 0, 0], [0, 0, None, 0, 0], [1, 0, None, 0, None]),
    (FLOAT | {"precision": 2}, ["1.45", "1.449", "1.5"], [1, 1, 0], [1, 1, 0], [1, 0, 0]),
    ({"answer_type": "list", "answer": "[2007, 2008]"},
     ["[2007, 2008]", "2007 and 2008", "[2008, 2007]", "none"],
     [1, 1, 0, 0], [None] * 4, [0] * 4),
])
def test_mathvista_free_form(tmp_path, changed, texts, ours, lmms, kit):
    one = maths(tmp_path, **changed)
    assert marks("mathvista", "selfloop", one, texts) == ours
    assert marks("mathvista", "lmms-eval", one, texts) == lmms
    assert marks("mathvista", "vlmevalkit", one, texts) == kit


def test_mathvista_is_asked_as_each_tool_does(tmp_path):
    def asked(sample, rules):
        return benchmark("mathvista").way(rules).ask(sample).prompt[-1].content[-1].text

    one = maths(tmp_path, **FLOAT)
    assert asked(one, "selfloop") == "How wide is it? (Unit: $)\nAnswer with a number with 2 " \
                                     "decimal places."
    assert asked(one, "lmms-eval") == "How wide is it? (Unit: $)\nAnswer the question using a " \
                                      "single floating-point number with two decimal places."
    assert asked(one, "lmms-eval-cot") == (
        "Question: How wide is it? (Unit: $)\nHint: Please answer the question requiring a "
        "floating-point number with two decimal places and provide the final value, e.g., 1.23, "
        "1.34, 1.45, at the end.")
    assert asked(one, "vlmevalkit") == "Hint: ...\nQuestion: How wide is it?"


# -- rows that do not fit, prompts -----------------------------------------------------------------

@pytest.mark.parametrize(("name", "good", "change", "says"), [
    ("scienceqa", SCIENCE, {"answer": 3}, "field 'answer'.*0 to 2"),
    ("scienceqa", SCIENCE, {"choices": ["one"]}, "field 'choices'.*at least two"),
    ("scienceqa", SCIENCE, {"question": ""}, "field 'question'.*missing"),
    ("mmstar", STAR, {"answer": "F"}, "field 'answer'.*A, B, C, D"),
    ("mmstar", STAR, {"image": None}, "field 'image'.*missing"),
    ("docvqa", DOC, {"answers": None}, "field 'answers'.*validation split"),
    ("mathvista", problem(), {"answer": "four"}, "field 'answer'.*integer"),
    ("mathvista", problem(), {"answer": ""}, "field 'answer'.*testmini"),
    ("mathvista", problem(), {"question_type": "essay"}, "field 'question_type'.*free_form"),
    ("mathvista", problem(**CHOICE), {"answer": "B"}, "field 'answer'.*none of the choices"),
    ("chartqa", {"type": "human_test", "question": "?", "answer": "1", "image": picture()},
     {"answer": ""}, "field 'label'.*missing"),
])
def test_a_row_that_does_not_fit_is_named(tmp_path, name, good, change, says):
    with pytest.raises(SelfloopError, match=f"row 2.*{says}") as caught:
        samples_of(name, parquet(tmp_path, [good, good | change]))
    assert "\n" not in str(caught.value)


def test_vstar_without_options_is_named(tmp_path):
    with pytest.raises(SelfloopError, match=r"row 1.*no options"):
        vstar(tmp_path, text="What is it?")


@pytest.mark.parametrize("name", ["scienceqa", "mathvista", "mmstar", "chartqa", "docvqa", "vstar"])
def test_every_style_that_is_offered_can_be_laid_around_the_question(name, tmp_path):
    rows = {"scienceqa": SCIENCE, "mathvista": problem(), "mmstar": STAR, "docvqa": DOC,
            "chartqa": {"type": "human_test", "question": "?", "answer": "1", "image": picture()}}
    one = vstar(tmp_path)[0] if name == "vstar" else samples_of(
        name, parquet(tmp_path, [rows[name]]))[0]
    way = benchmark(name).way()
    assert way.styles
    for style in way.styles:
        assert len(words(one.model_copy(update={"prompt": styled(style, way.ask)(one).prompt}))) \
            > len(words(one))


# -- matchers --------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "letter"), [
    ("B", "B"), ("b", "B"), ("(b)", "B"), ("**B**", "B"), ("B) a dog", "B"), ("B: sure", "B"),
    ("Answer: B", "B"), ("The answer is (B).", "B"), (r"\boxed{B}", "B"), ("I think\nB", "B"),
    ("a dog", "B"), ("A dog", "B"), ("A cat", "A"), ("A bicycle", None), ("D. vitamin C", "D"),
    ("B or C", None), ("dog", None), ("", None), ("E", None), ("B because it barks", "B"),
    ("<answer>C</answer>", "C")])
def test_our_rule_for_options(text, letter):
    assert option(text, ANIMALS) == letter


@pytest.mark.parametrize(("text", "letter"), [
    ("B", "B"), ("The answer is B.", "B"), ("(B)", "B"), ("b", None), ("A dog", "A"),
    ("B is right since it clearly barks at night", None), ("A or B", None), ("a dog!", "B"),
    ("Z", "Z"), ("Cannot determine the answer", "Z"), ("", None),
    ("I can see that there is a dog on the left hand side, I am sure of it", None)])
def test_vlmevalkit_rule_for_options(text, letter):
    assert vlmevalkit_option(text, ANIMALS) == letter


@pytest.mark.parametrize(("text", "letter"), [
    ("B", "B"), ("B.", "B"), ("The answer is (B)", "B"), ("I choose C because of D", "D"),
    ("Cats are nice", "C"), ("A cat", "A"), ("Bicycle", "B"), ("", None), ("...", None),
    ("(A) or (B)", "B"), ("정답은 C", "C"), ("so, finally: D", "D")])
def test_lmms_eval_rule_for_options(text, letter):
    assert lmms_eval_option(text) == letter


@pytest.mark.parametrize(("text", "value"), [
    ("12", 12), ("-3.5", -3.5), ("1,234.5 km", 1234.5), ("3/4", 0.75), ("1.5 million", 1.5e6),
    ("14 %", 14), ("Answer: 7", 7), ("3e4", 3e4), (".5", 0.5), ("5-3", 3), ("-$5", -5),
    ("none", None), ("", None), ("x = 9", 9)])
def test_numbers(text, value):
    assert number(text) == value


@pytest.mark.parametrize(("text", "gold", "same"), [
    ("5 cm", "0.05 m", True), ("5 cm", "5", True), ("5 cm", "5 kg", False), ("5 apples", "5", True),
    ("2 hours", "120 min", True), ("about 5", "5", True), ("six", "6", True),
    ("six", "7", False), ("5", "many", None)])
def test_units(text, gold, same):
    assert same_quantity(text, gold) is same


def test_tolerance_is_relative_or_absolute():
    assert same_quantity("105", "100", relative=0.05) and not same_quantity("106", "100",
                                                                           relative=0.05)
    assert same_quantity("0.1", "0", absolute=0.1) and not same_quantity("0.1", "0", relative=0.5)


@pytest.mark.parametrize(("text", "gold", "same"), [
    ("[1,200]", "[1, 200]", True), ("1 and 2", "[1, 2]", True), ("[2, 1]", "[1, 2]", False),
    ("[1, 2, 3]", "[1, 2]", False), ("nothing", "[1]", False), ("1", "red", None)])
def test_lists(text, gold, same):
    assert same_numbers(text, gold) is same


def test_yes_no_says_one_of_them():
    said = [in_final_answer(t) for t in ("Yes.", "no, it is not", "yes or no", "", "Answer: no")]
    assert said == ["yes", "no", None, None, "no"]


def test_edit_distance_is_a_metric_and_agrees_with_the_definition():
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    rng = random.Random(0)
    for _ in range(60):
        a, b = ("".join(rng.choices("ab c", k=rng.randint(0, 5))) for _ in range(2))
        assert edit_distance(a, b) == slow(a, b) == edit_distance(b, a)


def test_anls_at_its_threshold():
    assert anls("ab", ["ax"]) == 0.5 and anls("abc", ["axy"]) == 0
    assert anls("X", ["y", "x"]) == 1 and anls("", [""]) == 1 and anls("a", []) == 0


def test_relaxed_keeps_the_tools_oddities():
    assert relaxed("10.5", "10") and not relaxed("10.51", "10")
    assert not relaxed("14%", "14") and relaxed("14%", "0.14") and not relaxed("1,200", "1200")
    assert not relaxed("0.0", "0") and relaxed("CAT", "cat") and not relaxed("nan", "3")


@pytest.mark.parametrize(("text", "plain"), [
    ("The dog.", "dog"), ("two cats", "2 cats"), ("dont", "don't"), ("1,000", "1000"),
    ("red/blue", "red blue"), ("a, b", "b"), ("3.5", "3.5"), ("somebody'd", "somebodyd"),
    ("none", "0"), ("it's\nan owl", "it's owl")])
def test_vqa_normalisation(text, plain):
    assert normal(text) == plain


def test_vqa_accuracy_leaves_each_person_out_once():
    people = ["yes"] * 2 + ["no"] * 8
    assert vqa_accuracy("no", people) == 1
    assert vqa_accuracy("yes", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_accuracy("maybe", people) == 0 and vqa_accuracy("yes", []) == 0
    assert vqa_accuracy("The dog!", ["dog"] * 10) == 1


@pytest.mark.parametrize(("cell", "texts"), [
    ("['a', \"b's\"]", ["a", "b's"]), ('["x"]', ["x"]), ("[2010, 2014]", ["[2010, 2014]"]),
    (["x", None, ""], ["x"]), (None, []), ("[open", ["[open"]), ("one", ["one"]),
    ("[__import__('os')]", ["[__import__('os')]"])])
def test_cells_hold_texts(cell, texts):
    assert texts_of(cell) == texts


@pytest.mark.parametrize(("text", "gold", "same"), [
    (r"\frac{1}{2}", "0.5", True), (r"The answer is $\frac{2}{4}$", r"\frac{1}{2}", True),
    ("x^2+1", "1+x^2", True), (r"\sqrt{4}", "2", True), ("7", "8", False), ("", "1", False),
    ("x^2+y^2+z^2+w^2", "w^2+x^2+y^2+z^2", True), ("9^{9^{9^9}}", "1", None),
    ("10^{99999}", "1", None), ("1" * (LONGEST + 1), "1", None)])
def test_formulas(text, gold, same):
    pytest.importorskip("math_verify")
    assert same_maths(text, gold) is same


def test_formulas_are_not_judged_without_math_verify_or_outside_the_main_thread(monkeypatch):
    import sys
    import threading

    found: list[bool | None] = []
    thread = threading.Thread(target=lambda: found.append(same_maths("1", "1")))
    thread.start()
    thread.join()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert [*found, same_maths("1", "1")] == [None, None]
