"""A proposer: questions about a picture, asked by the model itself (primitive S13)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from selfloop.collect.conditioning import noted
from selfloop.collect.related import asking
from selfloop.collect.tags import Parsed, one_of, tagged
from selfloop.roles import Generate, Sampling
from selfloop.types import Group, Rollout, Sample

PROPOSE = ("Ask one question about this picture that can be answered from the picture alone, by a "
           "word, a number or a short phrase, and that one has to look closely to answer. Do not "
           "give the answer. Write the question between <question> and </question>.")
ANSWERABLE = ("Can this question be answered from the picture alone? Question: {question}\n"
              "Answer yes or no.")


def parse_question(text: str, longest: int = 300) -> Parsed:
    """The one question in a proposal: between the tags, ending in "?", neither cut nor several."""
    found = tagged(text, "question")
    if found.value is None:
        return found
    question = " ".join(found.value.split())
    if len(question) > longest:
        return Parsed(None, f"the question has {len(question)} characters, over {longest}")
    if not question.endswith("?") or question.count("?") != 1:
        return Parsed(None, "not one sentence that ends in a question mark")
    if "<" in question or len(question) < 4:
        return Parsed(None, "not a question in plain words")
    return Parsed(question)


@dataclass(frozen=True)
class Propose:
    """`n` questions about each picture, checked, and `answers` draws of the solver to each.

    The proposer sees the pictures and not the sample's own question. A question counts as
    answerable when more than half of `checks` draws say yes to that (SENA rewrites where VisPlay
    and EvoLMM do without, arXiv 2412.15650, 2511.15661); checks that say neither yes nor no are
    left out, and without any verdict it is unknown and not asked. Equal questions are asked once.
    Proposals carry `sampling["proposed"]` (the question or None), `["answerable"]` and `["why"]`;
    answers carry `sampling["question"]` and `["proposal"]`, the proposal's id. A verifier can
    thus pay the proposer by how far its solver's answers agree.
    """

    n: int = 4
    answers: int = 4
    checks: int = 3
    instruction: str = PROPOSE
    role: str = "proposer"
    temperature: float = 1.0
    question_tokens: int = 96
    max_new_tokens: int = 64

    async def __call__(self, generate: Generate, sample: Sample) -> list[Rollout]:
        """The proposals, each followed by the answers to it."""
        asked = await generate(asking(sample, self.instruction), n=self.n, role=self.role,
                               label="propose", sampling=self._sampling(self.question_tokens))
        found: list[Rollout] = []
        known: set[str] = set()
        for i, proposal in enumerate(asked):
            parsed = parse_question(proposal.text)
            question, why, answerable = parsed.value, parsed.why, None
            if question is not None and question.lower() in known:
                question, why = None, "asked before"
            if question is not None:
                known.add(question.lower())
                answerable = await self._answerable(generate, sample, question, f"check{i}")
                why = {True: "", False: "not answerable", None: "answerability unknown"}[answerable]
            found.append(noted(proposal, proposed=question, answerable=answerable, why=why))
            if question is not None and answerable:
                found += await self._answered(generate, sample, question, proposal.id, i)
        return found

    def _sampling(self, tokens: int) -> Sampling:
        return Sampling(temperature=self.temperature, max_new_tokens=tokens)

    async def _answerable(self, generate: Generate, sample: Sample, question: str, label: str
                          ) -> bool | None:
        asked = asking(sample, ANSWERABLE.format(question=question))
        said = await generate(asked, n=self.checks, label=label, sampling=self._sampling(8))
        votes = Counter(one_of(r.text, ("yes", "no")).value for r in said)
        if not votes["yes"] + votes["no"]:
            return None
        return votes["yes"] > votes["no"]

    async def _answered(self, generate: Generate, sample: Sample, question: str, proposal: str,
                        index: int) -> list[Rollout]:
        drawn = await generate(asking(sample, question), n=self.answers, label=f"answer{index}",
                               sampling=self._sampling(self.max_new_tokens))
        return [noted(r, question=question, proposal=proposal) for r in drawn]


def proposed_samples(groups: Sequence[Group]) -> list[Sample]:
    """The answerable questions in these groups as new samples, without answers.

    `parent` is the rollout that proposed it. The clusters are those of the pictures' own samples,
    so that questions about one picture are resampled together.
    """
    found: list[Sample] = []
    for group in groups:
        for rollout in group.rollouts:
            question = rollout.sampling.get("proposed")
            if isinstance(question, str) and rollout.sampling.get("answerable") is True:
                context = asking(group.sample, question)
                found.append(Sample(
                    prompt=context.prompt, media=context.media, parent=rollout.id,
                    meta={"task": "proposed", "cluster": group.sample.cluster}))
    return found
