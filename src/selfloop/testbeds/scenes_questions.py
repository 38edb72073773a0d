"""Questions about a scene and their answers, right by construction.

Existence questions follow POPE (Li et al., arXiv 2305.10355): half are true, and what is asked for
in the other half is absent at random, absent but common in training, or absent but likely beside
what is there. An object is a colour and a kind. **Differs**: POPE's likely objects are those that
co-occur most often; here they are a kind that is there, in another colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from selfloop.testbeds.scenes_objects import (
    COLOURS,
    DIGITS,
    KINDS,
    SHAPE_SHARES,
    SHAPES,
    Thing,
    caption,
    stereotype,
)

EXISTENCE = ("random", "popular", "adversarial")
"""Tasks that ask whether something is there, by how their absent objects are chosen."""
TASKS = ("caption", "random", "colour", "popular", "beside", "adversarial", "count")
"""In the order in which they take turns."""
DESCRIBE = "describe the picture ."
COUNTED = ("objects", "digits", "shapes", *(f"{colour} objects" for colour in COLOURS))
HOW_MANY = tuple(f"how many {what} are there ?" for what in COUNTED)
POPULAR = 6
"""Size of the pool of common objects that "popular" absent objects come from."""
NEIGHBOURS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""Where to look -> step in rows and columns."""

Question = tuple[str, str]
"""A prompt and its right answer."""
Draw = np.random.Generator


def question(task: str, things: Sequence[Thing], rng: Draw, *, true: bool = True) -> Question:
    """A question of `task` about a scene of at least one object, drawn from `rng`.

    `true` is the answer of an existence question and means nothing to the others. Raises
    ValueError on an unknown task.
    """
    if task in EXISTENCE:
        return _exists(task, things, rng, true)
    if task not in _ASK:
        raise ValueError(f"no task {task!r}; there are {', '.join(TASKS)}")
    return _ASK[task](things, rng)


def related() -> list[str]:
    """Prompts that can be asked of every picture."""
    return [DESCRIBE, *HOW_MANY]


def common() -> list[tuple[str, str]]:
    """(colour, kind) of the objects that training shows most often, most frequent first.

    Shapes of their usual colours by their shares, then digits, which are all as frequent.
    """
    shares = {**dict.fromkeys(DIGITS, 0.1), **dict(zip(SHAPES, SHAPE_SHARES, strict=True))}
    ranked = sorted(KINDS, key=lambda kind: -shares[kind])
    return [(stereotype(kind), kind) for kind in ranked]


def _describe(things: Sequence[Thing], rng: Draw) -> Question:
    return DESCRIBE, caption(things)


def _exists(how: str, things: Sequence[Thing], rng: Draw, true: bool) -> Question:
    there = [(t.colour, t.kind) for t in things]
    pool = there if true else _absent(how, there)
    colour, kind = pool[int(rng.integers(len(pool)))]
    return f"is there a {colour} {kind} ?", "yes" if true else "no"


def _absent(how: str, there: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Objects that are not in the picture, to ask for one of them."""
    if how == "random":
        return [(c, k) for k in KINDS for c in COLOURS if (c, k) not in there]
    if how == "popular":
        return [pair for pair in common() if pair not in there][:POPULAR]
    # Its usual colour where it has another; where it has its usual one, any of the others.
    return [(c, kind) for colour, kind in there
            for c in ([stereotype(kind)] if colour != stereotype(kind) else COLOURS)
            if c != colour]


def _colour(things: Sequence[Thing], rng: Draw) -> Question:
    thing = things[int(rng.integers(len(things)))]
    return f"what colour is the {thing.kind} ?", thing.colour


def _beside(things: Sequence[Thing], rng: Draw) -> Question:
    thing = things[int(rng.integers(len(things)))]
    at = {divmod(t.place, 2): t.kind for t in things}
    row, column = divmod(thing.place, 2)
    inside = {where: (row + down, column + across)
              for where, (down, across) in NEIGHBOURS.items()
              if 0 <= row + down < 2 and 0 <= column + across < 2}
    where = list(inside)[int(rng.integers(len(inside)))]
    return f"what is {where} the {thing.kind} ?", at.get(inside[where], "nothing")


def _count(things: Sequence[Thing], rng: Draw) -> Question:
    # Half of the questions name a colour.
    which = int(rng.integers(3)) if rng.random() < 0.5 else 3 + int(rng.integers(len(COLOURS)))
    what = COUNTED[which]
    words = {"objects": len(things), "digits": sum(t.kind in DIGITS for t in things),
             "shapes": sum(t.kind in SHAPES for t in things)}
    number = words.get(what, sum(f"{t.colour} objects" == what for t in things))
    return HOW_MANY[which], str(number)


_ASK: dict[str, Callable[[Sequence[Thing], Draw], Question]] = {
    "caption": _describe, "colour": _colour, "beside": _beside, "count": _count,
}
