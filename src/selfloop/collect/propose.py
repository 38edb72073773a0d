"""A proposer: questions about a picture, asked by the model itself (primitive S13).

What it asks becomes the next step's problems when the organizer holds
`organize.refine.own_questions.AskNext`; `AskOrAnswer` is the sampler of such a loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfloop.collect.conditioning import noted
from selfloop.collect.drawing import OFFERED
from selfloop.collect.tags import Parsed, one_of, tagged
from selfloop.doors import asking, filled, is_async
from selfloop.roles import (
    Generate,
    Sampler,
    Sampling,
    SelfloopError,
    call_by_name,
    check_call,
    name_of,
)
from selfloop.types import Rollout, Sample

PROPOSE = ("Ask one question about this picture that can be answered from the picture alone, by a "
           "word, a number or a short phrase, and that one has to look closely to answer. Do not "
           "give the answer. Write the question between <question> and </question>.")
ANSWERABLE = ("Can this question be answered from the picture alone? Question: {question}\n"
              "Answer yes or no.")
EXAMPLE = "Here is a question about it; ask a different one: {question}"
HARDER = "Lately the answers all agreed: ask what is harder to see."
EASIER = "Lately the answers hardly agreed: ask what is easier to see."
VISIBLE = "Lately many questions could not be answered: ask only about what the picture shows."


def parse_question(text: str, longest: int = 300) -> Parsed:
    """The one question in a proposal: between the tags, ending in "?", neither cut nor several."""
    found = tagged(text, "question")
    return found if found.value is None else parse_plain(found.value, longest)


def parse_plain(text: str, longest: int = 300) -> Parsed:
    """The same for models that write no tags: the whole text is the question."""
    question = " ".join(text.split())
    if len(question) > longest:
        return Parsed(None, f"the question has {len(question)} characters, over {longest}")
    if not question.endswith("?") or question.count("?") != 1:
        return Parsed(None, "not one sentence that ends in a question mark")
    if "<" in question or len(question) < 4:
        return Parsed(None, "not a question in plain words")
    return Parsed(question)


def tagged_question(text: str) -> str | None:
    """The question in a proposal, or None: how a verifier reads what `Propose` was told."""
    return parse_question(text).value


def plain_question(text: str) -> str | None:
    """The same for proposals without tags."""
    return parse_plain(text).value


@dataclass(frozen=True)
class Propose:
    """`n` questions about each picture, checked, and `answers` draws of the solver to each.

    The proposer sees the pictures and not the sample's own question, unless `example` shows it
    as one to differ from (MM-UPT's in-context questions, arXiv 2505.22453). A question counts as
    answerable when more than half of `checks` draws say yes to that (SENA rewrites where VisPlay
    and EvoLMM do without, arXiv 2412.15650, 2511.15661); checks that say neither yes nor no are
    left out, and without any verdict it is unknown and not asked. With `checks=0` nobody is asked
    and every readable question counts. Equal questions are asked once.

    Proposals carry `sampling["proposed"]` (the question or None), `["answerable"]` (True, False
    or None) and `["why"]` (empty when the question counts); answers carry
    `sampling["question"]` and `["proposal"]`, the proposal's id. A verifier can thus pay the
    proposer by how far its solver's answers agree. What the organizer step `Learnt` found in the
    last step (`guidance["learnt"]`) ends the instruction with a line: ask harder, easier, or only
    about what is shown.
    """

    n: int = 4
    answers: int = 4
    checks: int = 3
    instruction: str = PROPOSE
    tags: bool = True
    """Whether a question stands between <question> and </question>, or is the whole text."""
    example: bool = False
    role: str = "proposer"
    temperature: float = 1.0
    question_tokens: int = 96
    max_new_tokens: int = 64

    @property
    def per_problem(self) -> float:
        """Draws a problem, for cost estimates; checks are a word each, and not counted."""
        return self.n * (1 + self.answers)

    async def __call__(self, generate: Generate, sample: Sample, guidance: Mapping[str, Any]
                       ) -> list[Rollout]:
        """The proposals, each followed by the answers to it."""
        told = self.told(sample, guidance.get("learnt", {}))
        asked = await generate(asking(sample, told), n=self.n, role=self.role,
                               label="propose", sampling=self._sampling(self.question_tokens))
        found: list[Rollout] = []
        known: set[str] = set()
        for i, proposal in enumerate(asked):
            parsed = (parse_question if self.tags else parse_plain)(proposal.text)
            question, why, answerable = parsed.value, parsed.why, None
            if question is not None and question.lower() in known:
                question, why = None, "asked before"
            if question is not None:
                known.add(question.lower())
                answerable, why = await self._checked(generate, sample, question, f"check{i}")
            found.append(noted(proposal, proposed=question, answerable=answerable, why=why))
            if question is not None and not why and self.answers:
                found += await self._answered(generate, sample, question, proposal.id, i)
        return found

    def told(self, sample: Sample, learnt: Mapping[str, Any]) -> str:
        """The instruction, with the sample's own question and what was learnt, if there is any."""
        lines = [self.instruction]
        if self.example:
            lines.append(filled(EXAMPLE, question=sample.context.text))
        if learnt.get("unanswerable", 0) > 0.3:
            lines.append(VISIBLE)
        if (share := learnt.get("vote_share")) is not None and not 0.3 <= share <= 0.8:
            lines.append(HARDER if share > 0.8 else EASIER)
        return "\n".join(lines)

    def _sampling(self, tokens: int) -> Sampling:
        return Sampling(temperature=self.temperature, max_new_tokens=tokens)

    async def _checked(self, generate: Generate, sample: Sample, question: str, label: str
                       ) -> tuple[bool | None, str]:
        """(whether it can be answered, why it is not asked: "" if it is)."""
        if not self.checks:
            return None, ""
        asked = asking(sample, filled(ANSWERABLE, question=question))
        said = await generate(asked, n=self.checks, label=label, sampling=self._sampling(8))
        votes = Counter(one_of(r.text, ("yes", "no")).value for r in said)
        if not votes["yes"] + votes["no"]:
            return None, "answerability unknown"
        return (True, "") if votes["yes"] > votes["no"] else (False, "not answerable")

    async def _answered(self, generate: Generate, sample: Sample, question: str, proposal: str,
                        index: int) -> list[Rollout]:
        drawn = await generate(asking(sample, question), n=self.answers, label=f"answer{index}",
                               sampling=self._sampling(self.max_new_tokens))
        return [noted(r, question=question, proposal=proposal) for r in drawn]


@dataclass(frozen=True)
class AskOrAnswer:
    """`ask` for the samples of the data, `answer` for those that a model proposed.

    The sampler of a loop whose organizer holds `AskNext`: pictures are asked about in one step
    and the questions answered in the next. A proposed sample is known by its `parent`. Each of the
    two is given what it names, as it would be alone; both must be asynchronous, as this is.
    """

    ask: Sampler
    answer: Sampler

    def __post_init__(self) -> None:
        for inner in (self.ask, self.answer):
            check_call("sampler", inner, OFFERED)
            if not is_async(inner):
                raise SelfloopError(f"AskOrAnswer: {name_of(inner)} is not asynchronous; write it "
                                    "as async def and await generate")

    @property
    def asks(self) -> frozenset[str]:
        """What the two need of an engine."""
        return frozenset(getattr(self.ask, "asks", ())) | frozenset(getattr(self.answer, "asks",
                                                                            ()))

    @property
    def per_problem(self) -> float:
        """Draws a problem, for cost estimates: those about it, and the answers to what is asked."""
        ask, answer = (float(getattr(s, "per_problem", getattr(s, "n", 8)))
                       for s in (self.ask, self.answer))
        return ask + float(getattr(self.ask, "n", 1)) * answer

    async def __call__(self, generate: Generate, sample: Sample, **offered: Any) -> list[Rollout]:
        """What the one that is in charge draws. Gold values reach it only if it names them."""
        chosen = self.ask if sample.parent is None else self.answer
        drawn: list[Rollout] = await call_by_name(chosen, generate=generate, sample=sample,
                                                  **offered)
        return drawn
