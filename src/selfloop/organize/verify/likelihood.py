"""How likely the model found its own answer (primitives V30)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from selfloop.types import Rollout, Verdict


@dataclass(frozen=True)
class SelfLikelihood:
    """The mean log-prob of the drawn tokens (in nats, at most 0); with `probability` its exp, the
    geometric mean probability in (0, 1].

    The language-model part of CSR's reward (arXiv 2405.14622), length-normalised.
    Forced tokens (loss mask 0) do not count. The values are those of the rollout, after its
    temperature. Abstains where a turn has no log-probs, or nothing was drawn. Likely is not right:
    use it beside a verifier, not instead of one.
    """

    probability: bool = False

    def __call__(self, rollout: Rollout) -> Verdict:
        """Reads no label. `token_scores`: the log-prob of each drawn token."""
        found: list[float] = []
        for turn in rollout.turns:
            if turn.logprobs is None:
                return Verdict(rationale="a turn without log-probs")
            found += [p for p, drawn in zip(turn.logprobs, turn.mask, strict=True) if drawn]
        if not found:
            return Verdict(rationale="nothing was drawn")
        mean = sum(found) / len(found)
        return Verdict(score=math.exp(mean) if self.probability else mean,
                       token_scores=tuple(found))
