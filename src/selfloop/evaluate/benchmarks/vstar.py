"""V*: small things in large pictures, their attributes and positions. Wu and Xie 2024, arXiv
2312.14135."""

from __future__ import annotations

import re

from selfloop.evaluate.benchmark import (
    OWN,
    Benchmark,
    Way,
    mean_score,
    meta_text,
    needed,
    reworded,
    scored,
)
from selfloop.evaluate.choices import (
    DIRECTLY,
    is_table,
    lettered,
    options_of,
    own_way,
    question,
    read,
    table_row,
    vlmevalkit_way,
)
from selfloop.formats import BadRow
from selfloop.sources import Row
from selfloop.types import Context, Sample, Verdict

_OPTION = re.compile(r"\(([A-D])\)\s*([^()]+?)(?=\s*\([A-D]\)|$)")


def row(found: Row) -> Row:
    """`text` (the question, its options as "(A) ..." and the authors' request), `label` a letter,
    `image` a path below the benchmark's folder, `category`; or VLMEvalKit's table."""
    kind = {"task": str(found.get("category") or "")}
    if is_table(found):
        needed(found, "image")
        return table_row(found, whole="", **kind)
    needed(found, "text", "label", "image")
    whole = str(found["text"])
    body = whole.removesuffix(DIRECTLY).rstrip()
    options = [text.strip() for _, text in _OPTION.findall(body)]
    if len(options) < 2:
        raise BadRow("text", "no options in it", "expected lines such as (A) red and (B) blue")
    return question(found, stem=body.split("(A)")[0].strip(), options=options,
                    answer=str(found["label"]).strip().upper(), whole=whole, **kind)


def lmms_eval_ask(sample: Sample) -> Context:
    """Lettered options, one a line, and the request.

    The published text ends in that request already, and lmms-eval reads it as part of the last
    option: the model is told twice.
    """
    whole = meta_text(sample, "whole")
    options = [text.strip() for _, text in _OPTION.findall(whole)]
    if options:
        whole = f"{whole.split('(A)')[0].strip()}\n{lettered(options[:4])}"
    elif not whole:
        whole = f"{meta_text(sample, 'stem')}\n{lettered([*options_of(sample).values()])}"
    return reworded(sample, f"{whole}\n{DIRECTLY}")


_PLACES = (
    re.compile(r"^([A-D])"), re.compile(r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])"),
    re.compile(r"\(([A-D])\)"), re.compile(r"([A-D])\s*[.)\]]"),
    re.compile(r"(?:^|\s)([A-D])(?:\s|$)"))


def lmms_eval_letter(text: str) -> str | None:
    """The letter as lmms-eval's own rule for V* finds it, in the answer in capitals.

    It looks first at the first character, so "Bicycles are red" is B and "cat" is C.
    """
    said = text.strip().upper()
    for place in _PLACES:
        if found := place.search(said):
            return found[1]
    letters = re.findall(r"[A-D]", said)
    return letters[0] if len(letters) == 1 else None


def lmms_eval_mark(text: str, sample: Sample) -> Verdict:
    """Whether that letter is the right one."""
    found = lmms_eval_letter(text)
    return scored(found == sample.answer, found)


BENCHMARK = Benchmark(
    name="vstar", title="V* Bench", source="arXiv 2312.14135; github.com/penghao-wu/vstar",
    layout="the authors' test_questions.jsonl, {image, text, category, label, question_id} a line, "
           "pictures in direct_attributes/ and relative_position/ beside it; the same columns in "
           "lmms-lab/vstar-bench; or VLMEvalKit's VStarBench.tsv",
    read=read, row=row, count=mean_score,
    ways={
        OWN: own_way(),
        "lmms-eval": Way(ask=lmms_eval_ask, mark=lmms_eval_mark, max_new_tokens=16,
                         extractor="the first character if it is A to D, else a letter after "
                                   '"answer", in brackets, before a full stop, or alone',
                         fallback="an answer without such a letter is wrong"),
        "vlmevalkit": vlmevalkit_way(),
    },
    notes=("the authors' own script compares the likelihoods of the options, which needs a model "
           "and not an answer; it is not among the ways",),
)
