"""How large a model is, for the accounts of operations and of memory."""

from __future__ import annotations

import math
from typing import Any


def size(model: Any) -> int:
    """Parameters that multiply activations: all but the input embeddings (unless tied)."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    total = sum(_numbers(p) for p in model.parameters())
    return total if embedding is head else total - int(embedding.numel())


def _numbers(parameter: Any) -> int:
    """How many weights a parameter is: those in 4 bits are packed by twos."""
    packed = getattr(parameter, "quant_state", None)
    return math.prod(packed.shape) if packed is not None else int(parameter.numel())


def positions(text: Any) -> int | None:
    """The most positions a sequence may take; None where the config does not say.

    With longrope up to those the model was first trained on: beyond them its rotations change for
    all positions, and for whatever else is in the batch, so that what is drawn would depend on
    what it was drawn with.
    """
    most: int | None = getattr(text, "max_position_embeddings", None)
    return min((m for m in (most, longrope_from(text)) if m is not None), default=None)


def longrope_from(text: Any) -> int | None:
    """The positions up to which a longrope's short factors hold; None without longrope."""
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    return min((int(border) for kind in kinds if "longrope" in (
        kind.get("rope_type"), kind.get("type")) and (border := kind.get(
            "original_max_position_embeddings",
            getattr(text, "original_max_position_embeddings", None)))), default=None)


def patch_of(model: Any) -> int:
    """The side of a patch in pixels; 0 where the vision tower does not tell its sizes."""
    vision = getattr(model.config, "vision_config", None)
    patch = getattr(vision, "patch_size", 0)
    return patch if isinstance(patch, int) and all(_vision(vision)) else 0


def as_tokens(model: Any, patches: float) -> int:
    """Patches, as language tokens that would keep as many numbers for the backward pass."""
    width, depth = _vision(model.config.vision_config)
    text = model.config.get_text_config(decoder=True)
    share: float = width * depth / (text.hidden_size * text.num_hidden_layers)
    return math.ceil(patches * share)


def _vision(vision: Any) -> tuple[int, int]:
    width, depth = (int(getattr(vision, n, 0)) for n in ("hidden_size", "num_hidden_layers"))
    return width, depth or getattr(vision, "depth", 0)
