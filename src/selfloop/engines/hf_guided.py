"""Draws that lean on another context, or on less of the picture, than they are trained under.

Two contexts are run side by side over the same answer, each read once and forked like any prompt;
their logits are mixed (primitive S5). What is hidden of a picture is in hf_hiding (S6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from selfloop.engines.hf_cache import Copied, Forked
from selfloop.engines.hf_hiding import Blind
from selfloop.engines.hf_prompt import Prompts
from selfloop.optimize.score import Reader
from selfloop.roles import Contrast, Request, Sampling, SelfloopError
from selfloop.types import Media


@dataclass(frozen=True)
class Other:
    """The second context of a contrast as the model reads it, what is forced included."""

    ids: tuple[int, ...]
    media: tuple[Media, ...]
    blind: Blind | None = None


class Mixable(Protocol):
    """A job of hf_decode, as far as it is looked at here."""

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def media(self) -> tuple[Media, ...]: ...
    @property
    def blind(self) -> Blind | None: ...
    @property
    def other(self) -> Other | None: ...
    @property
    def sampling(self) -> Sampling: ...


def guides(prompts: Prompts, request: Request, prompt: tuple[int, ...], forced: tuple[int, ...]
           ) -> tuple[Blind | None, Other | None]:
    """What a request hides of its pictures, and the second context that it asks for.

    Raises SelfloopError for a contrast in a later turn: the other context has no such history.
    """
    sampling, blind, other = request.sampling, None, None
    if sampling.hidden:
        places = tuple(i for i, token in enumerate(prompt) if token in prompts.placeholders)
        hidden = sampling.hides(places, request.key)
        blind = Blind(places, hidden) if hidden else None
    if sampling.contrast is not None and not sampling.contrast.idle:
        if request.history:
            raise SelfloopError("Sampling(contrast=...) is for the first turn: the other context "
                                "has no history of its own; leave it out of later turns")
        ids, media = prompts.render(sampling.contrast.context)
        prompts.check_length(len(ids) + len(forced), len(media))
        other = Other((*ids, *forced), media)
    return blind, other


class Mixed:
    """Two states of decoding as one: `logits_NV` are mixed for the token that is drawn next."""

    def __init__(self, way: type[Forked] | type[Copied], model: Any, reader: Reader,
                 jobs: Sequence[Mixable], banned_V: torch.Tensor) -> None:
        others = [job.other for job in jobs if job.other is not None]
        self.asked, self.other = way(model, reader, jobs), way(model, reader, others)
        self.contrasts = [job.sampling.contrast for job in jobs]
        self.banned_V, self.step = banned_V, 0

    @property
    def logits_NV(self) -> torch.Tensor:
        """(1 - h) l(asked) + h l(other), those that are not plausible at minus infinity."""
        return mixed(self.asked.logits_NV, self.other.logits_NV, self.contrasts, self.step,
                     self.banned_V)

    def select(self, keep_M: torch.Tensor) -> None:
        """Only these rows go on."""
        self.contrasts = [self.contrasts[n] for n in keep_M.tolist()]
        self.asked.select(keep_M)
        self.other.select(keep_M)

    def advance(self, step: int, token_N: torch.Tensor) -> None:
        """Run each row's `step`-th token in both contexts."""
        self.asked.advance(step, token_N)
        self.other.advance(step, token_N)
        self.step = step + 1


def mixed(asked_NV: torch.Tensor, other_NV: torch.Tensor, contrasts: Sequence[Contrast | None],
          step: int, banned_V: torch.Tensor) -> torch.Tensor:
    """Logits [N, V] of token number `step` under each row's contrast, in float32 at least."""
    wide = torch.promote_types(asked_NV.dtype, torch.float32)
    asked_NV, other_NV = asked_NV.to(wide), other_NV.to(wide)
    h_N1, floor_N1 = (asked_NV.new_tensor(numbers)[:, None] for numbers in (
        [c.at(step) if c else 0.0 for c in contrasts], [c.floor if c else 0.0 for c in contrasts]))
    mixed_NV = asked_NV + h_N1 * (other_NV - asked_NV)
    likeliest_N1 = asked_NV.masked_fill(banned_V, -torch.inf).amax(-1, keepdim=True)
    return mixed_NV.masked_fill(asked_NV < likeliest_N1 + floor_N1.log(), -torch.inf)


def state_of(way: type[Forked] | type[Copied], model: Any, reader: Reader,
             jobs: Sequence[Mixable], banned_V: torch.Tensor) -> Any:
    """The jobs (alike: all with a contrast or none) as a state that tokens are drawn from."""
    if jobs[0].other is None:
        return way(model, reader, jobs)
    return Mixed(way, model, reader, jobs, banned_V)


def followed(model: Any, reader: Reader, job: Mixable, token_ids: Sequence[int],
             banned_V: torch.Tensor) -> torch.Tensor:
    """Log-probs [R] of an answer that a job drew, over a cache of its own: to compare with."""
    state = state_of(Copied, model, reader, [job], banned_V)
    found = []
    for step, token in enumerate(token_ids):
        if step:
            state.advance(step - 1, torch.tensor([token_ids[step - 1]], device=banned_V.device))
        logits_V = state.logits_NV[0].to(torch.promote_types(state.logits_NV.dtype, torch.float32))
        logits_V = logits_V.masked_fill(banned_V, -torch.inf) / (job.sampling.temperature or 1.0)
        found.append(torch.log_softmax(logits_V, -1)[token])
    return torch.stack(found).double().cpu()
