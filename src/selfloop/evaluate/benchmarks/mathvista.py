"""MathVista: mathematics in pictures, with typed answers. Lu et al. 2024, arXiv 2310.02255."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfloop.evaluate.benchmark import (
    OWN,
    Ask,
    Benchmark,
    Way,
    mean_score,
    meta_text,
    needed,
    reworded,
    scored,
    words,
)
from selfloop.evaluate.benchmarks.shared_pictures import with_shared_pictures
from selfloop.evaluate.cells import texts_of
from selfloop.evaluate.choices import ASK, DIRECTLY, STYLES, lettered, options_of
from selfloop.evaluate.matchers import (
    edit_distance,
    number,
    numbers,
    option,
    same_numbers,
    vlmevalkit_option,
)
from selfloop.formats import BadRow
from selfloop.sources import Row, Rows, Source, source_of
from selfloop.types import Context, Sample, Verdict

_KINDS = ("multi_choice", "free_form")
_TYPES = ("text", "integer", "float", "list")
_ASKED = {1: ("one decimal place", "1.2, 1.3, 1.4"), 2: ("two decimal places", "1.23, 1.34, 1.45")}
_STEM = re.compile(r"Question: (.*?)\s*(?:\nChoices:|$)", re.S)


# -- reading ---------------------------------------------------------------------------------------

def read(path: Path, split: str | None) -> Source:
    """Rows, or the authors' testmini.json: one object of {pid: problem}."""
    found = with_shared_pictures(source_of(path, split))
    if path.suffix != ".json":
        return found

    def rows() -> Rows:
        problems = json.loads(path.read_bytes())
        if not isinstance(problems, dict) or not all(isinstance(p, dict)
                                                     for p in problems.values()):
            yield from found.rows()
            return
        for place, (pid, problem) in enumerate(problems.items(), 1):
            yield place, {"pid": pid, **problem}

    return Source(found.name, found.home, rows)


def row(found: Row) -> Row:
    """`question`, `choices`, `unit`, `precision`, `answer`, `question_type`, `answer_type`,
    `metadata`, `query`, `decoded_image` (or `image`); in VLMEvalKit's table `question` is the whole
    query and `task` and `skills` are columns.

    Raises BadRow for an unknown type, or where the answer does not fit its type.
    """
    needed(found, "question", "question_type", "answer_type")
    kind, typed = str(found["question_type"]), str(found["answer_type"])
    if kind not in _KINDS or typed not in _TYPES:
        raise BadRow("question_type", f"{kind!r} with answer_type {typed!r}",
                     f"expected {' or '.join(_KINDS)}, and one of {', '.join(_TYPES)}")
    if found.get("answer") in (None, ""):
        raise BadRow("answer", "there is none, as in the test split",
                     "use the testmini split: only its answers are public")
    answer, options = str(found["answer"]), texts_of(found.get("choices"))
    _check(kind, typed, answer, options)
    about = found.get("metadata")
    info = about if isinstance(about, Mapping) else found
    whole = str(found["question"])
    stem = _STEM.search(whole)
    text = stem[1] if stem and "metadata" not in found else whole
    unit = f" (Unit: {found['unit']})" if found.get("unit") else ""
    made: Row = {
        "stem": text + unit, "options": options if kind == "multi_choice" else [],
        "prompt": f"{text}{unit}\n{lettered(options)}".rstrip(), "answer": answer,
        "images": [p for p in (found.get("decoded_image") or found.get("image"),) if p],
        "kind": kind, "answer_type": typed, "precision": found.get("precision"),
        "task": str(info.get("task") or ""), "origin": str(info.get("source") or ""),
        "skills": texts_of(info.get("skills")), "topic": str(info.get("category") or ""),
        "grade": str(info.get("grade") or ""), "setting": str(info.get("context") or "")}
    published = found.get("query") or (whole if "metadata" not in found else None)
    return made | {"published": str(published or authors_query(made))}


