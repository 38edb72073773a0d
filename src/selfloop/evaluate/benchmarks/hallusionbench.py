"""HallusionBench: does the model believe the picture, or what it has read?

Guan et al. 2023, arXiv 2310.14566. Yes/no questions in groups: the same question on a picture and
on changed copies of it (or on none), and several questions on one picture. VD: the question needs
the picture; VS: the picture supplements what could be known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

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
from selfloop.evaluate.benchmarks import yes_no
from selfloop.evaluate.benchmarks.shared_pictures import with_shared_pictures
from selfloop.formats import BadRow
from selfloop.sources import Row, Source, source_of
from selfloop.types import Sample, Verdict

_GOLD = {"1": "yes", "0": "no", "yes": "yes", "no": "no"}
_INDEX = re.compile(r"(VD|VS)_([^_]+)_(\d)_(\d+)_(\d+)_(\d+)")
_UNSURE = re.compile(
    r"\b(?:cannot|can ?not|can't|could not|couldn't|unable|unclear|unsure|not sure|uncertain|"
    r"don't know|do not know|not enough|insufficient|no (?:image|picture|figure|chart|map|table)|"
    r"not (?:provided|given|possible))\b", re.I)


# -- rows ---------------------------------------------------------------------------------------

def read(path: Path, split: str | None) -> Source:
    """Any of the files; a table's cell that points at another row's picture is filled in."""
    return with_shared_pictures(source_of(path, split))


def row(found: Row) -> Row:
    """The authors' fields (`gt_answer` 1 or 0), or VLMEvalKit's (`index` names the rest)."""
    return _tool_row(found) if "gt_answer" not in found and "index" in found else _row(found)


def _row(found: Row) -> Row:
    needed(found, "category", "subcategory", "set_id", "figure_id", "question_id", "question",
           "gt_answer")
    seen = str(found.get("visual_input", "1")) != "0"
    picture = found.get("image") or found.get("filename")
    if seen and not picture:
        raise BadRow("filename", "missing, though visual_input says that there is a picture",
                     "expected a path such as ./hallusion_bench/VD/illusion/0_0.png")
    return _made(found, str(found["category"]), str(found["subcategory"]),
                 [str(found[name]) for name in ("set_id", "figure_id", "question_id")],
                 str(found["gt_answer"]), picture if seen else None)


def _tool_row(found: Row) -> Row:
    needed(found, "index", "question", "answer")
    parts = _INDEX.fullmatch(str(found["index"]))
    if parts is None:
        raise BadRow("index", repr(found["index"]), "expected CATEGORY_SUBCATEGORY_VISUAL_SET_"
                     "FIGURE_QUESTION, such as VD_illusion_1_0_0_2")
    category, sub, _, *groups = parts.groups()
    return _made(found, category, sub, groups, str(found["answer"]),
                 found.get("image") or found.get("image_path"))


def _made(found: Row, category: str, sub: str, groups: Sequence[str], gold: str, picture: object
          ) -> Row:
    if category not in ("VD", "VS"):
        raise BadRow("category", repr(category), "expected VD or VS")
    if gold.lower() not in _GOLD:
        raise BadRow("gt_answer" if "gt_answer" in found else "answer", repr(gold),
                     "expected 1 or 0, Yes or No")
    set_id, figure, question = groups
    return {"prompt": str(found["question"]), "images": [] if picture is None else [picture],
            "answer": _GOLD[gold.lower()], "task": category, "subcategory": sub,
            "figure_id": figure, "question_id": question, "seen": picture is not None,
            "cluster": f"{category}/{sub}/{set_id}"}


# -- marking ------------------------------------------------------------------------------------

def _supplement(sample: Sample) -> bool:
    """A VS question asked without its picture: there, not knowing is right."""
    return sample.meta.get("task") == "VS" and str(sample.meta.get("figure_id")) == "0"


def own(text: str, sample: Sample) -> Verdict:
    """Our rule: yes or no in the final answer, once; a VS question without a picture may also be
    answered by saying that it cannot be known, as the authors allow."""
    if _supplement(sample) and _UNSURE.search(text):
        return scored(True, "unsure")
    found = yes_no.in_final_answer(text)
    return scored(found == sample.answer, found)


def _or_unjudged(said: Callable[[str], str | None]) -> Mark:
    """What the words say; where they say neither, only the tool's judge could tell."""
    def marked(text: str, sample: Sample) -> Verdict:
        found = said(text)
        return scored(None if found is None else found == sample.answer, found)
    return marked


