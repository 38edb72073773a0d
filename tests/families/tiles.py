"""Families whose pictures differ in size or number of tiles, each with a layout of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers as tf

from families.grids import TOKENS, TYPES, grid, merged
from families.making import (
    BREAK,
    CLOSE,
    IMAGE,
    MARK,
    OPEN,
    TILE,
    VIDEO,
    Family,
    Pixels,
    build,
    kind,
    noise,
    sight,
    sizes,
)
from selfloop.types import Media

# -- tiles after a small picture of the whole, rows ended by a learnt newline ---------------------

PINPOINTS = [[16, 32], [32, 16]]


def any_sized(media: Sequence[Media]) -> Pixels:
    """The whole and two tiles of 16 x 16; the tiles stand beside or above each other."""
    return {"pixel_values": torch.stack([noise(m, 3, 3, 16, 16) for m in media]),
            "image_sizes": torch.tensor([PINPOINTS[kind(m)] for m in media])}


def newlined(medium: Media) -> tuple[int, ...]:
    """Patches of 8: the whole is 2 x 2, the tiles 2 x 4 or 4 x 2, a newline after every row."""
    return (IMAGE,) * (4 + (4 * 3 if kind(medium) else 2 * 5))


def llava_next(dtype: torch.dtype) -> Family:
    """Tiles of any aspect."""
    config = tf.LlavaNextConfig(
        text_config=tf.MistralConfig(**sizes(sliding_window=None)),
        vision_config=tf.CLIPVisionConfig(**sight(patch_size=8)), image_token_index=IMAGE,
        image_token_id=IMAGE, image_grid_pinpoints=PINPOINTS)
    return build("llava_next", tf.LlavaNextForConditionalGeneration, config, dtype, newlined,
                 any_sized)


def llava_onevision(dtype: torch.dtype) -> Family:
    """The same over SigLIP and Qwen2."""
    config = tf.LlavaOnevisionConfig(
        text_config=tf.Qwen2Config(**sizes()), image_grid_pinpoints=PINPOINTS,
        vision_config=tf.SiglipVisionConfig(**sight(patch_size=8, vision_use_head=False)),
        image_token_index=IMAGE, image_token_id=IMAGE, video_token_index=VIDEO,
        video_token_id=VIDEO)
    return build("llava_onevision", tf.LlavaOnevisionForConditionalGeneration, config, dtype,
                 newlined, any_sized)


# -- pixels as [row, tile, ...] --------------------------------------------------------------------

def tiled(media: Sequence[Media]) -> Pixels:
    """One or two tiles a picture, all of a row's side by side."""
    tiles = torch.cat([noise(m, 1 + kind(m), 3, 16, 16) for m in media])[None]
    return {"pixel_values": tiles,
            "pixel_attention_mask": torch.ones(1, tiles.shape[1], 16, 16, dtype=torch.long)}


def tile_spans(medium: Media) -> tuple[int, ...]:
    """Four tokens a tile."""
    return (*(MARK, TILE, *(IMAGE,) * 4) * (1 + kind(medium)), CLOSE)


def idefics3(dtype: torch.dtype) -> Family:
    """Pixel shuffle over SigLIP, Llama underneath."""
    config = tf.Idefics3Config(
        text_config=tf.LlamaConfig(**sizes()), vision_config=sight(), scale_factor=2,
        image_token_id=IMAGE, pad_token_id=0)
    return build("idefics3", tf.Idefics3ForConditionalGeneration, config, dtype, tile_spans,
                 tiled)


def smolvlm(dtype: torch.dtype) -> Family:
    """Idefics3's successor."""
    config = tf.SmolVLMConfig(
        text_config=tf.LlamaConfig(**sizes()), vision_config=sight(), scale_factor=2,
        image_token_id=IMAGE, pad_token_id=0)
    return build("smolvlm", tf.SmolVLMForConditionalGeneration, config, dtype, tile_spans, tiled)


# -- pictures of their own size, padded to the largest of a row ------------------------------------

SIZES = ((16, 24), (24, 16))