def _check(kind: str, typed: str, answer: str, options: list[str]) -> None:
    if kind == "multi_choice" and answer not in options:
        raise BadRow("answer", f"{answer!r} is none of the choices",
                     f"expected the text of one of {options}")
    reads: dict[str, Callable[[str], Any]] = {"integer": int, "float": float}
    if kind == "free_form" and typed in reads:
        try:
            reads[typed](answer)
        except ValueError:
            raise BadRow("answer", f"{answer!r}", f"expected answer_type {typed!r}") from None


# -- asking ----------------------------------------------------------------------------------------

def own_ask(sample: Sample) -> Context:
    """The question, its options one a line, and what kind of answer is wanted."""
    wanted = {"integer": "Answer with a whole number.",
              "list": "Answer with a list of numbers, such as [1, 2]."}
    typed, places = meta_text(sample, "answer_type"), _places(sample)
    line = ASK if _is_choice(sample) else wanted.get(typed) or (
        f"Answer with a number with {places} decimal place{'s' * (places != 1)}.")
    return reworded(sample, f"{words(sample)}\n{line}")


def _is_choice(sample: Sample) -> bool:
    return meta_text(sample, "kind") == "multi_choice"


def _places(sample: Sample) -> int:
    """Decimal places that the answer is rounded to: published ones, else the gold answer's."""
    published = sample.meta.get("precision")
    if published not in (None, ""):
        return int(float(str(published)))
    return len(str(sample.answer).partition(".")[2])


def hint(made: Mapping[str, Any], places: int) -> str:
    """The authors' sentence on what answer is wanted."""
    if made["kind"] == "multi_choice":
        return ("Hint: Please answer the question and provide the correct option letter, e.g., "
                "A, B, C, D, at the end.")
    asked = {"integer": ("an integer answer", "value, e.g., 1, 2, 3"),
             "list": ("a Python list as an answer",
                      "list, e.g., [1, 2, 3], [1.2, 1.3, 1.4]")}.get(str(made["answer_type"]))
    if asked is None:
        name, examples = _ASKED.get(places, _ASKED[2])
        asked = (f"a floating-point number with {name}", f"value, e.g., {examples}")
    return (f"Hint: Please answer the question requiring {asked[0]} and provide the final "
            f"{asked[1]}, at the end.")


def authors_query(made: Mapping[str, Any]) -> str:
    """The published `query`: hint, question, choices."""
    places = int(float(made["precision"])) if made.get("precision") not in (None, "") else 2
    return "\n".join([hint(made, places), *_question_lines(made)])


def _question_lines(made: Mapping[str, Any]) -> list[str]:
    options = lettered(made["options"], "({letter}) {text}")
    return [f"Question: {made['stem']}", *(["Choices:", options] if options else [])]


def published_ask(sample: Sample) -> Context:
    """The published `query` as it is: VLMEvalKit."""
    return reworded(sample, meta_text(sample, "published"))


def step_by_step_ask(sample: Sample) -> Context:
    """Question, choices, then the hint: lmms-eval's mathvista_testmini_cot."""
    return reworded(sample, "\n".join([*_question_lines(sample.meta),
                                       hint(sample.meta, _places(sample))]))


def format_ask(sample: Sample) -> Context:
    """Question, lettered choices, a short request: lmms-eval's mathvista_testmini_format."""
    places = _ASKED.get(_places(sample), _ASKED[2])[0]
    line = DIRECTLY if _is_choice(sample) else {
        "integer": "Answer the question using a single integer number.",
        "list": "Answer the question using a Python list.",
    }.get(meta_text(sample, "answer_type"),
          f"Answer the question using a single floating-point number with {places}.")
    options = lettered([*options_of(sample).values()])
    return reworded(sample, "\n".join(x for x in (meta_text(sample, "stem"), options, line) if x))


# -- marking ---------------------------------------------------------------------------------------

def own_mark(text: str, sample: Sample) -> Verdict:
    """Our rule: the option named, or the last number of the final answer, rounded as asked."""
    gold, typed = str(sample.answer), meta_text(sample, "answer_type")
    if _is_choice(sample):
        options = options_of(sample)
        letter = option(text, options)
        return scored(letter is not None and options[letter] == gold, letter)
    if typed == "list":
        return scored(same_numbers(text, gold), str(numbers(text) or ""))
    if typed not in ("integer", "float"):
        return scored(None, None)
    said = number(text)
    if said is None:
        return scored(False, None)
    rounded = round(said, _places(sample)) if typed == "float" else said
    return scored(abs(rounded - float(gold)) < 1e-9, f"{rounded:g}")


