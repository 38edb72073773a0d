"""AMBER: what a model invents in captions, and whether it says yes to what is not there.

Wang et al. 2023, arXiv 2311.07397. Two halves in one set: captions of 1,004 pictures, whose objects
and likely inventions are annotated, and 14,216 yes/no questions on existence, attributes and
relations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfloop.evaluate.benchmark import (
    OWN,
    Ask,
    Benchmark,
    Mark,
    Marked,
    Tally,
    Way,
    added,
    needed,
    reworded,
    scored,
    words,
)
from selfloop.evaluate.benchmarks import yes_no
from selfloop.evaluate.benchmarks.amber_files import read
from selfloop.evaluate.objects import Lexicon
from selfloop.formats import BadRow
from selfloop.sources import Row
from selfloop.types import Context, Sample, Verdict

CAPTIONS = "generative"
KINDS = {"discriminative-hallucination": "existence", "discriminative-relation": "relation",
         "relation": "relation", "discriminative-attribute-state": "attribute",
         "discriminative-attribute-number": "attribute",
         "discriminative-attribute-action": "attribute"}
"""The annotations' types, as the paper names them; the `no` halves of relations are "relation"."""
_UNSURE = ("bar can core drink file hot leave light line note orange paddle range ring shell sound "
           "spray stage star support switch tap tape track watch")


# -- rows ---------------------------------------------------------------------------------------

def row(found: Row) -> Row:
    """A caption's row (`truth` and `hallu` are lists) or a yes/no question."""
    if "id" in found and "type" not in found:
        raise BadRow("id", f"{found['id']!r} is not among the annotations",
                     "take the query file and annotations.json from one release")
    kind = found.get("type") or found.get("task_type") or found.get("category")
    if kind is None:
        needed(found, "type")
    needed(found, "image")
    asked = _caption(found) if kind == CAPTIONS else _question(found, str(kind))
    name = found.get("image_path") or found["image"]
    return asked | {"images": [found["image"]]} | (
        {"cluster": name} if isinstance(name, str) and len(name) < 256 else {})


def _caption(found: Row) -> Row:
    needed(found, "truth", "hallu")
    aliases = found.get("aliases")
    if not isinstance(aliases, Mapping):
        raise BadRow("aliases", "relation.json was not found beside the file",
                     "put the authors' relation.json there: it says which words count as objects")
    gold = {part: _words(found[part], part) for part in ("truth", "hallu")}
    own = {name: list(aliases.get(name, ())) for name in {*gold["truth"], *gold["hallu"]}}
    known = {*aliases, *(alias for others in aliases.values() for alias in others), *own}
    return {"prompt": str(found.get("query") or "Describe this image."), "answer": gold,
            "task": CAPTIONS, "aliases": own, "vocabulary": sorted(known),
            "safe": list(found.get("safe") or [])}


def _words(value: Any, part: str) -> list[str]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise BadRow(part, f"a {type(value).__name__}", "expected a list of words")
    return list(value)


def _question(found: Row, kind: str) -> Row:
    text = found.get("query") or found.get("question")
    gold = str(found.get("truth") or found.get("answer") or "").lower()
    if not text:
        needed(found, "query")
    if gold not in ("yes", "no"):
        raise BadRow("truth", f"{gold or 'nothing'!r}", 'expected "yes" or "no"')
    if kind not in KINDS:
        raise BadRow("type", repr(kind), f"expected {CAPTIONS} or one of {', '.join(KINDS)}")
    return {"prompt": str(text), "answer": gold, "task": KINDS[kind], "kind": kind}


# -- marking ------------------------------------------------------------------------------------

def caption(text: str, sample: Sample) -> Verdict:
    """Right (1) is a caption without an invented object; extracted are the words that were met.

    A word counts when it is in the authors' vocabulary (`relation.json`); it is invented when it
    stands for no annotated object. The authors ask a tagger for nouns, and forgive words whose
    vectors are close to an annotated object; neither is done here, so CHAIR comes out higher.
    """
    named = _lexicon(sample).mentions(text)
    return scored(not any(_invented(named, sample)), ", ".join(named))


def _lexicon(sample: Sample) -> Lexicon:
    listed = sample.meta.get("vocabulary")
    names = {str(word): () for word in listed} if isinstance(listed, list) else {}
    return Lexicon.of(names, unsure=frozenset(_UNSURE.split()))


def _part(sample: Sample, part: str) -> list[str]:
    gold = sample.answer.get(part) if isinstance(sample.answer, dict) else None
    return [str(word) for word in gold] if isinstance(gold, list) else []


def _meant(word: str, objects: Sequence[str], sample: Sample) -> int | None:
    """Which of the objects a word stands for: the first that has it as an alias, else by name."""
    listed = sample.meta.get("aliases")
    aliases = listed if isinstance(listed, dict) else {}
    for i, name in enumerate(objects):
        others = aliases.get(name)
        if isinstance(others, list) and word in others:
            return i
    return next((i for i, name in enumerate(objects) if name == word), None)


def _invented(named: Sequence[str], sample: Sample) -> list[bool]:
    safe, there = sample.meta.get("safe"), _part(sample, "truth")
    free = {str(word) for word in safe} if isinstance(safe, list) else set()
    return [word not in free and _meant(word, there, sample) is None for word in named]


def _marking(said: Callable[[str], str | None], *, unknown: float | None = 0.0) -> Mark:
    """Captions by `caption`; questions by whether `said` finds the gold yes or no."""
    def marked(text: str, sample: Sample) -> Verdict:
        if sample.meta.get("task") == CAPTIONS:
            return caption(text, sample)
        found = said(text)
        return scored(unknown if found is None else found == sample.answer, found)
    return marked