# -- counting -----------------------------------------------------------------------------------

def count(marked: Sequence[Marked]) -> Tally:
    """The figures of one or more whole sets of questions.

    `aAcc`: answers. `fAcc`: pictures with all their questions right. `qAcc`: questions right on
    all their pictures, the one asked without included. `easy`, `hard`: the same over the original
    pictures and over the changed ones. A group with an unjudged answer and no wrong one is left
    out.
    """
    judged = [a.score for _, a in marked if a.score is not None]
    original = [(s, a) for s, a in marked if _figure(s) == "0"]
    changed = [(s, a) for s, a in marked if _figure(s) != "0"]
    pictured = [(s, a) for s, a in marked if not _supplement(s)]
    return {"aAcc": (sum(judged), len(judged)),
            "fAcc": _whole(pictured, "figure_id"), "qAcc": _whole(marked, "question_id"),
            "easy": _whole(original, "question_id"), "hard": _whole(changed, "question_id"),
            "unparsed": (sum(a.parsed is None for _, a in marked if a.score is not None),
                         len(judged))}


def _figure(sample: Sample) -> str:
    return str(sample.meta.get("figure_id"))


def _whole(marked: Iterable[Marked], name: str) -> tuple[float, float]:
    """(groups that are right throughout, groups that could be told) by a field of `meta`."""
    groups: dict[tuple[str, str], list[float | None]] = {}
    for sample, answer in marked:
        groups.setdefault((sample.cluster, str(sample.meta.get(name))), []).append(answer.score)
    told = [0.0 not in scores for scores in groups.values() if 0.0 in scores or None not in scores]
    return sum(told), len(told)


def derived(figures: Mapping[str, float]) -> dict[str, float]:
    """`overall`: the mean of aAcc, fAcc and qAcc, as VLMEvalKit's leaderboard ranks by."""
    parts = [figures[name] for name in ("aAcc", "fAcc", "qAcc") if name in figures]
    return {"overall": sum(parts) / 3} if len(parts) == 3 else {}


_LMMS = ("GPT-4 compares every answer with a written reference (correct, incorrect, unclear); here "
         "the words decide, and what they do not say is left unjudged")

BENCHMARK = Benchmark(
    name="hallusionbench", title="HallusionBench",
    source="arXiv 2310.14566; github.com/tianyi-lab/HallusionBench",
    layout="HallusionBench.json (category, subcategory, visual_input, set_id, figure_id, "
           "question_id, question, gt_answer, filename), pictures in hallusion_bench/; "
           "lmms-lab/HallusionBench's columns; or VLMEvalKit's HallusionBench.tsv",
    read=read, row=row, count=count, main="aAcc", by=("task", "subcategory"), derived=derived,
    ways={
        OWN: Way(ask=ending_with("Please answer yes or no."), mark=own, max_new_tokens=64,
                 extractor="yes or no in the final answer, once",
                 fallback="neither or both is wrong; without a picture, VS questions may be "
                          "answered by not knowing",
                 styles=("direct", "chain of thought", "describe then answer",
                         "see, think, answer")),
        "lmms-eval": Way(ask=as_it_is, mark=_or_unjudged(yes_no.in_final_answer),
                         max_new_tokens=128, judge=_LMMS, fallback="left unjudged",
                         extractor="yes or no in the answer, once, in place of the judge"),
        "vlmevalkit": Way(ask=as_it_is, mark=_or_unjudged(yes_no.among_words),
                          max_new_tokens=128, extractor="yes or no among the words",
                          judge="the tool asks a language model where the words say neither; "
                                "such answers are left unjudged here",
                          fallback="left unjudged; the tool without its judge counts it wrong"),
    },
    notes=("both tools leave out the questions without a picture; a file that holds them is scored "
           "with them",),
)