def _bare(read: Callable[[str], Any], text: str) -> Any:
    """The value of a text that is nothing but a value; None for any other."""
    try:
        return read(text)
    except (ValueError, OverflowError):
        return None


def lmms_eval_mark(text: str, sample: Sample) -> Verdict:
    """lmms-eval where it needs no judge: the text of a choice, or nothing but a number.

    A letter alone counts too: a judge that is to extract the answer from it can only give it back.
    Floats are rounded by the published precision; where that is itself a float (2.0) rounding
    fails there, and the answer is wrong whatever it says.
    """
    said, gold = text.strip(), str(sample.answer)
    typed, options = meta_text(sample, "answer_type"), options_of(sample)
    if _is_choice(sample):
        letter = said.strip("()").upper() if re.fullmatch(r"[A-Z]|\([A-Za-z]\)", said) else ""
        if letter in options:
            return scored(options[letter] == gold, options[letter])
        if said and said not in options.values():
            return scored(None, said)
        nearest = min(options.values(), key=lambda choice: edit_distance(said, choice))
        return scored(nearest == gold, nearest)
    if not said:
        return scored(False, None)
    read: Callable[[str], Any] | None = {"integer": int, "float": float}.get(typed)
    value = _bare(read, said) if read else None
    if value is None:
        return scored(None, said)
    precision: Any = sample.meta.get("precision")
    if typed == "float":
        rounds = not isinstance(precision, float) and math.isfinite(value)
        value = round(value, precision) if rounds else None
    return scored(str(value) == gold, str(value))


def vlmevalkit_mark(text: str, sample: Sample) -> Verdict:
    """VLMEvalKit where it needs no judge: an option that its matching finds, or a bare number.

    An answer that should be a list is always wrong there: it is compared with the text "None".
    """
    typed = meta_text(sample, "answer_type")
    if _is_choice(sample):
        options = options_of(sample)
        found = vlmevalkit_option(text, options)
        return scored(None if found is None else options.get(found) == sample.answer, found)
    if typed not in ("integer", "float"):
        return scored(False, None)
    read: Callable[[str], Any] = int if typed == "integer" else float
    value = _bare(read, text)
    return scored(None if value is None else value == read(str(sample.answer)),
                  None if value is None else str(value))


def _lmms_eval(ask: Ask) -> Way:
    return Way(ask=ask, mark=lmms_eval_mark, max_new_tokens=16384,
               judge="gpt-4o-2024-11-20 extracts the answer; here unjudged",
               extractor="a bare number, letter or choice; anything else is the judge's",
               fallback="an empty answer is wrong, or the choice nearest to no text")


BENCHMARK = Benchmark(
    name="mathvista", title="MathVista", source="arXiv 2310.02255; github.com/lupantech/MathVista",
    layout="AI4Math/MathVista's columns pid, question, decoded_image, choices, unit, precision, "
           "answer, question_type, answer_type, metadata, query (split testmini), the authors' "
           "testmini.json, or VLMEvalKit's MathVista_MINI.tsv",
    read=read, row=row, count=mean_score,
    by=("task", "origin", "skills", "topic", "answer_type", "grade", "setting"),
    ways={
        OWN: Way(ask=own_ask, mark=own_mark, styles=STYLES,
                 extractor="the option named, or the last number of the final answer, rounded to "
                           "the published precision"),
        "lmms-eval": _lmms_eval(format_ask),
        "lmms-eval-cot": _lmms_eval(step_by_step_ask),
        "vlmevalkit": Way(ask=published_ask, mark=vlmevalkit_mark, max_new_tokens=512,
                          extractor="an option letter or text by VLMEvalKit's matching, or a bare "
                                    "number",
                          judge="gpt-4o-mini extracts the answer; here unjudged",
                          fallback="a refusal is wrong, and so is every answer that is a list"),
    },
)
