"""Several questions about one picture, each under several views: the label-free evidence."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from selfloop.collect.conditioning import at_least_one
from selfloop.doors import asking
from selfloop.roles import Generate, Sampling
from selfloop.types import Context, Rollout, Sample


@dataclass(frozen=True)
class RelatedQuestions:
    """Ask `questions` of `sample.meta["related"]` on the clean picture and on `views` views.

    Agreement across paraphrases, related questions and augmented views stands in for a label
    (soft and hard votes: MM-UPT arXiv 2505.22453, primitives V13, V29). Each rollout remembers
    its question in `sampling["question"]`.
    """

    questions: int = 3
    views: int = 3
    n: int = 1
    """Draws for each (question, view)."""
    temperature: float = 1.0
    max_new_tokens: int = 64
    severity: float = 0.5

    def __post_init__(self) -> None:
        at_least_one(self, "n", "questions")

    async def __call__(self, generate: Generate, sample: Sample, key: str) -> list[Rollout]:
        """All (question, view) draws of one picture, in one group."""
        asked = self._contexts(sample, key)
        sampling = Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)
        drawn = await asyncio.gather(*(
            generate(context, n=self.n, sampling=sampling, label=label)
            for context, label, _ in asked
        ))
        return [
            rollout.model_copy(update={"sampling": {**rollout.sampling, "question": question}})
            for rollouts, (_, _, question) in zip(drawn, asked, strict=True)
            for rollout in rollouts
        ]

    def _contexts(self, sample: Sample, key: str) -> list[tuple[Context, str, str]]:
        own = sample.context.text
        related = sample.meta.get("related")
        others = [q for q in related if isinstance(q, str) and q != own] \
            if isinstance(related, list) else []
        found = []
        for q, question in enumerate([own, *others][:self.questions]):
            context = sample.context if not q else asking(sample, question)
            for view in range(self.views + 1):
                media = sample.media if not view else tuple(
                    m.with_op("view", self.severity, f"{key}/q{q}/view{view}")
                    for m in sample.media
                )
                found.append((context.seen_as(media), f"q{q}v{view}", question))
        return found
