"""What a benchmark is: a published layout, ways of asking and marking it, and what is counted.

A score is six things together: data, prompt, decoding, extractor, judge and fallback (what counts
when nothing could be extracted). The same model on the same set differs by ten points between
tools that disagree on one of them (lmms-eval, docs/advanced/mmmu-eval-discrepancy), so all six are
named by the `Way` and stored with every score. One file of `benchmarks/` describes one benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selfloop.collect.guided import STRUCTURES
from selfloop.evaluate.answers import Answer
from selfloop.formats import BadRow
from selfloop.roles import SelfloopError
from selfloop.sources import Row, Source, source_of
from selfloop.types import Context, Message, Part, Sample, Verdict

Mark = Callable[[str, Sample], Verdict]
"""(the whole text of an answer, its question) -> score, and as `rationale` what was extracted.

Pure: stored answers are marked again, under other rules, without asking the model. `score=None`
where the rule cannot tell; an answer in which nothing was found is wrong (0.0) unless the way's
`fallback` says otherwise. Raises when the rule itself fails: an error is never a zero.
"""
Ask = Callable[[Sample], Context]
"""What the model is shown of a question."""
Tally = dict[str, tuple[float, float]]
"""{figure: (numerator, denominator)}. Tallies add up; a figure is the ratio of the sums, so its
interval comes from resampling clusters whatever the figure is (accuracy, F1, CHAIR, recall)."""
Marked = tuple[Sample, Answer]
Count = Callable[[Sequence[Marked]], Tally]
"""The tally of one cluster: all marked answers to the questions that belong together."""

OWN = "selfloop"
"""The name of our own way of asking and marking."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How one tool asks a benchmark's questions and marks the answers."""

    ask: Ask
    mark: Mark
    extractor: str
    """How the answer is found in the text, in a sentence."""
    max_new_tokens: int = 64
    judge: str = "none"
    """The model that decides what rules cannot; "none"."""
    fallback: str = "an answer in which nothing is found is wrong"
    count: Count | None = None
    """Where the tool also counts in its own way."""
    styles: tuple[str, ...] = ()
    """Structured prompts that make sense around the question; () = any. (Under the rules of other
    tools the prompt is part of the rules and stays as it is.)"""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark: how its files are read, asked, marked and counted."""

    name: str
    """As the command line calls it: "pope"."""
    title: str
    source: str
    """Paper and repository whose rules these are."""
    layout: str
    """The published files that are read, in a sentence."""
    row: Callable[[Row], Row | Sequence[Row]]
    """A published row as rows of our own: `prompt` (text; <image> marks or pictures go first),
    `images`, `answer`, `task`, `cluster`, and whatever marking reads, which lands in `meta`.
    Raises BadRow."""
    ways: Mapping[str, Way]
    """"selfloop" (our own rules), and "lmms-eval", "vlmevalkit" where those tools have the set."""
    count: Count
    main: str = "accuracy"
    """The figure that is compared between models."""
    lower_is_better: bool = False
    by: tuple[str, ...] = ("task",)
    """Fields of `meta` by which figures are also broken down: task types and domains."""
    read: Callable[[Path, str | None], Source] = source_of
    """The published files as rows; by default whatever `selfloop.data.load` reads."""
    derived: Callable[[Mapping[str, float]], dict[str, float]] | None = None
    """Further figures made of the others (AMBER's score); without an interval of their own."""
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if OWN not in self.ways:
            raise SelfloopError(f"benchmark {self.name}: ways has no {OWN!r}")

    def way(self, name: str = OWN) -> Way:
        """One tool's rules. Raises SelfloopError naming those that there are."""
        if name not in self.ways:
            raise SelfloopError(f"{self.name} has no rules as {name!r}; there are "
                                f"{', '.join(self.ways)}")
        return self.ways[name]

    def under(self, rules: str) -> Benchmark:
        """This benchmark, counted as these rules count."""
        return replace(self, count=self.way(rules).count or self.count)

    def rows(self, path: str | Path, split: str | None = None) -> Source:
        """The published files at `path` as rows of our own; a row that does not fit is a text
        that says why, for `selfloop.data.load` to name it."""
        found = self.read(Path(path), split)
        return Source(f"{found.name} ({self.name})", found.home, lambda: self._mapped(found))

    def _mapped(self, found: Source) -> Iterator[tuple[int, Row | str]]:
        for number, row in found.rows():
            if isinstance(row, str):
                yield number, row
                continue
            try:
                made = self.row(row)
            except BadRow as bad:
                yield number, f"{bad} (not as {self.name} publishes it: {self.layout})"
                continue
            for one in (made,) if isinstance(made, dict) else made:
                yield number, one


def styled(style: str | None, ask: Ask) -> Ask:
    """`ask` with a structured prompt laid around it; None: as it is.

    Raises SelfloopError for a style that does not exist, naming those that do.
    """
    if style is None:
        return ask
    if style not in STRUCTURES:
        raise SelfloopError(f"no prompt style {style!r}; there are {', '.join(STRUCTURES)}")
    shape = STRUCTURES[style]
    return lambda sample: shape(ask(sample))


# -- pieces that benchmark files are made of -------------------------------------------------------

def as_it_is(sample: Sample) -> Context:
    """The question as it was read."""
    return sample.context


def ending_with(line: str, between: str = "\n") -> Ask:
    """The question followed by one more line."""
    def ask(sample: Sample) -> Context:
        return reworded(sample, f"{words(sample)}{between}{line}")
    return ask


def words(sample: Sample) -> str:
    """The text of the question's last user message, without its pictures."""
    asked = next(m for m in reversed(sample.prompt) if m.role == "user")
    return "".join(part.text for part in asked.content)


def reworded(sample: Sample, text: str) -> Context:
    """The question's pictures in their order, then `text`, as one user message."""
    pictures = tuple(Part(type="image") for m in sample.prompt for p in m.content
                     if p.type == "image")
    return Context(prompt=(Message(role="user", content=(*pictures, Part(text=text))),),
                   media=sample.media)


def meta_text(sample: Sample, name: str, default: str = "") -> str:
    """A text of the sample's `meta`; `default` where it has none."""
    value = sample.meta.get(name)
    return default if value is None else str(value)


def scored(value: float | bool | None, extracted: str | None) -> Verdict:
    """A verdict as `Mark` returns it."""
    return Verdict(score=None if value is None else float(value), rationale=extracted or "")


def needed(row: Row, *names: str) -> None:
    """Raises BadRow for the first column that the row lacks or has empty."""
    for name in names:
        if row.get(name) is None or row[name] == "":
            raise BadRow(name, "missing or empty",
                         f"expected the columns {', '.join(names)}; the row has "
                         f"{', '.join(sorted(row)) or 'none'}")


def mean_score(marked: Sequence[Marked]) -> Tally:
    """`accuracy`: the mean score of what was judged."""
    judged = [a.score for _, a in marked if a.score is not None]
    return {"accuracy": (sum(judged), float(len(judged)))}


def added(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies, figure by figure."""
    total: dict[str, tuple[float, float]] = {}
    for tally in tallies:
        for name, (top, bottom) in tally.items():
            a, b = total.get(name, (0.0, 0.0))
            total[name] = (a + top, b + bottom)
    return total


def every(values: Iterable[Any]) -> bool:
    """Whether there are values and all of them hold: groups of questions that count as one."""
    found = list(values)
    return bool(found) and all(found)
