"""Families whose pictures are squares of one size: pixel_values [pictures, 3, side, side]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import transformers as tf

from families.making import (
    CLOSE,
    IMAGE,
    OPEN,
    Family,
    Pixels,
    build,
    noise,
    sight,
    sizes,
)
from selfloop.types import Media


def squares(side: int = 16) -> Callable[[Sequence[Media]], Pixels]:
    """One tensor a picture."""
    return lambda media: {"pixel_values": torch.stack([noise(m, 3, side, side) for m in media])}


def features(count: int) -> Callable[[Media], tuple[int, ...]]:
    """That many placeholders between two marks."""
    return lambda medium: (OPEN, *(IMAGE,) * count, CLOSE)


def llava(dtype: torch.dtype) -> Family:
    """CLIP features through two linear layers, as 16 tokens in place."""
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**sizes()), vision_config=tf.CLIPVisionConfig(**sight()),
        image_token_index=IMAGE, image_token_id=IMAGE)
    return build("llava", tf.LlavaForConditionalGeneration, config, dtype, features(16),
                 squares())


def internvl(dtype: torch.dtype) -> Family:
    """Features folded 2 x 2, over a Qwen2 language model."""
    config = tf.InternVLConfig(
        text_config=tf.Qwen2Config(**sizes()),
        vision_config=tf.InternVLVisionConfig(**sight(image_size=[16, 16], patch_size=[4, 4])),
        image_token_id=IMAGE, image_seq_length=4)
    return build("internvl", tf.InternVLForConditionalGeneration, config, dtype, features(4),
                 squares())


def gemma3(dtype: torch.dtype) -> Family:
    """Windows of 8 tokens in one layer of two; a picture's tokens see each other both ways."""
    text = tf.Gemma3TextConfig(**sizes(
        head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]))
    config = tf.Gemma3Config(
        text_config=text, vision_config=tf.SiglipVisionConfig(**sight()), mm_tokens_per_image=4,
        image_token_id=IMAGE, boi_token_index=OPEN, eoi_token_index=CLOSE)
    return build("gemma3", tf.Gemma3ForConditionalGeneration, config, dtype, features(4),
                 squares(), {"token_type_ids": {IMAGE: 1}})


def paligemma(dtype: torch.dtype) -> Family:
    """A prefix language model: a prompt (type 0) is seen both ways, an answer (type 1) is not."""
    config = tf.PaliGemmaConfig(
        text_config=tf.GemmaConfig(**sizes(head_dim=8)), image_token_index=IMAGE,
        image_token_id=IMAGE, projection_dim=32,
        vision_config=tf.SiglipVisionConfig(**sight(projection_dim=32)))
    return build("paligemma", tf.PaliGemmaForConditionalGeneration, config, dtype, features(16),
                 squares(), {"token_type_ids": {}}, answers={"token_type_ids": 1})


def llama4(dtype: torch.dtype) -> Family:
    """Chunks of 16 tokens in three layers of four, the fourth without rotary positions; experts."""
    text = tf.Llama4TextConfig(**sizes(
        num_hidden_layers=4, head_dim=8, intermediate_size_mlp=48, num_local_experts=2,
        attention_chunk_size=16, no_rope_layers=[1, 1, 1, 0], interleave_moe_layer_step=2))
    vision = tf.Llama4VisionConfig(**sight(
        intermediate_size=64, projector_input_dim=16, projector_output_dim=16,
        vision_output_dim=16, pixel_shuffle_ratio=0.5))
    config = tf.Llama4Config(text_config=text, vision_config=vision, image_token_index=IMAGE,
                             boi_token_index=OPEN, eoi_token_index=CLOSE)
    return build("llama4", tf.Llama4ForConditionalGeneration, config, dtype, features(4),
                 squares())


def aya_vision(dtype: torch.dtype) -> Family:
    """Cohere2 underneath: windows, parallel blocks, logits scaled after the head."""
    text = tf.Cohere2Config(**sizes(
        sliding_window=8, logit_scale=0.25,
        layer_types=["sliding_attention", "full_attention"]))
    config = tf.AyaVisionConfig(
        text_config=text, vision_config=tf.SiglipVisionConfig(**sight()), downsample_factor=2,
        adapter_layer_norm_eps=1e-6, image_token_index=IMAGE, image_token_id=IMAGE,
        vision_feature_select_strategy="full", vision_feature_layer=-1)
    return build("aya_vision", tf.AyaVisionForConditionalGeneration, config, dtype, features(4),
                 squares())


def cohere2_vision(dtype: torch.dtype) -> Family:
    """The same language model behind a gated projector."""
    text = tf.Cohere2Config(**sizes(
        sliding_window=8, logit_scale=0.25,
        layer_types=["sliding_attention", "full_attention"]))
    config = tf.Cohere2VisionConfig(
        text_config=text, vision_config=tf.SiglipVisionConfig(**sight()), downsample_factor=2,
        alignment_intermediate_size=32, image_token_id=IMAGE)
    return build("cohere2_vision", tf.Cohere2VisionForConditionalGeneration, config, dtype,
                 features(4), squares())


def deepseek_vl(dtype: torch.dtype) -> Family:
    """SigLIP over Llama."""
    config = tf.DeepseekVLConfig(
        text_config=tf.LlamaConfig(**sizes()), vision_config=tf.SiglipVisionConfig(**sight()),
        image_token_id=IMAGE)
    return build("deepseek_vl", tf.DeepseekVLForConditionalGeneration, config, dtype,
                 features(16), squares())


def idefics2(dtype: torch.dtype) -> Family:
    """A perceiver makes every picture four tokens; pixels come as [row, picture, ...]."""
    config = tf.Idefics2Config(
        text_config=tf.MistralConfig(**sizes(sliding_window=None)),
        vision_config=tf.models.idefics2.Idefics2VisionConfig(**sight()),
        perceiver_config={"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1,
                          "resampler_n_heads": 4, "resampler_head_dim": 8,
                          "num_key_value_heads": 2},
        image_token_id=IMAGE)
    return build("idefics2", tf.Idefics2ForConditionalGeneration, config, dtype, features(4),
                 lambda media: {"pixel_values": squares()(media)["pixel_values"][None]})
