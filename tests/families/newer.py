"""Newer families that read grids: sparse attention, gated convolutions, encoder-free pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers as tf

from families.grids import FLAT, ROPE, TOKENS, TYPES, merged, patches
from families.making import (
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
from families.tiles import packed_span
from selfloop.types import Media


def qwen4_exp(dtype: torch.dtype) -> Family:
    """States, attention to the keys an indexer picks, and embeddings of the last three tokens."""
    text = sizes(
        num_hidden_layers=4, head_dim=8, linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, hc_count=2, hc_lowrank=8,
        ple_layer_ids=[1], ple_embed_dim=8, heads_per_ngram=2, ngram_vocab_size_base=50,
        make_ngram_vocab_size_divisible_by=4, split_ngram_parts=1, indexer_n_heads=2,
        indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8, indexer_compress_ratio=2,
        rope_parameters={**ROPE, "partial_rotary_factor": 1.0})
    config = tf.Qwen4ExpConfig(text_config=text, vision_config=FLAT, **TOKENS)
    return build("qwen4_exp", tf.Qwen4ExpForConditionalGeneration, config, dtype, merged, patches,
                 TYPES)


def lfm3_vl(dtype: torch.dtype) -> Family:
    """Convolutions, windows and gated full attention in one stack."""
    text = tf.Lfm3Config(**sizes(
        num_hidden_layers=4, head_dim=8, sliding_window=8,
        layer_types=["conv", "sliding_attention", "conv", "full_attention"]))
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "patch_size": 4,
              "num_attention_heads": 2, "num_key_value_heads": 1,
              "layer_types": ["conv", "full_attention"]}
    config = tf.Lfm3VlConfig(text_config=text, vision_config=vision, projector_hidden_size=32,
                             **TOKENS)
    return build("lfm3_vl", tf.Lfm3VlForConditionalGeneration, config, dtype, merged, patches)


def blocks(media: Sequence[Media]) -> Pixels:
    """Blocks of 8 x 8 pixels with their places; -1 where a picture has fewer."""
    values = torch.zeros(len(media), 6, 192, dtype=torch.float64)
    places = torch.full((len(media), 6, 2), -1)
    for i, medium in enumerate(media):
        w, h = ((3, 2), (2, 2))[kind(medium)]
        values[i, :h * w] = noise(medium, h * w, 192)
        places[i, :h * w] = torch.tensor([(x, y) for y in range(h) for x in range(w)])
    return {"pixel_values": values, "image_position_ids": places}


def gemma4_unified(dtype: torch.dtype) -> Family:
    """No vision tower: patches are projected straight into the language model."""
    text = tf.Gemma4UnifiedTextConfig(**sizes(
        num_hidden_layers=2, head_dim=8, global_head_dim=16, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=30.0))
    vision = tf.Gemma4UnifiedVisionConfig(patch_size=4, pooling_kernel_size=2, mm_embed_dim=16,
                                          mm_posemb_size=16, output_proj_dims=16)
    config = tf.Gemma4UnifiedConfig(
        text_config=text, vision_config=vision, audio_config=None, boi_token_id=OPEN,
        eoi_token_id=CLOSE, image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=7,
        boa_token_id=11, eoa_token_index=12)
    return build("gemma4_unified", tf.Gemma4UnifiedForConditionalGeneration, config, dtype,
                 packed_span, blocks, TYPES)


