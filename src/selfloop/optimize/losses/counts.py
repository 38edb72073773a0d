"""Denominators that many losses share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfloop.roles import SelfloopError
from selfloop.types import AnySignal


def one_of(what: str, value: str, *allowed: str) -> None:
    """Raises SelfloopError for a word that is none of the allowed ones."""
    if value not in allowed:
        raise SelfloopError(f"{what}={value!r}: expected one of {', '.join(allowed)}")


def weights(signals: Sequence[AnySignal], *terms: str) -> dict[str, float]:
    """The signals' weights, for each term: a term is a weighted mean over signals."""
    return dict.fromkeys(terms, sum(s.weight for s in signals))


def tokens(signals: Sequence[AnySignal], counts: Sequence[float], terms: Iterable[str]
           ) -> dict[str, float]:
    """Weighted trained tokens, for each term: a term is a weighted mean over tokens."""
    total = sum(s.weight * n for s, n in zip(signals, counts, strict=True))
    return dict.fromkeys(terms, total)


def weighed(signals: Sequence[AnySignal], counts: Sequence[int], branch: str) -> list[float]:
    """Each signal's trained tokens, or the sum of their own weights where they have some."""
    given = [signal.branches[branch].token_weights for signal in signals]
    return [n if w is None else sum(w) for n, w in zip(counts, given, strict=True)]


def normalised(mask_BT: Any, normalize: str, length: int = 1) -> Any:
    """Token weights under which a sum over tokens becomes what `normalize` says.

    "token": a mean over all tokens; "sequence": each answer's mean, then a mean over answers;
    "sum": each answer's sum, then a mean over answers; "length": each answer's sum over `length`
    (Dr. GRPO, arXiv 2503.20783: a constant, so that long answers are not favoured).
    """
    if normalize == "sequence":
        return mask_BT / mask_BT.sum(-1, keepdim=True).clamp(min=1e-12)
    return mask_BT / length if normalize == "length" else mask_BT


def sizes(signals: Sequence[AnySignal], counts: Mapping[str, Sequence[float]], branch: str,
          normalize: str, terms: Iterable[str]) -> dict[str, float]:
    """The denominators that go with `normalised`."""
    return tokens(signals, counts[branch] if normalize == "token" else [1] * len(signals), terms)
