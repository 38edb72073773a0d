"""POPE: does the model see what is not there? Li et al. 2023, arXiv 2305.10355.

Yes/no questions about objects in COCO pictures; half are there. The absent ones are drawn at
random, by frequency (popular) or by co-occurrence with what is there (adversarial).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfloop.evaluate.benchmark import (
    OWN,
    Benchmark,
    Mark,
    Marked,
    Tally,
    Way,
    as_it_is,
    ending_with,
    needed,
    scored,
)
from selfloop.evaluate.benchmarks.shared_pictures import with_shared_pictures
from selfloop.evaluate.benchmarks.yes_no import among_words, in_final_answer
from selfloop.formats import BadRow
from selfloop.sources import Row, Rows, Source, jsonl_rows, source_of
from selfloop.types import Sample, Verdict

SHORT = "Answer the question using a single word or phrase."


def read(path: Path, split: str | None) -> Source:
    """The authors' `coco_pope_random.json` (one object a line), or rows with the same fields.

    The split is read off the file's name where rows do not say their `category`.
    """
    if path.suffix != ".json":
        return with_shared_pictures(source_of(path, split))
    kind = next((k for k in ("random", "popular", "adversarial") if k in path.stem), "")

    def rows() -> Rows:
        for number, row in jsonl_rows(path):
            yield number, row if isinstance(row, str) else {"category": kind, **row}

    return Source(str(path), path.absolute().parent, rows)


def row(found: Row) -> Row:
    """`text` (or `question`) and `label` (or `answer`), yes or no; `image` a name or a picture."""
    text = found.get("text") or found.get("question")
    label = str(found.get("label") or found.get("answer") or "").strip().lower()
    if not text:
        needed(found, "text", "label", "image")
    if label not in ("yes", "no"):
        raise BadRow("label", f"{label or 'nothing'!r}", 'expected "yes" or "no"')
    needed(found, "image")
    name = found.get("image_source") or found["image"]
    splits = str(found.get("category") or "").split(",")  # VLMEvalKit asks each question once
    made: Row = {"prompt": str(text), "images": [found["image"]], "answer": label,
                 "task": splits if len(splits) > 1 else splits[0]}
    named = isinstance(name, str) and len(name) < 256  # longer: the picture itself
    return made | ({"cluster": name} if named else {})


def own(text: str, sample: Sample) -> Verdict:
    """Our rule: the answer says yes or no and not both; see `yes_no.in_final_answer`."""
    found = in_final_answer(text)
    return scored(found == sample.answer, found)


def as_lmms_eval(text: str, sample: Sample) -> Verdict:
    """lmms-eval's rule: the whole answer, stripped and lower case, is the word; "Yes." is wrong."""
    found = text.strip().lower()
    return scored(found == sample.answer, found if found in ("yes", "no") else None)


def as_authors(text: str, sample: Sample) -> Verdict:
    """The authors' rule (AoiDragon/POPE, evaluate.py): "no" or "not" among the words of the first
    sentence, commas removed, is no; everything else is yes, an empty answer too."""
    words = text.split(".")[0].replace(",", "").split(" ")
    found = "no" if {"No", "not", "no"} & set(words) else "yes"
    return scored(found == sample.answer, found)


def as_vlmevalkit(text: str, sample: Sample) -> Verdict:
    """VLMEvalKit's rule: "yes" or "no" among the words; where they say neither, or both, it asks
    a language model, and nothing is said here."""
    found = among_words(text)
    return scored(None if found is None else found == sample.answer, found)


def count(marked: Sequence[Marked]) -> Tally:
    """Accuracy, and precision, recall and F1 of "yes"; `yes_rate` and `unparsed` beside them.

    An answer that says neither is wrong: a missed object where the gold is yes (a false negative)
    and nothing where it is no, except for accuracy. Unjudged answers are left out.
    """
    rows = [(s.answer == "yes", a.parsed) for s, a in marked if a.score is not None]
    hit = sum(gold and p == "yes" for gold, p in rows)
    false = sum(not gold and p == "yes" for gold, p in rows)
    missed = sum(gold and p != "yes" for gold, p in rows)
    n, right = float(len(rows)), sum((p == "yes") == gold and p is not None for gold, p in rows)
    return {"accuracy": (right, n), "precision": (hit, hit + false), "recall": (hit, hit + missed),
            "f1": (2 * hit, 2 * hit + false + missed), "yes_rate": (hit + false, n),
            "unparsed": (sum(p is None for _, p in rows), n)}


def count_as_lmms_eval(marked: Sequence[Marked]) -> Tally:
    """lmms-eval's definitions: only a "no" misses an object, only a "yes" invents one, and
    `yes_rate` is the share of gold yes (which says nothing about the model)."""
    rows = [(s.answer == "yes", a.parsed) for s, a in marked if a.score is not None]
    hit = sum(gold and p == "yes" for gold, p in rows)
    false = sum(not gold and p == "yes" for gold, p in rows)
    missed = sum(gold and p == "no" for gold, p in rows)
    return count(marked) | {
        "recall": (hit, hit + missed), "f1": (2 * hit, 2 * hit + false + missed),
        "yes_rate": (sum(gold for gold, _ in rows), len(rows))}


def _way(mark: Mark, extractor: str, fallback: str, tokens: int, **more: Any) -> Way:
    return Way(**{"ask": ending_with(SHORT), "mark": mark, "extractor": extractor,
                  "fallback": fallback, "max_new_tokens": tokens, **more})


BENCHMARK = Benchmark(
    name="pope", title="POPE", source="arXiv 2305.10355; github.com/AoiDragon/POPE",
    layout="coco_pope_{random,popular,adversarial}.json, one {question_id, image, text, label} a "
           "line, pictures in COCO's val2014 folder; or lmms-lab/POPE's columns",
    read=read, row=row, count=count,
    ways={
        OWN: _way(own, "yes or no in the final answer, once", "neither or both is wrong", 64),
        "lmms-eval": _way(as_lmms_eval, "the whole answer, stripped, lower case",
                          "any other text is wrong", 128, count=count_as_lmms_eval),
        "vlmevalkit": _way(as_vlmevalkit, "yes or no among the words", "unjudged", 128,
                           ask=as_it_is, judge="a language model, where the words say neither"),
        "authors": _way(as_authors, "no/not in the first sentence is no", "anything else is yes",
                        64),
    },
)