# -- counting -----------------------------------------------------------------------------------

def count(marked: Sequence[Marked]) -> Tally:
    """`right`: answers of both halves without an error; then the figures of the halves."""
    judged = [(s, a) for s, a in marked if a.score is not None]
    both: Tally = {"right": (sum(a.score or 0.0 for _, a in judged), len(judged))}
    captions = [(s, a) for s, a in judged if s.meta.get("task") == CAPTIONS]
    asked = [(s, a) for s, a in judged if s.meta.get("task") != CAPTIONS]
    return added([both, *(_told(s, a.parsed, a.text) for s, a in captions), _answered(asked)])


def _told(sample: Sample, parsed: str | None, text: str) -> Tally:
    """One caption. `cover`: annotated objects that are named; `cog`: of the annotated likely
    inventions, those that are named; `hal`: captions with an invention; `chair`: as in CHAIR."""
    named = parsed.split(", ") if parsed else []
    there, likely = _part(sample, "truth"), _part(sample, "hallu")
    invented = _invented(named, sample)
    covered = {_meant(word, there, sample) for word in named} - {None}
    imagined = {_meant(w, likely, sample) for w, bad in zip(named, invented, strict=True) if bad}
    return {"chair": (sum(invented), len(named)), "cover": (len(covered), len(there)),
            "hal": (float(any(invented)), 1.0), "cog": (len(imagined - {None}), len(likely)),
            "mean_length": (len(text.split()), 1.0)}


def _answered(rows: Sequence[Marked]) -> Tally:
    """Yes/no questions: accuracy, and precision, recall and F1 of "no", that something is not
    there. An answer that says neither is wrong and is no "no"."""
    pairs = [(str(s.answer), a.parsed) for s, a in rows]
    hit = sum(gold == said == "no" for gold, said in pairs)
    said_no = sum(said == "no" for _, said in pairs)
    is_no = sum(gold == "no" for gold, _ in pairs)
    found: Tally = {
        "accuracy": (sum(gold == said for gold, said in pairs), len(pairs)),
        "precision": (hit, said_no), "recall": (hit, is_no), "f1": (2 * hit, said_no + is_no),
        "unparsed": (sum(said is None for _, said in pairs), len(pairs))}
    for kind in ("existence", "attribute", "relation"):
        own = [str(s.answer) == a.parsed for s, a in rows if s.meta.get("task") == kind]
        found[f"accuracy_{kind}"] = (sum(own), len(own))
    return found


def derived(figures: Mapping[str, float]) -> dict[str, float]:
    """`amber`: (1 - CHAIR + F1) / 2, as the paper defines it; `mean_accuracy`: the mean over the
    three kinds of question, VLMEvalKit's figure. Each where its parts are there."""
    found = {}
    if "chair" in figures and "f1" in figures:
        found["amber"] = (1 - figures["chair"] + figures["f1"]) / 2
    kinds = [value for name, value in figures.items() if name.startswith("accuracy_")]
    if kinds:
        found["mean_accuracy"] = sum(kinds) / len(kinds)
    return found


# -- ways ---------------------------------------------------------------------------------------

def _asking(ending: str, captions: str | None = None) -> Ask:
    """Questions with an ending; captions as published, or in other words."""
    def ask(sample: Sample) -> Context:
        if sample.meta.get("task") != CAPTIONS:
            return reworded(sample, words(sample) + ending) if ending else sample.context
        return reworded(sample, captions) if captions else sample.context
    return ask


_WORDS = "captions: the authors' word list and aliases, plurals, no tagger and no word vectors"
_WRONG = "an answer that says neither is wrong; a caption that names nothing invents nothing"

BENCHMARK = Benchmark(
    name="amber", title="AMBER", source="arXiv 2311.07397; github.com/junyangwang0410/AMBER",
    layout="the authors' data folder: query/query_*.json, annotations.json, relation.json, "
           "safe_words.txt, pictures AMBER_*.jpg; or VLMEvalKit's AMBER.tsv (the yes/no half)",
    read=read, row=row, count=count, main="right", by=("task", "kind"), derived=derived,
    ways={
        OWN: Way(ask=_asking("\nPlease answer yes or no."), mark=_marking(yes_no.in_final_answer),
                 extractor=f"yes or no in the final answer, once; {_WORDS}", fallback=_WRONG,
                 max_new_tokens=512),
        "authors": Way(ask=_asking(""), mark=_marking(yes_no.exactly), max_new_tokens=512,
                       extractor=f'the whole answer is "Yes" or "No"; {_WORDS}', fallback=_WRONG),
        "lmms-eval": Way(ask=_asking("", "Describe this image"), mark=_marking(yes_no.anywhere),
                         extractor=f'"yes" anywhere in the text, else "no" anywhere; {_WORDS}',
                         fallback=_WRONG, max_new_tokens=2048),
        "vlmevalkit": Way(ask=_asking("\nPlease answer yes or no."),
                          mark=_marking(yes_no.among_words, unknown=None),
                          extractor="yes or no among the words (the tool has no captions: those "
                                    "are marked by our rules)", max_new_tokens=512,
                          judge="the tool asks a language model where the words say neither; "
                                "such answers are left unjudged here",
                          fallback="left unjudged; the tool without its judge counts it wrong"),
    },
    notes=("chair, hal and cog say less when captions do: read them beside cover and mean_length",),
)
