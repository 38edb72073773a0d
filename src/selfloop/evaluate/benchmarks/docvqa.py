"""DocVQA: questions about scanned documents, answered by what is written there. Mathew et al.
2021, arXiv 2007.00398."""

from __future__ import annotations

from collections.abc import Sequence

from selfloop.evaluate.benchmark import (
    OWN,
    Benchmark,
    Marked,
    Tally,
    Way,
    ending_with,
    needed,
    scored,
)
from selfloop.evaluate.cells import texts_of
from selfloop.evaluate.choices import read
from selfloop.evaluate.matchers import anls
from selfloop.formats import BadRow
from selfloop.organize.verify.rules import final_answer
from selfloop.sources import Row
from selfloop.types import Sample, Verdict

SHORT = "Answer the question using a single word or phrase."


def row(found: Row) -> Row:
    """`question`, `image`, `answers` (a list), `question_types`; VLMEvalKit's table says `answer`.

    Questions about one document are one cluster. Raises BadRow for a row of the test split, whose
    answers are not public.
    """
    needed(found, "question", "image")
    golds = texts_of(found.get("answers", found.get("answer")))
    if not golds:
        raise BadRow("answers", "there are none, as in the test split",
                     "use the validation split: only its answers are public")
    made: Row = {"prompt": str(found["question"]), "images": [found["image"]], "answer": golds,
                 "kinds": texts_of(found.get("question_types"))}
    document = found.get("ucsf_document_id")
    return made | ({"cluster": str(document)} if document else {})


def own_mark(text: str, sample: Sample) -> Verdict:
    """ANLS of the final answer: "The date is: 3 May" is compared as it is, "Answer: 3 May" as
    "3 May"."""
    said = final_answer(text)
    return scored(anls(said or "", texts_of(sample.answer)), said)


def lmms_eval_mark(text: str, sample: Sample) -> Verdict:
    """ANLS of the whole answer; white space that is not compared still counts in the length."""
    return scored(anls(text, texts_of(sample.answer), raw_lengths=True), text.strip())


def vlmevalkit_mark(text: str, sample: Sample) -> Verdict:
    """ANLS of the whole answer."""
    return scored(anls(text, texts_of(sample.answer)), text.strip())


def count(marked: Sequence[Marked]) -> Tally:
    """`anls`: the mean similarity; `exact`: the share of answers that are a gold one but for case
    and white space."""
    judged = [a.score for _, a in marked if a.score is not None]
    n = float(len(judged))
    return {"anls": (sum(judged), n), "exact": (sum(s == 1 for s in judged), n)}


_WHOLE = "the whole answer"
_FAR = "an answer less than half similar counts nothing"
BENCHMARK = Benchmark(
    name="docvqa", title="DocVQA", source="arXiv 2007.00398; rrc.cvc.uab.es (challenge 17)",
    layout="lmms-lab/DocVQA's columns questionId, question, image, answers, question_types "
           "(configuration DocVQA), the authors' val_v1.0.json ({data: [...]}, pictures in "
           "documents/), or VLMEvalKit's DocVQA_VAL.tsv",
    read=read, row=row, count=count, main="anls", by=("kinds",),
    ways={
        OWN: Way(ask=ending_with(SHORT), mark=own_mark, extractor="the final answer",
                 fallback=_FAR, styles=("direct", "chain of thought", "see, think, answer")),
        "lmms-eval": Way(ask=ending_with(SHORT), mark=lmms_eval_mark, extractor=_WHOLE,
                         fallback=_FAR, max_new_tokens=32),
        "vlmevalkit": Way(ask=ending_with(SHORT), mark=vlmevalkit_mark, extractor=_WHOLE,
                          fallback=_FAR, max_new_tokens=512),
    },
    notes=("an answer whose similarity is exactly 0.5 counts 0.5, as on the official server; the "
           "paper's formula gives it 0",),
)
