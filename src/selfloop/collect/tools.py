"""Multi-turn looking: the model may crop, zoom and mark the picture before it answers (S9).

`PictureTools` is an Episode for `EnvSampler`: `EnvSampler(PictureTools, max_turns=6)`. What a
tool shows is the sample's picture through the operation `region` or `box`, so it needs no storage
and is drawn again from the run's own files (DeepEyes, arXiv 2505.14362; GRIT marks boxes only,
arXiv 2505.15879).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from selfloop.collect.guided import ending
from selfloop.collect.tags import tagged
from selfloop.doors import filled
from selfloop.roles import SelfloopError
from selfloop.types import Context, Media, Sample

GRID = 1000
"""Coordinates are whole numbers from 0 (left, top) to this (right, bottom)."""
LEAST = 20
"""Narrowest crop, in the same units: a fiftieth of the side."""

INSTRUCTION = (
    "You may look closer before you answer. Write one of these and nothing after it:\n"
    "<crop>x0,y0,x1,y1</crop> to see that part of the picture enlarged,\n"
    "<zoom>x,y</zoom> to see the surroundings of a point at twice the size,\n"
    "<box>x0,y0,x1,y1</box> to see the picture with that part framed.\n"
    "Coordinates go from 0 to 1000, from the left and from the top. Write your final answer "
    "between <answer> and </answer>.")

SEVERAL = ("There are {n} pictures. Coordinates are those of the first; for another write its "
           "number and a colon before them, as in 2: 0,0,500,500.")
"""What is added to the instruction where a sample has more than one picture or frame."""


@dataclass(frozen=True)
class Action:
    """One use of a tool: the corners (x0, y0, x1, y1) in thousandths of the sides, and of which
    picture, from 1."""

    tool: str
    corners: tuple[int, int, int, int]
    picture: int = 1

    def seen(self, medium: Media) -> Media:
        """The picture as the tool shows it."""
        name = "box" if self.tool == "box" else "region"
        return medium.with_op(name, 1.0, ",".join(str(c) for c in self.corners))


def parse_action(text: str) -> Action | str:
    """The one action that the text asks for, or why there is none, to be told to the model."""
    asked = [tool for tool in ("crop", "zoom", "box") if re.search(rf"</?{tool}>", text, re.I)]
    if len(asked) != 1:
        return "use one tool" if asked else "write a tool or an answer"
    found = tagged(text, asked[0])
    if found.value is None:
        return found.why
    which = re.match(r"(\d{1,4})\s*:\s*", found.value)
    corners = found.value[which.end():] if which else found.value
    if not re.fullmatch(r"\d{1,4}(\s*,\s*\d{1,4})*", corners):
        return f"<{asked[0]}> takes whole numbers with commas between them"
    numbers = [int(n) for n in corners.split(",")]
    wanted = 2 if asked[0] == "zoom" else 4
    if len(numbers) != wanted:
        return f"<{asked[0]}> takes {wanted} numbers, not {len(numbers)}"
    if max(numbers) > GRID:
        return f"coordinates go from 0 to {GRID}"
    x0, y0, x1, y1 = _around(*numbers) if wanted == 2 else numbers
    if x1 - x0 < LEAST or y1 - y0 < LEAST:
        return f"the part must be at least {LEAST} wide and high, with x0 < x1 and y0 < y1"
    return Action(asked[0], (x0, y0, x1, y1), int(which[1]) if which else 1)


def read_tags(text: str) -> Action | str | None:
    """What a turn asks for in tags: an action, why it cannot be read, or None for an answer."""
    if not re.search(r"</?(crop|zoom|box)>", text, re.I) or re.search(r"<answer>", text, re.I):
        return None
    return parse_action(text)


def read_brackets(text: str) -> Action | str | None:
    """The same for models that write bare boxes, as grounding models do: "[x0,y0,x1,y1]" is a
    crop, "[x,y]" a zoom, "[2: x,y]" one of the second picture, and a text without brackets an
    answer."""
    if "[" not in text:
        return None
    found = re.fullmatch(r"[^\[\]]*\[([\d\s,:]*)\][^\[\]]*", text)
    if found is None:
        return "write one pair of brackets with whole numbers in it"
    spelled = re.sub(r"\s", "", found.group(1))
    tool = "zoom" if spelled.count(",") == 1 else "crop"
    return parse_action(f"<{tool}>{spelled}</{tool}>" if spelled else f"<{tool}>,</{tool}>")


BRACKETS = ("You may look closer before you answer: write [x0,y0,x1,y1] to see that part of the "
            "picture, or [x,y] to see the surroundings of a point. Coordinates go from 0 to 1000, "
            "from the left and from the top.")


def _around(x: int, y: int) -> tuple[int, int, int, int]:
    """Half the width and height about a point, moved inside the picture where it sticks out."""
    left, top = (min(max(v - GRID // 4, 0), GRID // 2) for v in (x, y))
    return left, top, left + GRID // 2, top + GRID // 2


@dataclass(frozen=True)
class PictureTool:
    """The options of PictureTools as a component that a loop can print: `EnvSampler(PictureTool(
    read=read_brackets, instruction=BRACKETS))`."""

    uses: int = 4
    read: Callable[[str], Action | str | None] = read_tags
    instruction: str = INSTRUCTION

    def __call__(self) -> PictureTools:
        """A fresh play."""
        return PictureTools(self.uses, self.read, self.instruction)


@dataclass
class PictureTools:
    """One play: look as often as `uses` allows, then answer. The reward is left to verifiers.

    A play ends at <answer>, at a text that names no tool, or at a use over the limit. A call that
    cannot be read costs a use too, and the model is told why. Every tool works on one of the
    sample's pictures as it is, never on an earlier view, so coordinates always mean the same: on
    the first, or on the one that is named, as in <crop>2: 0,0,500,500</crop>. Frames of a video are
    pictures; a view of one stands after its time.
    """

    uses: int = 4
    read: Callable[[str], Action | str | None] = read_tags
    instruction: str = INSTRUCTION
    """Goes with `read`; "" where the sample's own prompt says how to look."""
    left: int = field(default=0, init=False)
    pictures: tuple[Media, ...] = field(default=(), init=False)

    def reset(self, sample: Sample, key: str) -> Context:
        """The question with the instructions. Raises SelfloopError for a sample without picture."""
        self.left = self.uses
        self.pictures = tuple(m for m in sample.media if m.kind == "image")
        if not self.pictures:
            raise SelfloopError(f"sample {sample.id} has no picture to look at; PictureTools needs "
                                "samples with an image or a video")
        if not self.instruction:
            return sample.context
        told = filled(SEVERAL, n=str(len(self.pictures))) if len(self.pictures) > 1 else ""
        return ending(sample.context, "\n".join(t for t in (self.instruction, told) if t))

    def step(self, text: str) -> tuple[tuple[str | Media, ...], float, bool]:
        """(what is shown, 0.0, whether the play is over)."""
        action = self.read(text)
        if action is None or not self.left:
            return (), 0.0, True
        self.left -= 1
        if isinstance(action, Action) and not 1 <= action.picture <= len(self.pictures):
            action = f"there is no picture {action.picture}, only 1 to {len(self.pictures)}"
        if isinstance(action, str):
            return (f"That could not be read: {action}. {self._remaining()}",), 0.0, False
        view = action.seen(self.pictures[action.picture - 1])
        return (*((view.mark,) if view.mark else ()), view, self._remaining()), 0.0, False

    def _remaining(self) -> str:
        return f"{self.left} more looks." if self.left else "Now answer."
