r"""PHYSICS: university physics problems with LaTeX answers. Feng et al. 2025, arXiv 2503.21821.

A row asks for one answer or several; each is a LaTeX text. The authors compare by a symbolic check
and let gpt-4o decide where it fails. Here rules decide, and what they cannot tell stays undecided.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from selfloop.evaluate.benchmark import OWN, Benchmark, Marked, Tally, Way, reworded, scored, words
from selfloop.evaluate.latex.matching import match, same_answer
from selfloop.evaluate.physics_answers import authors_boxes, symbolically_equal
from selfloop.formats import BadRow
from selfloop.organize.verify.boxed import boxed
from selfloop.roles import SelfloopError
from selfloop.sources import Row
from selfloop.types import Context, Message, Part, Sample, Verdict

ASKED = (
    "Solve the problem step by step. At the end give the final answer to every part that is asked "
    "for, in order, each in a \\boxed{} of its own, with its unit where it has one.")
AUTHORS_SYSTEM = (
    "You are an AI expert specializing in answering advanced physics questions. Think step by step "
    "and provide solution and final answer. Provide the final answer at the end in Latex boxed "
    "format \\[\\boxed{}\\].Example: \\[ \\boxed{ final_answer} \\]")
VLMEVALKIT = (
    "You are a physics expert assistant. Solve the following question step-by-step.\n\n"
    "At the VERY END of your answer, output ONLY the FINAL ANSWER in this format:\n\n"
    "\\[\n\\boxed{{your_final_answer_here}}\n\\]\n\n"
    " You MUST put the final answer in the \\boxed{{}} environment.\n"
    ' This applies even if the answer is a text explanation like "The singlet state is lower in '
    'energy."\n'
    "Do NOT include multiple boxes.\n"
    "Do NOT include \\boxed anywhere else in your reasoning.\n"
    " The box must appear on the last line of the response.\n\n"
    "WARNING: DO NOT forget to include \\boxed{{}} with the final answer. Responses without it "
    "will be considered INVALID.\n\n"
    "Example:\n"
    "Question: What is the energy difference between n=2 and n=1 in hydrogen?\n"
    "Answer: The energy levels are E_n = -13.6 / n² (in eV).\n"
    "E_2 = -13.6 / 4 = -3.4 eV\n"
    "E_1 = -13.6 eV\n"
    "ΔE = 13.6 - 3.4 = 10.2 eV\n"
    "\\[\n\\boxed{{10.2\\ \\text{{eV}}}}\n\\]\n\n"
    "Question: {question}\nAnswer:")
_ANNOUNCED = re.compile(r"<answer>([\s\S]{1,4000}?)</answer>"
                        r"|^[*#> \t]{0,8}(?:final )?answer[* ]{0,4}:[* \t]{0,4}(.+)$", re.I | re.M)
_COUNTS = re.compile(r"(\d+) right, (\d+) wrong, (\d+) undecided")


# -- rows ------------------------------------------------------------------------------------------

def row(found: Row) -> Row:
    """The authors' `questions`, `final_answers`, `graphs`; or VLMEvalKit's `question`, `answer`,
    `image`, told apart by their columns."""
    name = "questions" if "questions" in found else "question"
    question = found.get(name)
    if not isinstance(question, str) or not question.strip():
        raise BadRow(name, f"{_shown(question)}", "expected the text of the problem")
    key = "final_answers" if name == "questions" else "answer"
    identity = str(found.get("id") or found.get("index") or "")
    subject = found.get("category") or identity.rpartition("/")[0] or "physics"
    made: Row = {"prompt": question.replace("\ufeff", "").replace("<image>", "").strip(),
                 "images": _pictures(found), "answer": _parts(found.get(key), key),
                 "task": str(subject).strip().lower()}
    return made | ({"cluster": identity, "number": identity} if identity else {})


def _parts(found: object, column: str) -> list[str]:
    """The key: a list of LaTeX texts. A list may come as JSON; any other text is one answer."""
    if isinstance(found, str) and found.strip().startswith("["):
        try:
            found = json.loads(found)
        except ValueError:
            found = [found]
    parts = [found] if isinstance(found, str) else found
    if not isinstance(parts, list) or not parts or not all(
            isinstance(part, str) and part.strip() for part in parts):
        raise BadRow(column, _shown(found), "expected a list of LaTeX texts, one a part that is "
                     "asked for, none of them empty")
    return [part.strip() for part in parts]


def _pictures(found: Row) -> list[object]:
    """The addresses in `graphs` ({"type": "image_url", "image_url": {"url": ...}}), or `image`."""
    graphs = found.get("graphs", found.get("image")) or []
    pictures: list[object] = []
    for graph in graphs if isinstance(graphs, list) else [graphs]:
        inner = graph.get("image_url") if isinstance(graph, dict) else graph
        address = inner.get("url") if isinstance(inner, dict) else inner
        if address is None:
            raise BadRow("graphs", _shown(graph), 'expected {"type": "image_url", "image_url": '
                         '{"url": "data:image/png;base64,..."}}')
        pictures.append(address)
    return pictures


def _shown(found: object) -> str:
    if found is None or found == "" or found == []:
        return "missing or empty"
    text = repr(found)
    return f"a {type(found).__name__}: {text[:60]}{'...' if len(text) > 60 else ''}"


# -- asking ----------------------------------------------------------------------------------------

def ask(sample: Sample) -> Context:
    """The pictures, the problem, and what is asked for in the end."""
    return reworded(sample, f"{words(sample)}\n\n{ASKED}")


def ask_as_authors(sample: Sample) -> Context:
    """Their offline runs: a system message, the problem, then its first picture and no other."""
    pictures = tuple(Part(type="image") for _ in sample.media[:1])
    return Context(prompt=(
        Message(role="system", content=(Part(text=AUTHORS_SYSTEM),)),
        Message(role="user", content=(Part(text=words(sample)), *pictures))),
        media=sample.media[:1])


def ask_as_vlmevalkit(sample: Sample) -> Context:
    """The pictures, then the problem within that tool's instructions: it asks for one box."""
    return reworded(sample, VLMEVALKIT.format(question=words(sample)))


