"""Gymnasium environments as episodes: the model sees rendered frames and says an action's name.

gymnasium (Towers et al., arXiv 2407.17032) is an optional extra; any object with its `reset`,
`step`, `render` and `close` will do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop import keys
from selfloop.roles import SelfloopError
from selfloop.types import Sample


@dataclass(frozen=True)
class GymEnvironment:
    """`EnvSampler(GymEnvironment("CartPole-v1", actions=("left", "right")))`.

    `make` is a registered id, or a callable without arguments that makes the environment; it has
    to render RGB arrays of shape (height, width, 3). `actions[i]` is the word for the i-th
    discrete action; the model's turn has to name exactly one. A turn that names none, or
    several, costs a turn: the model is told what to say and the environment does not move.
    The seed is `sample.meta["env_seed"]` or, without one, drawn from the key. The question of the
    sample is shown with every frame's actions at the start.
    """

    make: str | Callable[[], Any]
    actions: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()
    """Keyword arguments of gymnasium.make, beside render_mode."""

    def __post_init__(self) -> None:
        if len(set(self.actions)) != len(self.actions) or not self.actions:
            raise SelfloopError(f"{self}: give each action a word of its own")

    def __call__(self) -> GymEpisode:
        """A fresh episode."""
        return GymEpisode(self._made(), self.actions)

    def _made(self) -> Any:
        if not isinstance(self.make, str):
            return self.make()
        try:
            import gymnasium
        except ImportError:
            raise SelfloopError(f"GymEnvironment({self.make!r}) needs gymnasium: "
                                "pip install 'selfloop[gym]'") from None
        return gymnasium.make(self.make, render_mode="rgb_array", **dict(self.options))


@dataclass
class GymEpisode:
    """One play. Frames become pictures, rewards are summed by the sampler."""

    env: Any
    actions: tuple[str, ...]

    def reset(self, sample: Sample, key: str) -> Sequence[Any]:
        """The first frame and what can be done."""
        given = sample.meta.get("env_seed")
        seed = given if isinstance(given, int) else keys.bits(key) % 2**31
        self.env.reset(seed=seed)
        return (self._frame(), f"{sample.context.text} {self._choices()}".strip())

    def step(self, text: str) -> tuple[Sequence[Any], float, bool]:
        """The next frame, its reward, and whether the play is over."""
        said = [i for i, word in enumerate(self.actions)
                if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.I)]
        if len(said) != 1:
            return (self._choices(),), 0.0, False
        _, reward, terminated, truncated, _ = self.env.step(said[0])
        if terminated or truncated:
            self.env.close()
            return (), float(reward), True
        return (self._frame(),), float(reward), False

    def _choices(self) -> str:
        return f"Say one of: {', '.join(self.actions)}."

    def _frame(self) -> Any:
        from PIL import Image

        pixels = self.env.render()
        if getattr(pixels, "ndim", 0) != 3 or pixels.shape[2] != 3:
            raise SelfloopError("the environment renders no RGB array of shape (height, width, "
                                "3); make it with render_mode='rgb_array'")
        return Image.fromarray(pixels)
