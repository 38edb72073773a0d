"""The roles: four call shapes and one engine, no base classes and no registry.

A **sampler** draws rollouts through `generate`, the only door to a model. A **verifier** judges
them. An **organizer** turns judged groups into signals, by pure data handling. A **loss** turns
log-probabilities into a number. Components name what they need and get only that:

>>> def verify(rollout, answer): ...          # reads labels, because it names `answer`
>>> async def sample(generate, sample): ...   # does not care for guidance
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from selfloop.calling import (
    LABELS,
    SelfloopError,
    as_verdict,
    asks_a_model,
    call_by_name,
    check_call,
    component_named,
    gold,
    name_of,
    names_any,
    parameters,
    reads,
    source_hash,
)
from selfloop.sampling import Contrast, Sampling
from selfloop.types import AnySignal, Branch, Context, Rollout, Sample, Turn

__all__ = [
    "LABELS", "Contrast", "Engine", "Generate", "Guidance", "Known", "Loss", "Optim", "Organized",
    "Organizer", "Request", "Sampler", "Sampling", "SelfloopError", "State", "Verifier",
    "as_verdict", "asks_a_model", "call_by_name", "check_call", "component_named", "gold",
    "name_of", "names_any", "parameters", "reads", "source_hash",
]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of `generate` as an engine sees it."""

    context: Context
    key: str
    """Draw i uses the random stream of f"{key}/{i}"."""
    n: int = 1
    sampling: Sampling = Sampling()
    history: tuple[Turn, ...] = ()
    """Turns already drawn in this conversation; their tokens are kept, not re-tokenised."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SelfloopError(f"Request(n={self.n}): expected 1 draw or more")


class Generate(Protocol):
    """The door: draws `n` one-turn rollouts from a role's model for a context."""

    async def __call__(
        self, context: Context | Sample, *, n: int = 1, role: str = "solver",
        sampling: Sampling | None = None, history: Sequence[Turn] = (), label: str = "",
    ) -> list[Rollout]: ...


Guidance = Mapping[str, Any]
State = Mapping[str, Any]
Organized = tuple[list[AnySignal], dict[str, Any], dict[str, Any]]
"""(signals, state, guidance); the last two are JSON-able."""

Sampler = Callable[..., Any]
"""(generate, sample[, guidance, key, answer, rationale]) -> list[Rollout]; sync or async."""
Verifier = Callable[..., Any]
"""(rollout | group[, sample, generate, answer, rationale, key]) -> bool|float|Verdict|None,
a list of those (for a group), or the Group with annotations. Sync or async."""
Organizer = Callable[..., Organized]
"""(groups, state[, key, answers, rationales]) -> Organized."""


