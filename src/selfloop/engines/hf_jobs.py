"""What the sampler is asked for and what it gives: plain data."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from selfloop.engines.hf_guided import Other
from selfloop.engines.hf_hiding import Blind
from selfloop.roles import Sampling
from selfloop.types import FinishReason, Media, Turn


@dataclass(frozen=True)
class Job:
    """n answers to one prompt. `forced` opens each of them without being drawn."""

    prompt: tuple[int, ...]
    media: tuple[Media, ...]
    forced: tuple[int, ...]
    key: str
    n: int
    sampling: Sampling
    room: int
    """Tokens that may still be drawn before the model's positions end."""
    blind: Blind | None = None
    """What text may not see of the pictures."""
    other: Other | None = None
    """The second context of a contrast, whose logits are mixed in."""

    @property
    def ids(self) -> tuple[int, ...]:
        """What the model reads before the first draw."""
        return (*self.prompt, *self.forced)

    @property
    def steps(self) -> int:
        """Most tokens that are drawn."""
        return min(self.sampling.max_new_tokens, self.room)

    @property
    def guided(self) -> bool:
        """Whether draws follow another distribution than the model's."""
        return self.blind is not None or self.other is not None

    @property
    def alike(self) -> Hashable:
        """Jobs that agree in this may be decoded together."""
        return (replace(self.sampling, contrast=None), self.steps, self.blind is None,
                self.other is None)

    @property
    def size(self) -> tuple[int, int]:
        """Tokens that are cached: of the prompt, and for each draw."""
        if self.other is None:
            return len(self.ids), self.steps
        return len(self.ids) + len(self.other.ids), 2 * self.steps


@dataclass(frozen=True)
class Drawn:
    """One answer's drawn tokens, with log-probs before top-p/top-k/min-p (`draw` gives None for
    greedy ones, unless diverse, and for guided ones)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason


def turn(job: Job, drawn: Drawn) -> Turn:
    """A drawn answer as the loop stores it."""
    forced = len(job.forced)
    logprobs = (*(0.0,) * forced, *drawn.logprobs) if drawn.logprobs is not None else None
    return Turn(
        prompt_token_ids=job.prompt, media=job.media, token_ids=(*job.forced, *drawn.token_ids),
        logprobs=logprobs, temperature=job.sampling.temperature or 1.0,
        loss_mask=(*(0,) * forced, *(1,) * len(drawn.token_ids)) if forced else None,
        finish_reason=drawn.finish_reason)