def framed(media: Sequence[Media]) -> Pixels:
    """Zeros below and beside a smaller picture."""
    found = [SIZES[kind(m)] for m in media]
    height, width = (max(side) for side in zip(*found, strict=True))
    pixels = torch.zeros(len(media), 3, height, width, dtype=torch.float64)
    for i, (medium, (h, w)) in enumerate(zip(media, found, strict=True)):
        pixels[i, :, :h, :w] = noise(medium, 3, h, w)
    return {"pixel_values": pixels, "image_sizes": torch.tensor(found)}


def broken_lines(medium: Media) -> tuple[int, ...]:
    """One token for 8 x 8 pixels, a break after every line."""
    h, w = SIZES[kind(medium)]
    lines = ((IMAGE,) * (w // 8) + (BREAK,)) * (h // 8)
    return (*lines[:-1], CLOSE)


def mistral3(dtype: torch.dtype) -> Family:
    """Pixtral's tower (two-dimensional rotary positions), patches merged 2 x 2."""
    config = tf.Mistral3Config(
        text_config=tf.MistralConfig(**sizes(head_dim=8, sliding_window=None)),
        vision_config=tf.PixtralVisionConfig(**sight(image_size=32, head_dim=8)),
        image_token_index=IMAGE, image_token_id=IMAGE, spatial_merge_size=2)
    return build("mistral3", tf.Mistral3ForConditionalGeneration, config, dtype, broken_lines,
                 framed)


# -- patches in rows, padded ---------------------------------------------------------------------

def packed(media: Sequence[Media]) -> Pixels:
    """At most 28 patches of 4 x 4 with a mask (SigLIP 2)."""
    values = torch.zeros(len(media), 28, 48, dtype=torch.float64)
    mask = torch.zeros(len(media), 28, dtype=torch.long)
    shapes = [((4, 6), (4, 4))[kind(m)] for m in media]
    for i, (medium, (h, w)) in enumerate(zip(media, shapes, strict=True)):
        values[i, :h * w], mask[i, :h * w] = noise(medium, h * w, 48), 1
    return {"pixel_values": values, "pixel_attention_mask": mask,
            "spatial_shapes": torch.tensor(shapes)}


def packed_span(medium: Media) -> tuple[int, ...]:
    return (OPEN, *(IMAGE,) * (4 if kind(medium) else 6), CLOSE)


def lfm2_vl(dtype: torch.dtype) -> Family:
    """Two layers of four are short convolutions that keep three columns."""
    text = tf.Lfm2Config(**sizes(
        num_hidden_layers=4, block_ff_dim=48, block_auto_adjust_ff_dim=False,
        layer_types=["conv", "full_attention", "conv", "full_attention"]))
    config = tf.Lfm2VlConfig(
        text_config=text, vision_config=tf.Siglip2VisionConfig(**{
            k: v for k, v in sight(num_patches=16, vision_use_head=False).items()
            if k != "image_size"}),
        image_token_id=IMAGE, projector_hidden_size=32, downsample_factor=2)
    return build("lfm2_vl", tf.Lfm2VlForConditionalGeneration, config, dtype, packed_span, packed)


def placed(media: Sequence[Media]) -> Pixels:
    """Patches with their places; -1 where a picture has fewer."""
    values = torch.zeros(len(media), 24, 48, dtype=torch.float64)
    places = torch.full((len(media), 24, 2), -1)
    for i, medium in enumerate(media):
        w, h = ((6, 4), (4, 4))[kind(medium)]
        values[i, :h * w] = noise(medium, h * w, 48)
        places[i, :h * w] = torch.tensor([(x, y) for y in range(h) for x in range(w)])
    return {"pixel_values": values, "image_position_ids": places}


def gemma4(dtype: torch.dtype) -> Family:
    """Windows of 8 tokens, wider heads in full layers, two layers that borrow another's keys,
    per-layer inputs, a soft cap on the logits."""
    kinds = ["sliding_attention", "full_attention"] * 2
    text = tf.Gemma4TextConfig(**sizes(
        num_hidden_layers=4, head_dim=8, global_head_dim=16, sliding_window=8, layer_types=kinds,
        num_kv_shared_layers=2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=64,
        final_logit_softcapping=30.0, use_bidirectional_attention="vision"))
    vision = tf.Gemma4VisionConfig(**{
        k: v for k, v in sight(head_dim=8, num_key_value_heads=2, pooling_kernel_size=2,
                               position_embedding_size=64).items() if k != "image_size"})
    config = tf.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, boi_token_id=OPEN,
        eoi_token_id=CLOSE, image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=7,
        boa_token_id=11, eoa_token_index=12)
    return build("gemma4", tf.Gemma4ForConditionalGeneration, config, dtype, packed_span, placed,
                 TYPES)


# -- others --------------------------------------------------------------------------------------

def ovis2(dtype: torch.dtype) -> Family:
    """Pictures as mixtures of a visual vocabulary, between indicators with embeddings of their own.
    """
    config = tf.Ovis2Config(
        text_config=tf.Qwen2Config(**sizes()), hidden_size=32, vocab_size=64,
        vision_config=tf.models.ovis2.Ovis2VisionConfig(**sight(
            vocab_size=20, hidden_stride=2, num_visual_indicator_tokens=5)),
        image_token_id=IMAGE, visual_indicator_token_ids=[OPEN, CLOSE, MARK, TILE, BREAK])
    return build("ovis2", tf.Ovis2ForConditionalGeneration, config, dtype,
                 lambda medium: (OPEN, *(IMAGE,) * 4, CLOSE),
                 lambda media: {"pixel_values": torch.stack([noise(m, 3, 16, 16)
                                                             for m in media])})


def kimi_k25(dtype: torch.dtype) -> Family:
    """Latent attention (keys wider than values) with experts, over a grid of patches."""
    text = tf.DeepseekV3Config(**sizes(
        num_key_value_heads=4, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8,
        qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_group=2,
        topk_group=1, n_shared_experts=1, moe_intermediate_size=16, first_k_dense_replace=1))
    vision = {k: v for k, v in sight(pos_emb_height=8, pos_emb_width=8).items()
              if k != "image_size"}
    config = tf.models.kimi_k25.Kimi_K25Config(
        text_config=text, vision_config=vision, projection_hidden_size=16, **TOKENS)
    return build("kimi_k25", tf.models.kimi_k25.Kimi_K25ForConditionalGeneration, config, dtype,
                 merged, lambda media: {
                     "pixel_values": torch.cat([noise(m, grid(m)[1] * grid(m)[2], 3, 4, 4)
                                                for m in media]),
                     "image_grid_thw": torch.tensor([grid(m) for m in media])})


def mllama(dtype: torch.dtype) -> Family:
    """Pictures are not in the sequence: one layer of three looks at them by cross-attention."""
    text = tf.models.mllama.configuration_mllama.MllamaTextConfig(**sizes(
        num_hidden_layers=3, cross_attention_layers=[1],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}))
    vision = tf.models.mllama.configuration_mllama.MllamaVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_global_layers=1,
        attention_heads=2, image_size=16, patch_size=8, max_num_tiles=1, vision_output_dim=32,
        intermediate_layers_indices=[0], supported_aspect_ratios=[[1, 1]])
    config = tf.MllamaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)
    return build("mllama", tf.MllamaForConditionalGeneration, config, dtype,
                 lambda medium: (IMAGE,), lambda media: {
                     "pixel_values": torch.stack([noise(m, 1, 3, 16, 16) for m in media])[None],
                     "aspect_ratio_ids": torch.ones(1, len(media), dtype=torch.long),
                     "aspect_ratio_mask": torch.ones(1, len(media), 1, dtype=torch.long)},
                 more=crossed)


def crossed(ids_BT: torch.Tensor, media: Sequence[Sequence[Media]]) -> Pixels:
    """Which pictures a token may look at: those whose placeholder has passed."""
    most = max(map(len, media))
    if not most:
        return {}
    passed_BT1 = (ids_BT == IMAGE).cumsum(-1)[..., None]
    return {"cross_attention_mask": (passed_BT1 > torch.arange(most)).long()[..., None]}
