"""Sounds for a processor: at the rate that its extractor wants, whole, under its own argument."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from selfloop.roles import SelfloopError
from selfloop.sound import Sound


def extractor_of(processor: Any) -> Any:
    """What turns a processor's sounds into features; None where it takes no sound."""
    found = getattr(processor, "feature_extractor", None)
    takes = "audio" in inspect.signature(type(processor).__call__).parameters
    return found if takes and hasattr(found, "sampling_rate") else None


def heard_names(processor: Any) -> frozenset[str]:
    """The names of the tensors that sounds become."""
    return frozenset(getattr(extractor_of(processor), "model_input_names", ()))


def hearing(processor: Any, sounds: Sequence[Sound]) -> dict[str, Any]:
    """The processor's arguments for these sounds. Raises SelfloopError where it takes none.

    Extractors cut what is longer than they usually take (30 seconds, say) unless told not to: a
    model that takes no more fails on it, instead of answering about a part.
    """
    extractor = extractor_of(processor)
    if extractor is None:
        raise SelfloopError(f"{type(processor).__name__} takes no sound: give a model that does, "
                            "or leave these samples out")
    rate = int(extractor.sampling_rate)
    return {"audio": [sound.at(rate).samples for sound in sounds],
            "audio_kwargs": {"sampling_rate": rate, "truncation": False}}
