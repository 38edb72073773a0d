"""Which tokens of a signal count how much: token weights from what a verifier said of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.roles import SelfloopError, call_by_name
from selfloop.types import AnySignal, Branch, Group, Verdict

WAYS = ("score", "exp")


@dataclass(frozen=True)
class TokenWeights:
    """Gives a maker's signals `token_weights`, from the `token_scores` of their rollouts' verdicts.

    `branches` names, in the order of a signal's `rollouts`, the branches that these drew: target
    of a demonstration, (chosen, rejected) of a pair. `how`: a token's score as it is ("score"; 0
    masks the token out), or its exponential ("exp"), which with `SelfLikelihood`, whose scores are
    log-probs, weighs each token by its probability (dynamic fine-tuning, arXiv 2508.05629,
    with the sampler's probabilities). Branches of rollouts without token scores stay as they are.
    """

    maker: Any
    branches: tuple[str, ...] = ("target",)
    how: str = "score"

    def __post_init__(self) -> None:
        if self.how not in WAYS:
            raise SelfloopError(f"TokenWeights.how={self.how!r}: expected one of {', '.join(WAYS)}")

    @property
    def makes(self) -> tuple[AnySignal, ...]:
        """What the maker makes."""
        return tuple(getattr(self.maker, "makes", ()))

    def __call__(self, groups: Sequence[Group], key: str, **gold: Any) -> list[AnySignal]:
        """The maker's signals. Raises SelfloopError for a score below 0, or for as many scores as
        an answer has no tokens."""
        said = {r.id: v for g in groups
                for r, v in zip(g.rollouts, g.verdicts, strict=False) if v.token_scores is not None}
        made: list[AnySignal] = call_by_name(self.maker, groups=groups, key=key, **gold)
        return [self._weighed(s, said) for s in made]

    def _weighed(self, signal: AnySignal, said: dict[str, Verdict]) -> AnySignal:
        new = {name: self._branch(signal, name, said[rollout])
               for name, rollout in zip(self.branches, signal.rollouts, strict=False)
               if rollout in said and name in signal.branches}
        return signal.model_copy(update={"branches": {**signal.branches, **new}}) if new else signal

    def _branch(self, signal: AnySignal, name: str, verdict: Verdict) -> Branch:
        branch, scores = signal.branches[name], verdict.token_scores or ()
        trained = sum(sum(turn.mask) for turn in branch.turns)
        weights = tuple(map(math.exp, scores)) if self.how == "exp" else scores
        if len(scores) != trained or any(w < 0 for w in weights):
            raise SelfloopError(
                f"TokenWeights: sample {signal.sample}, branch {name!r}: {len(scores)} token "
                f"scores for {trained} trained tokens, least {min(weights, default=0):g}; expected "
                "one a token, 0 or more (how='exp' for log-probs)")
        return branch.model_copy(update={"token_weights": weights})
