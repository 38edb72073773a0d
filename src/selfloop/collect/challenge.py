"""A proposer that writes small programs; what they draw makes problems with known answers.

The program changes the sample's picture in a way that a number decides. It is run once for each of
a few numbers, in a sandbox that the sampler is given and never in this process; the solver is shown
both pictures and asked which number it was. The answer is known because the program was run with
it: no label is read, and no model's opinion is asked.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from selfloop import keys
from selfloop.collect.conditioning import noted
from selfloop.collect.env import Keep
from selfloop.collect.tags import tagged
from selfloop.doors import filled
from selfloop.pictures import Library
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Context, Rollout, Sample

INSTRUCTION = (
    "Write a short Python program that changes a picture in a way that a number decides. It reads "
    "the picture from input.png and saves the changed one as picture.png, with PIL or numpy. The "
    "number stands in the variable value, which is set before the program starts. Somebody who "
    "looks at both pictures closely must be able to tell the number. Put the program between "
    "<code> and </code>, and two to four numbers to try between <values> and </values>, with "
    "commas between them.")
QUESTION = (
    "A program made the second picture from the first. Its variable value was one of {values}. "
    "Which one?\n{code}\nAnswer with the number alone.")
LONGEST = 2000
"""Characters of a program; a longer one is not run."""


class Ran(Protocol):
    """What a sandbox tells of a program: see engines.sandbox.Ran."""

    @property
    def picture(self) -> Image.Image | None: ...
    @property
    def ok(self) -> bool: ...
    @property
    def why(self) -> str: ...


Runs = Callable[[str, Mapping[str, bytes]], Ran]
"""(program, files by name) -> what came of it: an `engines.sandbox.Sandbox`."""


@dataclass(frozen=True)
class Made:
    """A problem that a program made, or why it made none."""

    why: str = ""
    code: str = ""
    values: tuple[str, ...] = ()
    answer: str = ""
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Challenge:
    """`n` programs a picture, and `answers` draws of the solver to the problem that each makes.

    The Challenger and Solver of EVE (arXiv 2604.18320). A program counts if it runs to its end
    within the sandbox's limits with every value, and no two of its pictures are equal: else the
    picture would not tell the number. The value that is asked for is drawn by key. Equal programs
    are run once and asked once.

    Proposals have `sampling["program"]` (the program, or None) and `["why"]` (empty where it made a
    problem); answers have `["proposal"]`, its id, and `["constructed"]`, the right number.
    Samples without a picture get nothing. Raises SelfloopError where `run` cannot shut code in.
    """

    run: Runs
    n: int = 4
    answers: int = 8
    instruction: str = INSTRUCTION
    role: str = "proposer"
    temperature: float = 1.0
    program_tokens: int = 512
    max_new_tokens: int = 64
    images: str = ""
    """Where pictures without a path lie: a run's images folder."""

    def __post_init__(self) -> None:
        if self.n < 1 or self.answers < 0:
            raise SelfloopError(f"Challenge(n={self.n}, answers={self.answers}): n must be at "
                                "least 1 and answers at least 0")

    @property
    def per_problem(self) -> float:
        """Draws a picture at most, for cost estimates."""
        return self.n * (1 + self.answers)

    async def __call__(self, generate: Generate, sample: Sample, key: str, keep: Keep
                       ) -> list[Rollout]:
        """The programs, each followed by the answers to its problem."""
        first = next((m for m in sample.media if m.kind == "image"), None)
        if first is None:
            return []
        library = Library(Path(self.images)) if self.images else Library()
        source = {"input.png": _png(library.open(first))}
        drawn = await generate(
            Context(prompt=()).said("user", first, self.instruction), n=self.n, role=self.role,
            label="challenge", sampling=self._sampling(self.program_tokens))
        found: list[Rollout] = []
        known: set[str] = set()
        for i, proposal in enumerate(drawn):
            made = self._made(proposal.text, source, known, f"{key}/{i}")
            found.append(noted(proposal, program=made.code or None, why=made.why))
            if made.picture is not None and self.answers:
                asked = Context(prompt=()).said("user", first, keep(made.picture), filled(
                    QUESTION, values=" or ".join(made.values), code=made.code))
                found += [noted(r, proposal=proposal.id, constructed=made.answer)
                          for r in await generate(asked, n=self.answers, label=f"answer{i}",
                                                  sampling=self._sampling(self.max_new_tokens))]
        return found

    def _sampling(self, tokens: int) -> Sampling:
        return Sampling(temperature=self.temperature, max_new_tokens=tokens)

    def _made(self, text: str, source: Mapping[str, bytes], known: set[str], key: str) -> Made:
        code, values, why = program_in(text)
        if why:
            return Made(why)
        if code in known:
            return Made("written before", code)
        known.add(code)
        pictures: list[Image.Image] = []
        for value in values:
            ran = self.run(f"value = {value}\n{code}\n", source)
            if not ran.ok or ran.picture is None:
                return Made(f"with value {value}: {ran.why or 'it saved no picture'}"[:200], code)
            pictures.append(ran.picture)
        if len({(p.size, p.tobytes()) for p in pictures}) < len(pictures):
            return Made("two of its values give the same picture", code)
        chosen = int(keys.generator(f"{key}/value").integers(len(values)))
        return Made("", code, values, values[chosen], pictures[chosen])


def program_in(text: str) -> tuple[str, tuple[str, ...], str]:
    """(program, its values as they are written, why there is none) of a proposal."""
    code, told = tagged(text, "code"), tagged(text, "values")
    if code.value is None or told.value is None:
        return "", (), code.why or told.why
    values = tuple(v.strip() for v in told.value.split(","))
    if not all(re.fullmatch(r"-?\d{1,6}(\.\d{1,6})?", v) for v in values):
        return "", (), "values that are no plain numbers"
    if not 2 <= len(values) <= 4 or len({float(v) for v in values}) < len(values):
        return "", (), f"{len(values)} values; expected two to four different ones"
    if len(code.value) > LONGEST:
        return "", (), f"the program has {len(code.value)} characters, over {LONGEST}"
    return code.value, values, ""


def _png(picture: Any) -> bytes:
    out = io.BytesIO()
    picture.convert("RGB").save(out, "PNG")
    return out.getvalue()
