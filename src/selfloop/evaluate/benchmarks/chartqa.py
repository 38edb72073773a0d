"""ChartQA: questions about charts, answered by a number or a few words. Masry et al. 2022, arXiv
2203.10244."""

from __future__ import annotations

from pathlib import Path

from selfloop.evaluate.benchmark import (
    OWN,
    Benchmark,
    Way,
    ending_with,
    mean_score,
    needed,
    scored,
)
from selfloop.evaluate.benchmarks.shared_pictures import with_shared_pictures
from selfloop.evaluate.cells import texts_of
from selfloop.evaluate.matchers import plain, quantities, relaxed, same_numbers
from selfloop.formats import BadRow
from selfloop.organize.verify.rules import final_answer
from selfloop.sources import Row, Rows, Source, source_of
from selfloop.types import Sample, Verdict

SHORT = "Answer the question using a single word or phrase."
TOLERANCE = 0.05
_MAKERS = {"0": "human", "1": "augmented", "human": "human", "machine": "augmented",
           "human_test": "human", "augmented_test": "augmented", "test_human": "human",
           "test_augmented": "augmented", "augmented": "augmented"}


def read(path: Path, split: str | None) -> Source:
    """The authors' test_human.json or test_augmented.json, whose name says who asked, or rows."""
    found = with_shared_pictures(source_of(path, split))
    kind = next((k for k in ("human", "augmented") if k in path.stem), None)
    if path.suffix != ".json" or kind is None:
        return found

    def rows() -> Rows:
        for number, row in found.rows():
            yield number, {"type": kind, **row} if isinstance(row, dict) else row

    return Source(found.name, found.home, rows)


def row(found: Row) -> Row:
    """Question, answer and picture under the names of any of the published layouts.

    `query`, `label`, `imgname` (the authors'), `query`, `label` (a list), `image`,
    `human_or_machine` (Hugging Face M4), `question`, `answer`, `type` (lmms-lab), or `question`,
    `answer`, `split` (VLMEvalKit).
    """
    text = found.get("query") or found.get("question")
    picture = found.get("imgname") or found.get("image")
    if not text or picture is None:
        needed(found, "question" if "question" in found else "query",
               "image" if "image" in found else "imgname")
    golds = texts_of(found.get("label", found.get("answer")))
    if not golds:
        raise BadRow("label", "missing or empty",
                     "expected the answer as text or as a list of texts (or in `answer`)")
    maker = next((str(found[name]).lower() for name in ("human_or_machine", "type", "split")
                  if found.get(name) is not None), "")
    made: Row = {"prompt": str(text), "images": [picture], "answer": golds,
                 "task": _MAKERS.get(maker, maker)}
    return made | ({"cluster": picture} if "imgname" in found else {})


def own_mark(text: str, sample: Sample) -> Verdict:
    """Our rule: the final answer is within 5 % of the gold number, or is the gold text.

    Read as people write: "1,200", "$5", "about 14 percent" are numbers, and a per cent sign on one
    side only does not matter. Years are no exception: ChartQA's measure has none.
    """
    said = final_answer(text)
    return scored(any(_same(said, gold) for gold in texts_of(sample.answer)) if said else False,
                  said)


def _same(said: str, gold: str) -> bool:
    if plain(said) == plain(gold):
        return True
    if gold.startswith("["):
        return same_numbers(said, gold) is True
    target, found = _number(gold), quantities(said)
    if target is None or len(found) != 1:
        return False
    value, unit = found[0]
    readings = (value, value / 100) if unit == "%" else (value,)
    return any(abs(v - target) <= TOLERANCE * abs(target) for v in readings)


def _number(gold: str) -> float | None:
    """A gold answer that is one number, with at most a sign of currency or per cent."""
    found = quantities(gold)
    is_number = len(found) == 1 and not any(c.isalpha() for c in gold)
    return found[0][0] if is_number else None


def _best(said: str, sample: Sample) -> Verdict:
    return scored(any(relaxed(said, gold, tolerance=TOLERANCE) for gold in texts_of(sample.answer)),
                  said or None)


def lmms_eval_mark(text: str, sample: Sample) -> Verdict:
    """The whole answer as it is: a full stop or a space too many makes a word wrong."""
    return _best(text, sample)


def vlmevalkit_mark(text: str, sample: Sample) -> Verdict:
    """The whole answer without white space around it."""
    return _best(text.strip(), sample)


_WHOLE = "the whole answer"
_WRONG = "any other text is wrong"
BENCHMARK = Benchmark(
    name="chartqa", title="ChartQA", source="arXiv 2203.10244; github.com/vis-nlp/ChartQA",
    layout="the authors' test_human.json and test_augmented.json ({imgname, query, label}, "
           "pictures in png/), Hugging Face M4's columns image, query, label (a list), "
           "human_or_machine, lmms-lab's type, question, answer, image, or VLMEvalKit's "
           "ChartQA_TEST.tsv",
    read=read, row=row, count=mean_score,
    ways={
        OWN: Way(ask=ending_with(SHORT), mark=own_mark,
                 extractor="the final answer; its one number, read with separators and signs",
                 fallback="no answer, or several numbers, is wrong",
                 styles=("direct", "chain of thought", "describe then answer",
                         "see, think, answer")),
        "lmms-eval": Way(ask=ending_with("Answer the question with a single word."),
                         mark=lmms_eval_mark, extractor=_WHOLE, fallback=_WRONG,
                         max_new_tokens=16),
        "vlmevalkit": Way(ask=ending_with(SHORT), mark=vlmevalkit_mark, extractor=_WHOLE,
                          fallback=_WRONG, max_new_tokens=512),
    },
)
