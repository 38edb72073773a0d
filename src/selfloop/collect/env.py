"""An environment is a sampler: its observations are messages, its tokens are never trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from selfloop.collect.conditioning import at_least_one
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Context, Media, Part, Rollout, Sample, Turn

Keep = Callable[[Any], Media]
"""Stores a picture with the run and gives its Media: `keep`, which the loop hands to samplers."""


class Episode(Protocol):
    """One play of an environment, in the shape of gymnasium's step.

    What is observed is a sequence of texts, `Media`, and PIL pictures; the last are stored with
    the run, so that a step can be learned from, replayed and resumed without the environment.
    """

    def reset(self, sample: Sample, key: str) -> Context | Sequence[Any]:
        """The first observation, as a context or as the parts of the first message."""
        ...

    def step(self, text: str) -> tuple[Sequence[Any], float, bool]:
        """(observation parts, reward, done) after the model said `text`."""
        ...


@dataclass(frozen=True)
class EnvSampler:
    """Play `n` episodes a sample, `max_turns` turns at most.

    `env` is a callable without arguments that makes a fresh Episode. The summed reward is kept
    in `sampling["return"]`, where `EnvironmentReturn` reads it, and what the model said last in
    `sampling["said_last"]`, which `LastTurn` has judged: the output holds the observations too,
    and an empty last turn would be read as the environment's words. An episode that is cut off
    at `max_turns` has the rewards that it earned until then.
    """

    env: Callable[[], Any]
    n: int = 4
    max_turns: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 64
    asks: ClassVar[frozenset[str]] = frozenset({"history"})

    def __post_init__(self) -> None:
        at_least_one(self, "n", "max_turns")

    @property
    def per_problem(self) -> float:
        """Draws a problem at most, for cost estimates."""
        return self.n * self.max_turns

    async def __call__(self, generate: Generate, sample: Sample, key: str, keep: Keep
                       ) -> list[Rollout]:
        """The episodes, each one rollout of several turns."""
        return [await self._play(generate, sample, f"{key}/episode{i}", i, keep)
                for i in range(self.n)]

    async def _play(self, generate: Generate, sample: Sample, key: str, index: int, keep: Keep
                    ) -> Rollout:
        episode = self.env()
        first = context = _begun(episode.reset(sample, key), keep)
        sampling = Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)
        turns: list[Turn] = []
        output: list[Part] = []
        total, done, rollout = 0.0, False, None
        while not done and len(turns) < self.max_turns:
            rollout = (await generate(context, sampling=sampling, history=turns,
                                      label=f"e{index}t{len(turns)}"))[0]
            turns += rollout.turns
            observed, reward, done = episode.step(rollout.text)
            total += reward
            output += rollout.output
            context = context.said("assistant", rollout.text)
            if not done:
                parts = _stored(observed, keep)
                context = context.said("user", *parts)
                # On lines of its own, so that the last line is what the model said last.
                output += [Part(text=f"\n{o}\n") if isinstance(o, str) else Part(type=o.kind)
                           for o in parts]
        assert rollout is not None  # max_turns >= 1
        return rollout.model_copy(update={
            "context": first, "turns": tuple(turns), "output": tuple(output),
            "sampling": {**rollout.sampling, "return": total, "turns": len(turns),
                         "said_last": rollout.text},
        })


def _begun(observed: Context | Sequence[Any], keep: Keep) -> Context:
    if isinstance(observed, Context):
        return observed
    return Context(prompt=()).said("user", *_stored(observed, keep))


def _stored(observed: Sequence[Any], keep: Keep) -> list[str | Media]:
    """Texts and media as they are, pictures as the Media that they are stored under."""
    parts: list[str | Media] = []
    for part in [observed] if isinstance(observed, str) else observed:
        if isinstance(part, str | Media):
            parts.append(part)
        elif hasattr(part, "convert"):  # a PIL picture, without importing PIL
            parts.append(keep(part))
        else:
            raise SelfloopError(f"an environment showed {type(part).__name__}; expected texts, "
                                "Media and PIL pictures")
    return parts
