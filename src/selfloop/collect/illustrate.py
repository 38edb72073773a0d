"""A proposer that describes pictures, a coder that draws them by program, a solver that looks.

No picture is read: a sample gives a topic in words. The proposer writes what a picture shall show
and two questions about it, the coder a program for it, which is run in a sandbox that the sampler
is given and never in this process; the solver is shown what was drawn and asked both questions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from selfloop.collect.challenge import LONGEST, Runs
from selfloop.collect.conditioning import noted
from selfloop.collect.env import Keep
from selfloop.collect.tags import tagged
from selfloop.doors import asking_of, filled
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Context, Media, Rollout, Sample

CONCEIVE = (
    "Think of a picture that a short program can draw (a chart, a diagram, shapes, a table, a map) "
    "and that one has to study to understand. Write, each between its tags and nothing else: what "
    "it shows, in every detail, between <caption> and </caption>; a question whose answer can be "
    "read off the picture at once between <easy_question> and </easy_question>, and its answer "
    "between <easy_answer> and </easy_answer>; a question that takes several steps and values that "
    "stand only in the picture between <hard_question> and </hard_question>, and its answer "
    "between <hard_answer> and </hard_answer>. Answers are one number, one word or a very short "
    "phrase.")
DRAW = (
    "Write a short Python program that draws this picture with PIL or numpy and saves it as "
    "picture.png. Both questions must be answerable from the picture, and neither answer may be "
    "written in it as such. Put the program between <code> and </code>.\n\n"
    "The picture: {caption}\nEasy question: {easy_question}\nIts answer: {easy_answer}\n"
    "Hard question: {hard_question}\nIts answer: {hard_answer}")
TAGS = ("caption", "easy_question", "easy_answer", "hard_question", "hard_answer")


@dataclass(frozen=True)
class Conceived:
    """What a proposal holds."""

    caption: str
    easy_question: str
    easy_answer: str
    hard_question: str
    hard_answer: str


def conceived_in(text: str) -> tuple[Conceived | None, str]:
    """(what a proposal holds, why it holds nothing)."""
    found = {name: tagged(text, name) for name in TAGS}
    for parsed in found.values():
        if parsed.value is None:
            return None, parsed.why
    return Conceived(**{name: str(parsed.value) for name, parsed in found.items()}), ""


@dataclass(frozen=True)
class Illustrate:
    """`n` proposals a sample, `codes` programs each, `answers` draws to a picture's two questions.

    The Proposer, Coder and Solver of MM-Zero (arXiv 2603.09206). The proposer sees the sample's
    text, as a topic, and none of its pictures. A program counts if it runs to its end within the
    sandbox's limits and its picture is of more than one colour. Equal programs are run once; each
    has answers of its own.

    Proposals have `sampling["conceived"]` (what they hold, or None) and `["why"]`; programs have
    `["program"]` (or None), `["why"]` (empty where there is a picture) and `["proposal"]`, the id
    of what they draw. Answers have `["drawing"]`, the id of their picture's program; those to the
    easy question `["expected"]`, the proposer's answer, those to the hard one `["proposal"]`, by
    which `ByQuestion` makes each picture's a group. Raises SelfloopError where `run` cannot shut
    code in.
    """

    run: Runs
    n: int = 4
    codes: int = 4
    answers: int = 5
    instruction: str = CONCEIVE
    drawing: str = DRAW
    temperature: float = 1.0
    proposal_tokens: int = 1024
    program_tokens: int = 2048
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if min(self.n, self.codes) < 1 or self.answers < 0:
            raise SelfloopError(
                f"Illustrate(n={self.n}, codes={self.codes}, answers={self.answers}): n and codes "
                "must be at least 1 and answers at least 0")

    @property
    def per_problem(self) -> float:
        """Draws a sample at most, for cost estimates."""
        return self.n * (1 + self.codes * (1 + 2 * self.answers))

    async def __call__(self, generate: Generate, sample: Sample, keep: Keep) -> list[Rollout]:
        """The proposals, each followed by its programs, each of those by its answers.

        All programs are asked for side by side, then all answers: so they share batches.
        """
        told = f"{sample.context.text}\n\n{self.instruction}".strip()
        proposals = await generate(
            Context(prompt=()).said("user", told), n=self.n, role="proposer", label="conceive",
            sampling=self._sampling(self.proposal_tokens))
        read = [conceived_in(p.text) for p in proposals]
        programs = await asyncio.gather(*(self._programs(generate, what, f"draw{i}")
                                          for i, (what, _) in enumerate(read)))
        known: dict[str, tuple[Any, str]] = {}
        drawn = [[(noted(p, proposal=proposal.id), *self._ran(p.text, known)) for p in own]
                 for proposal, own in zip(proposals, programs, strict=True)]
        answers = await asyncio.gather(*(
            self._answers(generate, what, picture and keep(picture), program.id, f"{i}/{j}")
            for i, ((what, _), own) in enumerate(zip(read, drawn, strict=True))
            for j, (program, _, picture, _) in enumerate(own)))
        found, looked = [], iter(answers)
        for proposal, (what, why), own in zip(proposals, read, drawn, strict=True):
            found.append(noted(proposal, conceived=asdict(what) if what else None, why=why))
            for program, code, _, no in own:
                found += [noted(program, program=code or None, why=no), *next(looked)]
        return found

    def _sampling(self, tokens: int) -> Sampling:
        return Sampling(temperature=self.temperature, max_new_tokens=tokens)

    async def _programs(self, generate: Generate, what: Conceived | None, label: str
                        ) -> list[Rollout]:
        if what is None:
            return []
        order = Context(prompt=()).said("user", filled(self.drawing, **asdict(what)))
        return await generate(order, n=self.codes, role="coder", label=label,
                              sampling=self._sampling(self.program_tokens))

    def _ran(self, text: str, known: dict[str, tuple[Any, str]]) -> tuple[str, Any, str]:
        """(the program, its picture, why there is none)."""
        code, why = _program(text)
        if not code:
            return "", None, why
        if code not in known:
            ran = self.run(code, _NOTHING)
            if not ran.ok or ran.picture is None:
                known[code] = None, (ran.why or "it saved no picture")[:200]
            elif ran.picture.convert("RGB").getcolors(1) is not None:
                known[code] = None, "its picture is of one colour"
            else:
                known[code] = ran.picture, ""
        return code, *known[code]

    async def _answers(self, generate: Generate, what: Conceived | None, medium: Media | None,
                       drawing: str, label: str) -> list[Rollout]:
        """The solver's answers to both questions of a picture."""
        if what is None or medium is None or not self.answers:
            return []
        both = await asyncio.gather(*(generate(
            asking_of([medium], question), n=self.answers, label=f"{kind}{label}",
            sampling=self._sampling(self.max_new_tokens)) for kind, question in (
                ("easy", what.easy_question), ("hard", what.hard_question))))
        return [*(noted(r, drawing=drawing, expected=what.easy_answer) for r in both[0]),
                *(noted(r, drawing=drawing, proposal=drawing) for r in both[1])]


_NOTHING: Mapping[str, bytes] = {}


def _program(text: str) -> tuple[str, str]:
    """(the program, why there is none)."""
    code = tagged(text, "code")
    if code.value is None:
        return "", code.why
    if len(code.value) > 2 * LONGEST:
        return "", f"the program has {len(code.value)} characters, over {2 * LONGEST}"
    return code.value, ""
