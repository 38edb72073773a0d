"""What can be in a scene, and how it is said: kinds, colours, places, captions and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

DIGITS = tuple("0123456789")
SHAPES = ("circle", "square", "triangle", "cross")
KINDS = (*DIGITS, *SHAPES)
COLOURS = ("red", "green", "blue", "yellow")
PLACES = ("upper left", "upper right", "lower left", "lower right")
"""Cells of the two by two grid, in reading order."""
SHAPE_SHARES = (0.4, 0.3, 0.2, 0.1)
"""How often each of SHAPES is drawn first: circles are common, crosses are rare."""

_MENTION = re.compile(
    rf"\b(?:({'|'.join(COLOURS)})\s+)?([0-9]|{'|'.join(SHAPES)})(?:es|s)?\b"
    r"(?:\s+(upper\s+left|upper\s+right|lower\s+left|lower\s+right)\b)?")


class Thing(NamedTuple):
    """One object of a scene. No scene holds two of a kind."""

    colour: str
    kind: str
    place: int
    """Index into PLACES."""
    scan: int = -1
    """Scan id of a digit; -1 for a shape, which is drawn."""


class Mention(NamedTuple):
    """An object that a text speaks of; None where the text does not say."""

    colour: str | None
    kind: str
    place: str | None


def stereotype(kind: str) -> str:
    """The colour that things of this kind usually have in training: 3s are red, circles yellow.

    The colours share the kinds evenly, so that no colour is frequent by itself. Raises ValueError
    on an unknown kind.
    """
    return COLOURS[(KINDS.index(kind) + 1) % len(COLOURS)]


def caption(things: Sequence[Thing]) -> str:
    """"a red 3 upper left and a blue circle lower right": every object, in reading order."""
    ordered = sorted(things, key=lambda thing: thing.place)
    return " and ".join(f"a {t.colour} {t.kind} {PLACES[t.place]}" for t in ordered)


def mentioned(text: str) -> list[Mention]:
    """Every object that a text names, in its order, repetitions included. Plurals count once."""
    found = []
    for colour, kind, place in _MENTION.findall(text.lower()):
        found.append(Mention(colour or None, kind, " ".join(place.split()) or None))
    return found


def things_of(objects: Sequence[Sequence[str]]) -> tuple[Thing, ...]:
    """The scene of a row's `objects`, without the scans: [["red", "3", "upper left"], ...]."""
    return tuple(Thing(colour, kind, PLACES.index(place)) for colour, kind, place in objects)
