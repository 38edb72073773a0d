"""An environment is a sampler: its observations are messages, its tokens are never trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from selfloop.roles import Generate, Sampling
from selfloop.types import Context, Media, Part, Rollout, Sample, Turn


class Episode(Protocol):
    """One play of an environment, in the shape of gymnasium's step."""

    def reset(self, sample: Sample, key: str) -> Context:
        """The first observation, as a context."""
        ...

    def step(self, text: str) -> tuple[tuple[str | Media, ...], float, bool]:
        """(observation parts, reward, done) after the model said `text`."""
        ...


@dataclass(frozen=True)
class EnvSampler:
    """Play `n` episodes a sample, `max_turns` turns at most.

    `env` is a callable without arguments that makes a fresh Episode. The summed reward is kept
    in `sampling["return"]`, where an environment verifier reads it.
    """

    env: Callable[[], Any]
    n: int = 4
    max_turns: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 64
    asks: ClassVar[frozenset[str]] = frozenset({"history"})

    async def __call__(self, generate: Generate, sample: Sample, key: str) -> list[Rollout]:
        """The episodes, each one rollout of several turns."""
        return [await self._play(generate, sample, f"{key}/episode{i}", i) for i in range(self.n)]

    async def _play(self, generate: Generate, sample: Sample, key: str, index: int) -> Rollout:
        episode = self.env()
        first = context = episode.reset(sample, key)
        sampling = Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)
        turns: list[Turn] = []
        output: list[Part] = []
        total, done, rollout = 0.0, False, None
        while not done and len(turns) < self.max_turns:
            rollout = (await generate(context, sampling=sampling, history=turns,
                                      label=f"e{index}t{len(turns)}"))[0]
            turns += rollout.turns
            observation, reward, done = episode.step(rollout.text)
            total += reward
            output += rollout.output
            context = context.said("assistant", rollout.text)
            if not done:
                context = context.said("user", *observation)
                output += [Part(text=o) if isinstance(o, str) else Part(type=o.kind)
                           for o in observation]
        assert rollout is not None  # max_turns >= 1
        return rollout.model_copy(update={
            "context": first, "turns": tuple(turns), "output": tuple(output),
            "sampling": {**rollout.sampling, "return": total, "turns": len(turns)},
        })