@runtime_checkable
class Loss(Protocol):
    """A loss returns sums; the learner divides each term once, by its global unit count."""

    @property
    def needs(self) -> frozenset[str]:
        """Of: reference, old, drawn, teacher, entropy, collision, others, words, statistics;
        see docs/losses.md."""
        ...

    def accepts(self, signal: AnySignal) -> bool:
        """Whether this loss reads that signal."""
        ...

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """Each term's denominator; `tokens[branch][i]` = trained tokens of signal i."""
        ...

    def __call__(self, batch: Any, /) -> dict[str, tuple[float, Any]]:
        """{term: (weight, sum over this micro-batch)}; see optimize/batch.py for `batch`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How one step learns from its signals (AdamW)."""

    lr: float = 1e-4
    updates: int | None = None
    """Optimizer updates a step, cycling over the signals; None = `epochs` passes."""
    epochs: int = 1
    batch: int = 64
    """Signals an update. Groups stay whole when `whole_groups`."""
    whole_groups: bool = False
    schedule: str = "constant"
    """constant | linear | cosine: over the updates of one step."""
    warmup: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    start: str = "previous"
    """previous: go on from the last step's weights; seed: restart from the seed (R3V)."""
    reset: bool = False
    """Whether the optimizer's moments are dropped at the start of each step."""
    reference: str = "previous"
    """What reference log-probs mean: weights at the start of the step, or the seed's."""
    ema: float | None = None
    """Keep a running average of the weights: average <- ema average + (1 - ema) weights."""
    publish: str = "current"
    """current, or ema: which weights a published version is: drawn from, evaluated, and saved as
    best. Learning always goes on from the current ones."""
    diverged: float | None = field(default=100.0, metadata={"described": False})
    """Stop before an update whose loss or gradient norm is more than so many times its running
    band (optimize/divergence.py has the exact rule); None = never."""

    def __post_init__(self) -> None:
        _one_of("Optim.publish", self.publish, ("current", "ema"))
        _one_of("Optim.start", self.start, ("previous", "seed"))
        _one_of("Optim.reference", self.reference, ("previous", "seed"))
        _one_of("Optim.schedule", self.schedule, ("constant", "linear", "cosine"))
        for name in ("lr", "batch", "epochs", "updates"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SelfloopError(f"Optim.{name}={value:g}: must be positive")
        if self.ema is not None and not 0 < self.ema < 1:
            raise SelfloopError(f"Optim.ema={self.ema:g}: expected between 0 and 1, as in 0.99")
        if self.publish == "ema" and self.ema is None:
            raise SelfloopError("Optim.publish='ema': there is no average to publish; give "
                                "Optim.ema, as in 0.99")
        if self.diverged is not None and not self.diverged > 1:
            raise SelfloopError(f"Optim.diverged={self.diverged:g}: expected more than 1, or None")


def _one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SelfloopError(f"{what}={value!r}: expected one of {', '.join(allowed)}")


Known = Mapping[str, Mapping[tuple[int, str], Sequence[float]]]
"""{"reference" | "teacher" | "old": {(signal index, branch): log-probs of its trained tokens}}"""


class Engine(Protocol):
    """Everything selfloop asks of a model, local or remote."""

    supports: frozenset[str]
    """Of: images, forced_prefix, stop, history, learn, contrast, masked_attention, diversity."""
    version: int
    """The policy version that the current weights are."""
    name: str
    """What it was made from: a model folder, a hub id, "embedded"."""

    def bind(self, open_media: Callable[..., Any]) -> None:
        """Give the engine the reader that turns a Media into a PIL picture."""
        ...

    def generate(self, requests: Sequence[Request], version: int) -> list[list[Turn]]:
        """n turns for each request, drawn by exactly `version` (refused otherwise)."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Drawn tokens as text, without special tokens."""
        ...

    def rows(self, branch: Branch) -> list[Any]:
        """The branch as token sequences (optimize.rows.Row), as the learner reads it."""
        ...

    def logprobs(self, branches: Sequence[Branch], version: int | str = "current"
                 ) -> list[list[float]]:
        """Log-probs of each branch's trained tokens; `version` may be "current" or "seed"."""
        ...

    def forward_backward(
        self, signals: Sequence[AnySignal], loss: Loss, known: Known
    ) -> dict[str, float]:
        """Add the loss's gradients; returns its terms, already divided, and monitors."""
        ...

    def optim_step(self, optim: Optim, lr: float) -> dict[str, float]:
        """One AdamW update; clears the gradients. Returns the gradient norm."""
        ...

    def reset_optimizer(self) -> None:
        """Forget the moments."""
        ...

    def publish(self, version: int, keep: int) -> None:
        """Name the current weights `version`; keep the last `keep` versions for sampling."""
        ...

    def save(self, folder: Path) -> None:
        """A folder that plain `from_pretrained` loads, with its processor."""
        ...

    def save_state(self, folder: Path) -> None:
        """Weights, optimizer and published versions, for a bit-exact `load_state`."""
        ...

    def load_state(self, folder: Path) -> None:
        """The inverse of `save_state`."""
        ...

    def restart(self) -> None:
        """Back to the seed's weights, with a fresh optimizer."""
        ...

    def flops(self, forward_tokens: int, trained_tokens: int) -> float:
        """Floating-point operations for so many tokens read and so many trained on."""
        ...

    def fingerprint(self) -> str:
        """Hash of the seed weights and whatever else decides what this engine computes."""
        ...
