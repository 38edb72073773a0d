"""ScienceQA: school science, with and without pictures. Lu et al. 2022, arXiv 2209.09513."""

from __future__ import annotations

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


def row(found: Row) -> Row:
    """`question`, `choices`, `answer` (an index from 0), `hint`, `image` (None: a question without
    a picture); or VLMEvalKit's table."""
    picture = {"picture": "without" if found.get("image") is None else "with"}
    if is_table(found):
        return table_row(found, **picture, **_kept(found, "category", "split"))
    needed(found, "question", "choices", "answer")
    choices, answer = found["choices"], found["answer"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise BadRow("choices", f"{choices!r}", "expected a list of at least two texts")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise BadRow("answer", f"{answer!r}",
                     f"expected the index of a choice, 0 to {len(choices) - 1}")
    return question(found, stem=str(found["question"]), options=[str(c) for c in choices],
                    answer=chr(ord("A") + answer), hint=str(found.get("hint") or ""), **picture,
                    **_kept(found, "task", "grade", "subject", "topic", "category", "skill"))


def _kept(found: Row, *names: str) -> Row:
    return {name: str(found[name]) for name in names if found.get(name)}


def lmms_eval_ask(sample: Sample) -> Context:
    """"Context: " and the hint, the question, lettered options, and a request for the letter."""
    hint = meta_text(sample, "hint")
    text = (f"Context: {hint}\n" if hint else "") + meta_text(sample, "stem")
    return reworded(sample, f"{text}\n{lettered([*options_of(sample).values()])}\n{DIRECTLY}")


def lmms_eval_mark(text: str, sample: Sample) -> Verdict:
    """The whole answer is the letter, in any case, or begins with a capital and a full stop."""
    said = text.strip()
    if said.lower() == str(sample.answer).lower():
        return scored(True, said.upper())
    found = said[0] if said[1:2] == "." and said[0].isupper() else None
    return scored(found == sample.answer, found)


BENCHMARK = Benchmark(
    name="scienceqa", title="ScienceQA", source="arXiv 2209.09513; github.com/lupantech/ScienceQA",
    layout="lmms-lab/ScienceQA's columns image, question, choices, answer (an index), hint, task, "
           "grade, subject, topic, category, skill (configurations FULL and IMG), or VLMEvalKit's "
           "ScienceQA_VAL/TEST.tsv",
    read=read, row=row, count=mean_score,
    by=("picture", "subject", "grade", "topic", "task", "category"),
    ways={
        OWN: own_way(("direct", "chain of thought")),  # many questions have no picture to describe
        "lmms-eval": Way(ask=lmms_eval_ask, mark=lmms_eval_mark, max_new_tokens=16,
                         extractor="the whole answer, or a capital before a full stop at its start",
                         fallback='any other text is wrong: "(B)" and "B)" too'),
        "vlmevalkit": vlmevalkit_way(),
    },
    notes=("VLMEvalKit's tables hold only the questions with a picture",),
)
