"""Multiple choice as several sets share it: options of a row, prompts, ways of marking."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfloop.evaluate.benchmark import Way, ending_with, meta_text, needed, reworded, scored
from selfloop.evaluate.benchmarks.shared_pictures import with_shared_pictures
from selfloop.evaluate.matchers import option, vlmevalkit_option
from selfloop.formats import BadRow
from selfloop.sources import Row, Source, source_of
from selfloop.types import Context, Sample, Verdict

ASK = "Answer with the letter of the right option."
DIRECTLY = "Answer with the option's letter from the given choices directly."
STYLES = ("direct", "chain of thought", "describe then answer", "see, think, answer")


def lettered(options: Sequence[str], shape: str = "{letter}. {text}") -> str:
    """One option a line."""
    return "\n".join(shape.format(letter=letter, text=text)
                     for letter, text in zip(string.ascii_uppercase, options, strict=False))


def options_of(sample: Sample) -> dict[str, str]:
    """{letter: text} of a question; empty where its options could not be told apart."""
    found = sample.meta.get("options")
    texts = [str(text) for text in found] if isinstance(found, list) else []
    return dict(zip(string.ascii_uppercase, texts, strict=False))


def question(found: Row, *, stem: str, options: Sequence[str], answer: str, hint: str = "",
             **more: Any) -> Row:
    """A row of our own: hint, stem and options as `prompt`, and apart in `meta` for other prompts.

    Raises BadRow where `answer` is no letter of these options.
    """
    letters = string.ascii_uppercase[:len(options)]
    if len(answer) != 1 or answer not in letters:
        raise BadRow("answer", f"{answer!r}", f"expected one of {', '.join(letters)}")
    lines = [hint, stem, lettered(options)]
    picture = found.get("image")
    return {"prompt": "\n".join(line for line in lines if line), "answer": answer,
            "images": [] if picture is None else [picture],
            "stem": stem, "hint": hint, "options": [*options], **more}


def table_row(found: Row, **more: Any) -> Row:
    """A row of a VLMEvalKit table: `question`, options in `A`, `B`, ..., `answer` a letter."""
    needed(found, "question", "A", "B", "answer")
    options = [str(found[c]) for c in string.ascii_uppercase if found.get(c) not in (None, "")]
    return question(found, stem=str(found["question"]), options=options,
                    answer=str(found["answer"]).strip().upper(), hint=str(found.get("hint") or ""),
                    **more)


def is_table(found: Row) -> bool:
    """Whether a row has its options in columns of their own."""
    return "A" in found and "B" in found


def read(path: Path, split: str | None) -> Source:
    """Rows as they lie in the file; questions of a VLMEvalKit table may share a picture."""
    return with_shared_pictures(source_of(path, split))


# -- ways ------------------------------------------------------------------------------------------

def own_mark(text: str, sample: Sample) -> Verdict:
    """Our rule: the final answer names one option, by letter or by its whole text."""
    found = option(text, options_of(sample) or dict.fromkeys("ABCD", ""))
    return scored(found == sample.answer, found)


def own_way(styles: tuple[str, ...] = STYLES) -> Way:
    """Options one a line, any wording of the answer, no judge."""
    return Way(ask=ending_with(ASK), mark=own_mark, styles=styles,
               extractor="the option that the final answer names, by letter or by its whole text",
               fallback="an answer that names no option, or two, is wrong")


def vlmevalkit_ask(sample: Sample) -> Context:
    """Hint, question, "Options:" and a request to select, as ImageMCQDataset builds it."""
    hint, options = meta_text(sample, "hint"), options_of(sample)
    text = (f"Hint: {hint}\n" if hint else "") + f"Question: {meta_text(sample, 'stem')}\n"
    if options:
        text += f"Options:\n{lettered([*options.values()])}\n" \
                "Please select the correct answer from the options above. \n"
    return reworded(sample, text)


def vlmevalkit_mark(text: str, sample: Sample) -> Verdict:
    """VLMEvalKit's matching without its judge: abstains where the judge would be asked."""
    found = vlmevalkit_option(text.strip(), options_of(sample) or dict.fromkeys("ABCD", ""))
    return scored(None if found is None else found == sample.answer, found)


def vlmevalkit_way() -> Way:
    """ImageMCQDataset, not circular; answer lengths are each model's own there."""
    return Way(ask=vlmevalkit_ask, mark=vlmevalkit_mark, max_new_tokens=512,
               extractor="one option letter, among the last four words; else the text of exactly "
                         "one option in a short answer",
               judge="chatgpt-0125 where that finds no option; here such answers are unjudged",
               fallback="a refusal is wrong; where the judge fails too, a random option")