# -- marking ---------------------------------------------------------------------------------------

def key(sample: Sample) -> list[str]:
    """The answers to the parts. Raises SelfloopError for a question without a key."""
    parts = sample.answer if isinstance(sample.answer, list) else [sample.answer]
    if not parts or not all(isinstance(part, str) and part for part in parts):
        raise SelfloopError(f"question {sample.id}: its key is no list of texts: {parts!r}")
    return [str(part) for part in parts]


def extracted(text: str) -> list[str]:
    """The boxes; without any, what is announced last as the answer."""
    if boxes := boxed(text):
        return boxes
    announced = [a or b for a, b in _ANNOUNCED.findall(text)]
    return [announced[-1].strip()] if announced and announced[-1].strip() else []


def own(text: str, sample: Sample) -> Verdict:
    """The share of the key's parts that are met, one to one. Undecided while one part is."""
    found = extracted(text)
    return _verdict(match(key(sample), found).parts, found)


def as_authors(text: str, sample: Sample) -> Verdict:
    """The share of the boxes that equal some part of the key; parts may be met again and again."""
    found = authors_boxes(text)
    return _verdict([_met(box, key(sample)) for box in found], found)


def as_vlmevalkit(text: str, sample: Sample) -> Verdict:
    """The share of the different boxes that equal some part: one right box alone is full marks.

    That flaw is the tool's. It also turns every error of its own check into a zero; here it raises.
    """
    found = list(dict.fromkeys(authors_boxes(text)))
    return _verdict([_met(box, key(sample)) for box in found], found)


def _met(box: str, parts: Sequence[str]) -> bool | None:
    """Their symbolic check; where their judge would be asked, the rules of `same_answer`."""
    verdicts = []
    for part in parts:
        if symbolically_equal(box, part) or (verdict := same_answer(part, box)):
            return True
        verdicts.append(verdict)
    return None if None in verdicts else False


def _verdict(parts: Sequence[bool | None], found: Sequence[str]) -> Verdict:
    if not found:
        return scored(0.0, None)
    right, wrong, left = (sum(p is v for p in parts) for v in (True, False, None))
    share = None if left else right / len(parts)
    return scored(share, f"{right} right, {wrong} wrong, {left} undecided: {' | '.join(found)}")


# -- counting --------------------------------------------------------------------------------------

def count(marked: Sequence[Marked]) -> Tally:
    """Over rows: `accuracy`, the mean share of right parts among the decided ones; `at_least` and
    `at_most`, with the undecided taken as wrong and as right; `all_parts`, rows with every part
    right among those that are decided; `undecided`, the share of parts; `unparsed`, of rows."""
    found = {name: (0.0, 0.0) for name in ("accuracy", "at_least", "at_most", "all_parts",
                                           "undecided", "unparsed")}

    def add(name: str, top: float, bottom: float = 1.0) -> None:
        found[name] = (found[name][0] + top, found[name][1] + bottom)

    for sample, answer in marked:
        counts = _COUNTS.match(answer.parsed or "")
        if counts is None and answer.score is None:
            continue  # the rule failed: an error is counted elsewhere, and is no zero
        right, wrong, left = map(int, counts.groups()) if counts else (0, len(key(sample)), 0)
        parts = right + wrong + left
        if right + wrong:
            add("accuracy", right / (right + wrong))
        if wrong or not left:
            add("all_parts", float(not wrong))
        add("at_least", right / parts)
        add("at_most", (right + left) / parts)
        add("undecided", left, parts)
        add("unparsed", float(counts is None))
    return found


_BOXED = "contents of every \\boxed{}"
_JUDGED = ("in that tool {judge} decides where the symbolic check says no; here the rules of "
           "'selfloop' do, and what they cannot tell is undecided")
BENCHMARK = Benchmark(
    name="physics", title="PHYSICS",
    source="arXiv 2503.21821; github.com/yale-nlp/Physics (MIT)",
    layout="the authors' *_dataset_*.jsonl (id, questions, solutions, final_answers, graphs), or "
           "VLMEvalKit's TSV (index, question, answer, image, category)",
    row=row, count=count,
    ways={
        OWN: Way(ask=ask, mark=own, max_new_tokens=4096,
                 extractor=f"{_BOXED}, nested braces included; without any, what stands behind "
                           "the last \"Answer:\" or in <answer>; matched one to one with the key",
                 styles=("chain of thought", "describe then answer", "see, think, answer")),
        "authors": Way(ask=ask_as_authors, mark=as_authors, max_new_tokens=8192,
                       extractor=f"{_BOXED}, each against all of the key; share of boxes",
                       judge=_JUDGED.format(judge="gpt-4o")),
        "vlmevalkit": Way(ask=ask_as_vlmevalkit, mark=as_vlmevalkit, max_new_tokens=4096,
                          extractor=f"{_BOXED} once each, against all of the key; share of boxes",
                          judge=_JUDGED.format(judge="gpt-4o-mini")),
    },
    notes=("rows with an undecided part have no score; accuracy is over decided parts, and "
           "at_least and at_most bound it",),
)
