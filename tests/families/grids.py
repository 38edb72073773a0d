"""Families that read flat patches with a grid: Qwen's tower and those after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as tf

from families.making import (
    AUDIO,
    CLOSE,
    IMAGE,
    OPEN,
    VIDEO,
    Family,
    Pixels,
    build,
    kind,
    noise,
    sizes,
)
from selfloop.types import Media

GRIDS = ((1, 4, 6), (1, 6, 8))
"""Frames, height and width in patches, for pictures of either kind."""
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
TOWER = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
         "temporal_patch_size": 2}
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": OPEN,
          "vision_end_token_id": CLOSE}
TYPES = {"mm_token_type_ids": {IMAGE: 1}}


def grid(medium: Media) -> tuple[int, int, int]:
    return GRIDS[kind(medium)]


def merged(medium: Media) -> tuple[int, ...]:
    """Four patches become one token."""
    t, h, w = grid(medium)
    return (OPEN, *(IMAGE,) * (t * h * w // 4), CLOSE)


def patches(media: Sequence[Media]) -> Pixels:
    """Rows of 3 colours x 2 frames x 4 x 4 pixels."""
    grids = [grid(m) for m in media]
    return {"pixel_values": torch.cat([noise(m, t * h * w, 96)
                                       for m, (t, h, w) in zip(media, grids, strict=True)]),
            "image_grid_thw": torch.tensor(grids)}


def text(**more: Any) -> dict[str, Any]:
    return sizes(rope_parameters=ROPE, **more)


def qwen2_vl(dtype: torch.dtype) -> Family:
    """Three-dimensional rotary positions (M-RoPE)."""
    config = tf.Qwen2VLConfig(
        text_config=text(), vision_config={**TOWER, "embed_dim": 16, "hidden_size": 32}, **TOKENS)
    return build("qwen2_vl", tf.Qwen2VLForConditionalGeneration, config, dtype, merged, patches,
                 TYPES)


def qwen2_5_vl(dtype: torch.dtype) -> Family:
    """The tower looks through windows in one layer of two."""
    vision = {**TOWER, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32,
              "window_size": 16, "fullatt_block_indexes": [1]}
    config = tf.Qwen2_5_VLConfig(text_config=text(), vision_config=vision, **TOKENS)
    return build("qwen2_5_vl", tf.Qwen2_5_VLForConditionalGeneration, config, dtype, merged,
                 patches, TYPES)


DEEP = {**TOWER, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}


def qwen3_vl(dtype: torch.dtype) -> Family:
    """Features enter the first layers of the language model as well (DeepStack)."""
    config = tf.Qwen3VLConfig(text_config=text(head_dim=8), vision_config=DEEP, **TOKENS)
    return build("qwen3_vl", tf.Qwen3VLForConditionalGeneration, config, dtype, merged, patches,
                 TYPES)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
           "decoder_sparse_step": 1}


def qwen3_vl_moe(dtype: torch.dtype) -> Family:
    """DeepStack with a mixture of experts."""
    config = tf.Qwen3VLMoeConfig(text_config=text(head_dim=8, **EXPERTS), vision_config=DEEP,
                                 **TOKENS)
    return build("qwen3_vl_moe", tf.Qwen3VLMoeForConditionalGeneration, config, dtype, merged,
                 patches, TYPES)


DELTA = {"head_dim": 8, "num_hidden_layers": 4, "linear_num_value_heads": 4,
         "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
FLAT = {k: v for k, v in DEEP.items() if k != "deepstack_visual_indexes"}


def _delta(**more: Any) -> dict[str, Any]:
    # Heads this small give some tokens next to nothing, which the norm behind them blows up: at the
    # usual 1e-6 the rounding of float32 comes out a thousand times larger, on either path.
    found = text(**DELTA, **more, rms_norm_eps=1e-3)
    found["rope_parameters"] = {**ROPE, "partial_rotary_factor": 1.0}
    return found


def qwen3_5(dtype: torch.dtype) -> Family:
    """Three layers of four are Gated DeltaNet: a state instead of keys."""
    config = tf.Qwen3_5Config(text_config=_delta(), vision_config=FLAT, **TOKENS)
    return build("qwen3_5", tf.Qwen3_5ForConditionalGeneration, config, dtype, merged, patches,
                 TYPES)


def qwen3_5_moe(dtype: torch.dtype) -> Family:
    """The same with experts."""
    more = {**EXPERTS, "shared_expert_intermediate_size": 16}
    config = tf.Qwen3_5MoeConfig(text_config=_delta(**more), vision_config=FLAT, **TOKENS)
    return build("qwen3_5_moe", tf.Qwen3_5MoeForConditionalGeneration, config, dtype, merged,
                 patches, TYPES)


def glm4v(dtype: torch.dtype) -> Family:
    """M-RoPE over half of each head, norms around both blocks, a learnt position grid."""
    wide = {**ROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "image_size": 32,
              "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32,
              "intermediate_size": 24}
    config = tf.Glm4vConfig(
        text_config=sizes(rope_parameters=wide), vision_config=vision, image_token_id=IMAGE,
        video_token_id=VIDEO, image_start_token_id=OPEN, image_end_token_id=CLOSE)
    return build("glm4v", tf.Glm4vForConditionalGeneration, config, dtype, merged, patches, TYPES)


def qwen2_5_omni(dtype: torch.dtype) -> Family:
    """The thinker of an Omni model, by its picture path."""
    vision = {**TOWER, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32,
              "window_size": 16, "fullatt_block_indexes": [1]}
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2,
             "encoder_ffn_dim": 16, "num_mel_bins": 8, "output_dim": 32,
             "max_source_positions": 16, "n_window": 4}
    config = tf.models.qwen2_5_omni.Qwen2_5OmniThinkerConfig(
        text_config=text(), vision_config=vision, audio_config=audio,
        image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=AUDIO,
        image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO,
        vision_start_token_id=OPEN, vision_end_token_id=CLOSE, audio_start_token_id=12,
        audio_end_token_id=13)
    return build("qwen2_5_omni", tf.Qwen2_5OmniThinkerForConditionalGeneration, config, dtype,
                 merged, patches)


Make = Callable[[torch.dtype], Family]
