"""Second looks at answers: critique and revise, select among K, context refined round by round."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from selfloop import keys
from selfloop.collect.conditioning import at_least_one, noted, put_under
from selfloop.collect.guided import ending
from selfloop.collect.tags import one_number
from selfloop.doors import filled
from selfloop.roles import Generate, Sampling
from selfloop.types import Rollout, Sample


@dataclass(frozen=True)
class CritiqueRevise:
    """`n` answers, each criticised and revised `rounds` times (Volcano, arXiv 2311.07362).

    Every stage is a rollout with `sampling["stage"]`: answer, revision and, if `keep_critiques`,
    critique; a revision names what it revises in `sampling["of"]`. `plain` puts revisions under
    the question alone, so that the model learns to give them at once, and pairs may prefer them to
    first answers; otherwise they are trained where they were drawn, which teaches to revise, and
    are no pair with an answer to the question alone. Whether a revision is better is the verifier's
    business: no critique is believed, and none is judged as an answer (see organize.judging).
    """

    n: int = 4
    rounds: int = 1
    criticise: str = ("Compare this answer with the picture. Name what it gets wrong or leaves "
                      "out, or say that nothing is.")
    revise: str = "Now give the answer to the question again, mended where it needs to be."
    plain: bool = False
    keep_critiques: bool = False
    critic: str = "solver"
    """The role whose model criticises."""
    temperature: float = 1.0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        at_least_one(self, "n")

    @property
    def per_problem(self) -> float:
        """Draws a problem, for cost estimates."""
        return self.n * (1 + 2 * self.rounds)

    async def __call__(self, generate: Generate, sample: Sample) -> list[Rollout]:
        """The answers, each followed by its later stages."""
        firsts = await generate(sample, n=self.n, sampling=self._sampling(), label="answer")
        later = await asyncio.gather(
            *(self._revised(generate, sample, first, f"{i}") for i, first in enumerate(firsts)))
        found: list[Rollout] = []
        for first, stages in zip(firsts, later, strict=True):
            found += [noted(first, stage="answer"), *stages]
        return found

    def _sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)

    async def _revised(self, generate: Generate, sample: Sample, answer: Rollout, name: str
                       ) -> list[Rollout]:
        stages: list[Rollout] = []
        for k in range(self.rounds):
            # Each round starts from question and answer, so that the conversation stays short.
            asked = sample.context.said("assistant", answer.text).said("user", self.criticise)
            (critique,) = await generate(asked, role=self.critic, sampling=self._sampling(),
                                         label=f"critique{name}.{k}")
            told = asked.said("assistant", critique.text).said("user", self.revise)
            (revision,) = await generate(told, sampling=self._sampling(),
                                         label=f"revision{name}.{k}")
            if self.keep_critiques:
                stages.append(noted(critique, stage="critique", of=answer.id))
            notes = {"stage": "revision", "of": answer.id, "critique": critique.text}
            stages.append(put_under(sample.context, revision, **notes) if self.plain
                          else noted(revision, **notes))
            answer = revision
        return stages


@dataclass(frozen=True)
class SelectAmong:
    """`n` answers, and `votes` choices of the best of them (R3V, arXiv 2411.00855, self-select).

    Each choice sees the answers in another order, so that no place is favoured. The rollouts of
    choices have `sampling["stage"] = "choice"` and, in `sampling["chosen"]`, the id of the chosen
    answer; None where the choice named no answer, or several. A choice's text is the number of a
    place and no answer: it is judged by what it chose (organize.judging).
    """

    n: int = 3
    votes: int = 1
    instruction: str = ("Here are {n} answers to this question. Look at the picture and say which "
                        "is right. Write its number and nothing else.")
    temperature: float = 1.0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        at_least_one(self, "n", "votes")

    @property
    def per_problem(self) -> float:
        """Draws a problem, for cost estimates."""
        return self.n + self.votes

    async def __call__(self, generate: Generate, sample: Sample, key: str) -> list[Rollout]:
        """The answers, then the choices."""
        sampling = Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)
        answers = await generate(sample, n=self.n, sampling=sampling, label="answer")
        found = [noted(r, stage="answer") for r in answers]
        for vote in range(self.votes):
            order = keys.shuffled(self.n, f"{key}/order{vote}")
            listed = "\n".join(f"{place}. {answers[i].text.strip()}"
                               for place, i in enumerate(order, 1))
            asked = ending(sample.context, filled(self.instruction, n=str(self.n)) + "\n" + listed)
            (choice,) = await generate(asked, sampling=sampling, label=f"choice{vote}")
            parsed = one_number(choice.text, 1, self.n)
            chosen = answers[order[int(parsed.value) - 1]].id if parsed.value else None
            found.append(noted(choice, stage="choice", chosen=chosen, why=parsed.why))
        return found


@dataclass(frozen=True)
class RefinedContext:
    """`n` answers that see a description of the picture, refined `rounds` times.

    The t-th description is drawn from the picture, the question and the one before it (i-SRT,
    arXiv 2406.11280). The last is given with the question. With `plain`, the answers are put
    under the question alone (SENA distils its description-improved answers so, arXiv 2412.15650).
    `keep` adds the descriptions, as rollouts with `sampling["stage"] = "description"`.
    """

    n: int = 4
    rounds: int = 3
    describe: str = "Describe what the picture shows that matters for this question."
    improve: str = ("Write a better description: drop what the picture does not show and add what "
                    "is missing.")
    plain: bool = True
    keep: bool = False
    temperature: float = 1.0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        at_least_one(self, "n")

    @property
    def per_problem(self) -> float:
        """Draws a problem, for cost estimates."""
        return self.n + self.rounds

    async def __call__(self, generate: Generate, sample: Sample) -> list[Rollout]:
        """The descriptions if they are kept, then the answers."""
        sampling = Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)
        asked = first = ending(sample.context, self.describe)
        descriptions: list[Rollout] = []
        for t in range(self.rounds):
            descriptions += await generate(asked, sampling=sampling, label=f"description{t}")
            asked = first.said("assistant", descriptions[-1].text).said("user", self.improve)
        text = descriptions[-1].text if descriptions else ""
        helped = ending(sample.context, f"What the picture shows: {text}") if text \
            else sample.context
        answers = await generate(helped, n=self.n, sampling=sampling, label="answer")
        kept = [noted(d, stage="description", round=t) for t, d in enumerate(descriptions)
                if self.keep]
        notes = {"stage": "answer", "description": text}
        return [*kept, *(put_under(sample.context, r, **notes) if self.plain
                         else noted(r, **notes) for r in answers)]
