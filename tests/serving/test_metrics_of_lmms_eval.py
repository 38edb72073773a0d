"""Our copies of lmms-eval's rules against its own functions, on random answers.

Runs only where lmms_eval can be imported: an environment of its own, with selfloop's beside it.
"""

from __future__ import annotations

import random

import pytest

from selfloop.evaluate.benchmark import meta_text
from selfloop.evaluate.benchmarks import benchmark
from selfloop.evaluate.benchmarks.vstar import lmms_eval_letter
from selfloop.evaluate.matchers import anls, lmms_eval_option, relaxed
from selfloop.evaluate.vqa_accuracy import normal, vqa_accuracy
from selfloop.types import Message, Part, Sample

pytest.importorskip("lmms_eval")

PIECES = ("A", "B", "C", "D", "a", "b", "(A)", "(B)", "B.", "C)", "D:", "the answer is", "Answer",
          "option", "I choose", "because", "Cats", "dog", "is", "not", "or", ",", ".", "\n", "'",
          "The best option is", "12", "0.5", "14%", "1,000", "-3", "1e3", "don't", "dont", "two",
          "none", "it's", "red/blue", "?", "3.5.", "  ", "", "答案是", "nan", "inf", "%")


def texts(n: int, seed: int = 0) -> list[str]:
    """Random answers out of pieces that the rules care about, with and without spaces."""
    rng = random.Random(seed)
    return [rng.choice((" ", "")).join(rng.choices(PIECES, k=rng.randint(0, 7)))
            for _ in range(n)]


def sample(answer: str, **meta: object) -> Sample:
    return Sample(prompt=(Message(role="user", content=(Part(text="?"),)),), answer=answer,
                  meta=meta)


def test_letters_of_mmstar():
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

    for text in texts(5_000):
        assert (lmms_eval_option(text) or "") == extract_mcq_answer(text, list("ABCD")), text


def test_letters_of_vstar():
    from lmms_eval.tasks.vstar_bench.utils import extract_answer_letter

    for text in texts(20_000):
        assert lmms_eval_letter(text) == extract_answer_letter(text), text


def test_questions_of_vstar():
    from lmms_eval.tasks.vstar_bench.utils import vstar_doc_to_text

    post = "\nAnswer with the option's letter from the given choices directly."
    whole = f"Is the cat left of the dog?\n(A) left\n(B) right{post}"
    one = sample("A", whole=whole, stem="", options=["left", "right"])
    asked = benchmark("vstar").way("lmms-eval").ask(one).prompt[-1].content[-1].text
    assert asked == vstar_doc_to_text({"text": whole}, {"pre_prompt": "", "post_prompt": post})


def test_marks_and_questions_of_scienceqa():
    from lmms_eval.tasks.scienceqa.utils import sqa_doc_to_text, sqa_process_results

    way = benchmark("scienceqa").way("lmms-eval")
    choices = ["one", "two", "three"]
    for hint in ("", "Look."):
        doc = {"hint": hint, "question": "Which?", "choices": choices, "answer": 1}
        one = sample("B", stem="Which?", hint=hint, options=choices)
        post = "\nAnswer with the option's letter from the given choices directly."
        assert way.ask(one).prompt[-1].content[-1].text == sqa_doc_to_text(
            doc, {"format": "default", "pre_prompt": "", "post_prompt": post})
        for text in texts(5_000):
            assert way.mark(text, one).score == sqa_process_results(doc, [text])["exact_match"]


def test_relaxed_accuracy_of_chartqa():
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness

    for said, gold in zip(texts(20_000, 1), texts(20_000, 2), strict=True):
        assert relaxed(said, gold) == relaxed_correctness(said, gold), (said, gold)


def test_anls_of_docvqa():
    from lmms_eval.api.metrics import anls as theirs

    golds, said = texts(6_000, 3), texts(2_000, 4)
    for i, text in enumerate(said):
        accepted = golds[3 * i:3 * i + 1 + i % 3]
        assert anls(text, accepted, raw_lengths=True) == pytest.approx(
            theirs(accepted, [text])["anls"]), (text, accepted)


