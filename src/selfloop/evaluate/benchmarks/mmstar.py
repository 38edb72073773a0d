"""MMStar: 1,500 questions that cannot be answered without the picture. Chen et al. 2024, arXiv
2403.20330."""

from __future__ import annotations

import re
from collections.abc import Mapping

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
    is_table,
    lettered,
    own_way,
    question,
    read,
    table_row,
    vlmevalkit_way,
)
from selfloop.evaluate.matchers import lmms_eval_option
from selfloop.formats import BadRow
from selfloop.sources import Row
from selfloop.types import Context, Sample, Verdict

_DIRECTLY = "Answer with the option's letter from the given choices directly"  # no full stop
_YES_NO = " Please answer yes or no."
_START = re.compile(r"(?:^|(?<=[\s,]))\(?([A-H])(?:[:.]|\))\s*")


def row(found: Row) -> Row:
    """`question` with its options inside ("Options: A: ..., B: ..."), `answer` a letter, `image`,
    `category`, `l2_category`; or VLMEvalKit's table, with the options in columns."""
    needed(found, "question", "answer", "image")
    info = found.get("meta_info")
    origin = info.get("source") if isinstance(info, Mapping) else found.get("bench")
    more = {"task": str(found.get("category") or ""), "origin": str(origin or ""),
            "skill": str(found.get("l2_category") or found.get("l2-category") or "")}
    if is_table(found):
        return table_row(found, whole=_asked_by_table(found), **more)
    text, answer = str(found["question"]), str(found["answer"]).strip().upper()
    more["whole"] = text.strip().replace(_YES_NO, "")
    stem, options = split_options(text)
    if options:
        return question(found, stem=stem, options=options, answer=answer, **more)
    if answer not in ("A", "B", "C", "D"):
        raise BadRow("answer", f"{answer!r}", "expected one of A, B, C, D")
    # Options that cannot be told apart stay in the question, and are not read from answers.
    return {"prompt": text, "images": [found["image"]], "answer": answer, "stem": text, **more}


def split_options(text: str) -> tuple[str, list[str]]:
    """A question and the options written into it; no options unless they begin at A, go on in
    order, and are at least two."""
    head, _, tail = text.partition("Options:")
    starts: list[re.Match[str]] = []
    for match in _START.finditer(tail):
        if match[1] == chr(ord("A") + len(starts)):
            starts.append(match)
    if len(starts) < 2 or tail[:starts[0].start()].strip():
        return text, []
    ends = [match.start() for match in starts[1:]] + [len(tail)]
    return head.strip(), [tail[match.end():end].strip().rstrip(",").strip()
                          for match, end in zip(starts, ends, strict=True)]


def _asked_by_table(found: Row) -> str:
    """What lmms-eval's mmstar_oc asks of a table's row, up to its last line."""
    options = [str(found[c]) for c in "ABCDEFGH" if found.get(c) not in (None, "")]
    stem = str(found["question"]).replace("<image 1>", "")
    return f"{stem}\nOptions:\n{lettered(options)}\n"


def lmms_eval_ask(sample: Sample) -> Context:
    """The published text, and a request for the letter."""
    return reworded(sample, f"{meta_text(sample, 'whole')}\n{_DIRECTLY}")


def lmms_eval_mark(text: str, sample: Sample) -> Verdict:
    """The letter in the most telling place."""
    found = lmms_eval_option(text, "ABCD")
    return scored(found == sample.answer, found)


BENCHMARK = Benchmark(
    name="mmstar", title="MMStar", source="arXiv 2403.20330; github.com/MMStar-Benchmark/MMStar",
    layout="Lin-Chen/MMStar's columns index, question (options inside), image, answer, category, "
           "l2_category, meta_info (or bench); or VLMEvalKit's MMStar.tsv",
    read=read, row=row, count=mean_score, by=("task", "skill", "origin"),
    ways={
        OWN: own_way(),
        "lmms-eval": Way(ask=lmms_eval_ask, mark=lmms_eval_mark, max_new_tokens=1024,
                         extractor="a letter A to D in the most telling place, the last of those",
                         fallback="an answer without A, B, C or D is wrong"),
        "vlmevalkit": vlmevalkit_way(),
    },
    notes=("lmms-eval averages the 18 skills, each with the same weight; here, as in VLMEvalKit, "
           "every question has the same weight",),
)
