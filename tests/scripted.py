"""An engine that says what a function tells it to: one character a token, 0 ends the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from selfloop.collect.drawing import draw
from selfloop.doors import Doors, user
from selfloop.roles import Request
from selfloop.types import Media, Message, Part, Rollout, Sample, Turn


@dataclass
class Scripted:
    """`says(request, draw)` is the whole answer after the prefix; every request is kept."""

    says: Callable[[Request, int], str]
    asked: list[Request] = field(default_factory=list)
    supports = frozenset({"images", "forced_prefix", "stop", "history", "contrast",
                          "masked_attention", "diversity"})

    def generate(self, requests, version):
        self.asked += requests
        return [[self._turn(r, i) for i in range(r.n)] for r in requests]

    def _turn(self, request: Request, i: int) -> Turn:
        sampling = request.sampling
        new = self.says(request, i)
        cuts = [new.index(s) + len(s) for s in sampling.stop if s in new]
        text = new[:min(cuts)] if cuts else new
        drawn = [ord(c) for c in text] + ([] if cuts else [0])
        whole = len(drawn) <= sampling.max_new_tokens
        drawn = drawn[:sampling.max_new_tokens]
        forced = [ord(c) for c in sampling.prefix]
        # Deterministic figures: the longer a text, the lower each token's log-prob.
        return Turn(
            prompt_token_ids=(1,), media=request.context.media, token_ids=(*forced, *drawn),
            logprobs=(0.0,) * len(forced) + (-0.01 * len(text),) * len(drawn),
            loss_mask=(0,) * len(forced) + (1,) * len(drawn), temperature=sampling.temperature or 1,
            finish_reason="stop" if whole else "length")

    def decode(self, token_ids):
        return "".join(chr(t) for t in token_ids if t)


def picture(index: int = 0) -> Media:
    return Media(sha256=f"{index:064x}")


def asked(text: str = "what is it ?", n_pictures: int = 1, answer: Any = "a cat") -> Sample:
    parts = tuple(Part(type="image") for _ in range(n_pictures))
    prompt = user(text)[0]
    return Sample(prompt=(Message(role="user", content=(*parts, *prompt.content)),),
                  media=tuple(picture(i) for i in range(n_pictures)), answer=answer,
                  rationale="I see ears. So it is a cat.")


def collect(sampler, says, sample: Sample | None = None, guidance=None
            ) -> tuple[list[Rollout], Scripted]:
    """What a sampler draws from a scripted model, through the loop's own door."""
    engine = says if isinstance(says, Scripted) else Scripted(says)
    (group,) = draw(sampler, [sample or asked()], Doors({"solver": engine}, 0, "s"), guidance or {})
    return list(group.rollouts), engine