def test_normalisation_of_vqa():
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results

    processor = EvalAIAnswerProcessor()
    for text in texts(20_000, 5):
        assert normal(text, eval_ai=True) == processor(text), text
        bare = text.replace("\n", " ").replace("\t", " ").strip()
        assert normal(text) == processor.process_digit_article(
            processor.process_punctuation(bare)), text
    rng = random.Random(6)
    for text in texts(500, 7):
        people = [text if rng.random() < 0.4 else rng.choice(PIECES) for _ in range(10)]
        doc = {"answers": list(people), "question_id": 1}
        assert vqa_accuracy(text, people, eval_ai=True) == pytest.approx(
            textvqa_process_results(doc, [text])["exact_match"])


KINDS = (
    {"kind": "multi_choice", "answer_type": "text", "options": ["12", "0.5", "dog"],
     "precision": None},
    {"kind": "free_form", "answer_type": "integer", "options": [], "precision": None},
    {"kind": "free_form", "answer_type": "float", "options": [], "precision": 1},
    {"kind": "free_form", "answer_type": "float", "options": [], "precision": 2.0})


@pytest.fixture
def theirs(monkeypatch):
    """lmms-eval's evaluator. Its module makes a client of the judge when imported, which wants a
    key to exist; no request is made."""
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    from lmms_eval.tasks.mathvista.mathvista_evals import MathVistaEvaluator

    return MathVistaEvaluator.__new__(MathVistaEvaluator)


def problem(meta: dict, answer: str) -> dict:
    return {"question_type": meta["kind"], "answer_type": meta["answer_type"], "question": "Q?",
            "choices": meta["options"], "precision": meta["precision"] or 0, "answer": answer,
            "query": "Q?", "unit": "cm", "caption": "", "ocr": ""}


@pytest.mark.parametrize("meta", KINDS, ids=lambda m: f"{m['answer_type']} {m['precision']}")
def test_marks_of_mathvista(meta, theirs, monkeypatch):
    """What we judge, lmms-eval judges alike; where we abstain, it asks its judge."""
    def judge(prompt, **_):
        asked.append(prompt)
        return prompt.removesuffix("Extracted answer: ").strip().rsplit("\n\n", 1)[-1]

    asked: list[str] = []
    monkeypatch.setattr(theirs, "get_chat_response", judge)
    answer = {"text": "0.5", "integer": "12", "float": "0.5"}[meta["answer_type"]]
    one, found = sample(answer, **meta), problem(meta, answer)
    way = benchmark("mathvista").way("lmms-eval")
    extra = ["12", "0.5", "dog", "B", "(B)", "0.46", " 12 ", "0.50", "", "(b)"]
    judged = 0
    for text in [*extra, *texts(2_000, 8)]:
        asked.clear()
        score, said = way.mark(text, one).score, text.strip()
        extracted = theirs.extract_answer(said, found)
        if score is None:
            assert asked, text
            continue
        right = theirs.safe_equal(theirs.normalize_extracted_answer(
            extracted, found["choices"], meta["kind"], meta["answer_type"], found["precision"]),
            answer)
        judged += 1
        assert score == right, text
    assert judged > 100


@pytest.mark.parametrize("meta", KINDS[:3], ids=lambda m: m["answer_type"])
@pytest.mark.parametrize(("rules", "shot"), [("lmms-eval", "format-prompt"),
                                             ("lmms-eval-cot", "step-by-step")])
def test_questions_of_mathvista(meta, rules, shot, theirs):
    one = sample("0.5", stem="Q? (Unit: cm)", **meta)
    assert meta_text(one, "stem") and benchmark("mathvista").way(rules).ask(
        one).prompt[-1].content[-1].text == theirs.create_one_query(
            problem(meta, "0.5"), shot_type=shot)
