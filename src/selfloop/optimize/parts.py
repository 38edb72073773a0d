"""Which part of a vision-language model a parameter belongs to, and which parts learn.

No model family is named: the decoder says what is language, and what hangs beside it is told by
the words that every family uses for its vision tower and for what joins both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from selfloop.roles import SelfloopError

LearningPart = Literal["vision", "projector", "language"]
PARTS: tuple[str, ...] = get_args(LearningPart)
_PROJECTOR = re.compile(r"projector|connector|merger|perceiver|aligner|mm_|embed_vision")
_VISION = re.compile(r"vision|visual|image|vit")


def part_of(net: Any, name: str) -> str:
    """Which of `PARTS` a parameter belongs to, from where it hangs in the model."""
    return parts_of(net, [name])[name]


def parts_of(net: Any, names: Iterable[str]) -> dict[str, str]:
    """Name -> part, for many parameters at once. Adapters belong to what they adapt."""
    decoder = net.get_decoder() if hasattr(net, "get_decoder") else None
    inside = next((n for n, m in net.named_modules() if m is decoder), "")

    def part(name: str) -> str:
        if (inside and name.startswith(f"{inside}.")) or name.startswith("lm_head"):
            return "language"
        if _PROJECTOR.search(name):
            return "projector"
        return "vision" if _VISION.search(name) else "language"

    return {name: part(name) for name in names}


def frozen_parts(freeze: Sequence[str] = (), learn: Sequence[str] = ()) -> tuple[str, ...]:
    """The parts that do not learn, in the order of `PARTS`, from what a user named.

    Either what does not learn, or what does; `learn` names all that learns. Raises SelfloopError
    for a word that is no part, for both at once, and where nothing would be left to learn.
    """
    for key, named in (("freeze", freeze), ("learn", learn)):
        if isinstance(named, str):
            raise SelfloopError(f"{key}={named!r}: give a list, as in {key}: [{named}]")
        if unknown := [part for part in named if part not in PARTS]:
            raise SelfloopError(f"{key}={unknown[0]!r}: expected some of {', '.join(PARTS)}")
    if freeze and learn:
        raise SelfloopError(f"freeze: [{', '.join(freeze)}] and learn: [{', '.join(learn)}]: "
                            "give one of them; what `learn` does not name is frozen")
    frozen = tuple(p for p in PARTS if (p not in learn if learn else p in freeze))
    if len(frozen) == len(PARTS):
        raise SelfloopError("freeze names every part: nothing is left to learn")
    return frozen


def freeze_parts(net: Any, frozen: Sequence[str]) -> None:
    """Switch off the gradients of these parts. Raises SelfloopError where nothing else is there.

    A model without a projector of its own freezes nothing for that word.
    """
    named = dict(net.named_parameters())
    for name, part in parts_of(net, named).items():
        if part in frozen:
            named[name].requires_grad_(False)
    if named and not any(p.requires_grad for p in named.values()):
        raise SelfloopError(
            f"freeze: [{', '.join(frozen)}]: nothing is left to learn in {type(net).__name__}, "
            "which has no other part; take a part out")
