"""Signals to rows: the token sequences that the model reads, and which tokens are trained.

A branch becomes one row when each of its turns extends the one before (the usual case), and
several rows where it does not (templates that strip earlier thinking). Drawn tokens are never
re-tokenised.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from selfloop.types import Branch, Context, Media, Turn


@dataclass(frozen=True)
class Wide:
    """What a row asks for beyond the log-probs of its n trained tokens.

    Its log-probs then are a matrix [n, 1 + K + 2 top + collision]: the trained token's; those of
    the K `others`; the `top` largest log-probs and their token ids (floats: exact below 2^24),
    without gradient; log sum_v p(v)^2, without gradient. All rows of a call ask alike.
    """

    others: tuple[tuple[int, ...], ...] = ()
    """For each trained token the ids of K others; () = none."""
    top: int = 0
    collision: bool = False

    @property
    def k(self) -> int:
        """Others at a place."""
        return len(self.others[0]) if self.others else 0


@dataclass(frozen=True)
class Row:
    """One sequence for the model. `trained[i]` says whether `token_ids[i]` was drawn by it."""

    token_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    media: tuple[Media, ...]
    prompt: int
    """Tokens before the first answer token: the prefix that rows of one context share."""
    drawn: tuple[float, ...] | None = None
    """Sampler log-probs of the trained tokens, in order, where they are known."""
    temperature: float = 1.0
    wide: Wide | None = None

    @property
    def trained_ids(self) -> list[int]:
        """The trained tokens, in order."""
        return [t for t, on in zip(self.token_ids, self.trained, strict=True) if on]

    @property
    def count(self) -> int:
        """Trained tokens."""
        return sum(self.trained)

    @property
    def reach(self) -> int:
        """Tokens of the answer up to its last trained one; 0 where none is."""
        last = next((i for i in reversed(range(len(self.trained))) if self.trained[i]), -1)
        return max(0, last + 1 - self.prompt)


@dataclass(frozen=True)
class Weight:
    """What a row adds to a forward pass, in tokens; rows of equal key share their prompt."""

    key: Hashable
    prompt: int
    """The prompt, with its pictures' share of the vision tower."""
    answer: int


Render = Callable[[Context], tuple[tuple[int, ...], tuple[Media, ...]]]
"""A context as prompt token ids (image placeholders expanded) with its media."""
Encode = Callable[[str], tuple[int, ...]]
"""An assistant's text as token ids, end of turn included."""


def rows_of(branch: Branch, render: Render, encode: Encode) -> list[Row]:
    """The rows of one branch; `render` and `encode` are the engine's."""
    if branch.text is not None:
        prompt, media = render(branch.context)
        ids = encode(branch.text)
        return [Row((*prompt, *ids), (False,) * len(prompt) + (True,) * len(ids), media,
                    len(prompt))]
    rows: list[Row] = []
    for turn in branch.turns:
        prompt, media = turn.prompt_token_ids, turn.media
        if not prompt:
            prompt, media = render(branch.context)
        last = rows[-1] if rows else None
        if last and last.temperature == turn.temperature \
                and prompt[:len(last.token_ids)] == last.token_ids \
                and media[:len(last.media)] == last.media:
            rows[-1] = _extended(last, prompt, media, turn)
        else:
            rows.append(_extended(Row((), (), (), len(prompt), ()), prompt, media, turn))
    return rows


def _extended(row: Row, prompt: tuple[int, ...], media: tuple[Media, ...], turn: Turn) -> Row:
    """`row` followed by what the environment said and then by the turn's drawn tokens."""
    seen = len(prompt) - len(row.token_ids)
    mask = tuple(bool(m) for m in turn.mask)
    drawn = None
    if row.drawn is not None and turn.logprobs is not None:
        drawn = (*row.drawn, *(lp for lp, m in zip(turn.logprobs, mask, strict=True) if m))
    return Row((*prompt, *turn.token_ids), (*row.trained, *(False,) * seen, *mask), media,
               row.prompt, drawn, turn.temperature)
