"""The model's own description of a sample's pictures, drawn without the question."""

from __future__ import annotations

from dataclasses import dataclass

from selfloop.collect.conditioning import noted
from selfloop.doors import asking
from selfloop.roles import Generate, Sampling
from selfloop.types import Rollout, Sample

PROMPT = "Describe the picture in detail."


@dataclass(frozen=True)
class Describe:
    """One description, with `sampling["stage"] = "description"`; none without pictures.

    `builders.Described` puts it before the question (STIC, arXiv 2405.19716, stage 2).
    """

    prompt: str = PROMPT
    temperature: float = 0.2
    max_new_tokens: int = 256

    async def __call__(self, generate: Generate, sample: Sample) -> list[Rollout]:
        """The description as a rollout under the describing prompt."""
        if not sample.media:
            return []
        drawn = await generate(asking(sample, self.prompt), label="description", sampling=Sampling(
            temperature=self.temperature, max_new_tokens=self.max_new_tokens))
        return [noted(r, stage="description") for r in drawn]
