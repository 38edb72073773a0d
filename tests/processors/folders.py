"""Tiny from_pretrained folders with each family's real processor, a byte tokenizer and ChatML.

The model is the family's of tests/families, at its processor's vocabulary and token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from families import FAMILIES
from families.making import VOCAB, awaken
from hf_models import CHATML, byte_tokenizer

Tokens = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Folder:
    """How one family's folder is made."""

    processor: Callable[[], Any]
    ids: Tokens
    """Name in the model's config (at any depth) -> the token (or tokens) whose id belongs there."""
    written: str
    """What the template writes for a picture."""
    image: str = ""
    """The placeholder after expansion, where that is another token."""
    pictureless: bool = True
    """Whether the processor takes a prompt without any picture."""

    @property
    def placeholder(self) -> str:
        return self.image or self.written


def make(name: str, recipe: Folder, folder: Path) -> Path:
    """Write the folder and return it."""
    processor = recipe.processor()
    processor.chat_template = CHATML.replace("IMAGE", f"'{recipe.written}'")
    tokenizer = processor.tokenizer
    known = FAMILIES[name](torch.float32).model
    number = tokenizer.convert_tokens_to_ids
    ids = {key: [number(t) for t in token] if isinstance(token, tuple) else number(token)
           for key, token in recipe.ids.items()}
    ids |= {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id")
            for kind in ("pad", "bos", "eos")}
    config = type(known.config).from_dict(_changed(known.config.to_dict(), ids, len(tokenizer)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = type(known)(config)
        awaken(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _changed(config: dict[str, Any], ids: Mapping[str, Any], words: int) -> dict[str, Any]:
    """The config at this vocabulary; rows beyond the tokenizer's are padding, as usual."""
    found = dict(config)
    for key, value in config.items():
        if isinstance(value, dict):
            found[key] = _changed(value, ids, words)
        elif key in ids:
            found[key] = ids[key]
        elif str(key).startswith("vocab_size") and value == VOCAB:
            found[key] = words + 5
    return found


# -- without torchvision --------------------------------------------------------------------------

SQUARE = {"height": 16, "width": 16}
PINPOINTS = [[16, 32], [32, 16]]


def _paligemma() -> Any:
    pictures = tf.SiglipImageProcessorPil(size=SQUARE)
    pictures.image_seq_length = 16
    return tf.PaliGemmaProcessor(pictures, byte_tokenizer(image_token="<image>"))


def _llava_next() -> Any:
    pictures = tf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS)
    return tf.LlavaNextProcessor(
        pictures, byte_tokenizer(image_token="<image>"), patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1)


AYA = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "<|IMG_PATCH|>", "TILE",
       "TILE_GLOBAL", "<image>")


def _aya_vision() -> Any:
    pictures = tf.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=2)
    return tf.AyaVisionProcessor(pictures, byte_tokenizer(*AYA), patch_size=4, img_size=16,
                                 downsample_factor=2)


OVIS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")


def _ovis2() -> Any:
    pictures = tf.Ovis2ImageProcessorPil(size=SQUARE, crop_to_patches=False)
    return tf.Ovis2Processor(pictures, byte_tokenizer("<image>", "<IMG_ATOM>", *OVIS),
                             image_seq_length=4)


def _idefics2() -> Any:
    pictures = tf.Idefics2ImageProcessorPil(
        size={"longest_edge": 16, "shortest_edge": 16}, do_image_splitting=False)
    return tf.Idefics2Processor(pictures, byte_tokenizer(
        "<fake_token_around_image>", "<image>", "<end_of_utterance>"), image_seq_len=4)


def _deepseek_vl() -> Any:
    pictures = tf.DeepseekVLImageProcessorPil(size=SQUARE, min_size=4)
    return tf.DeepseekVLProcessor(
        pictures, byte_tokenizer(image_token="<image_placeholder>"), num_image_tokens=16)


_IMAGE: Tokens = {"image_token_id": "<image>", "image_token_index": "<image>"}
PLAIN: dict[str, Folder] = {
    "paligemma": Folder(_paligemma, _IMAGE, "<image>", pictureless=False),
    "llava_next": Folder(_llava_next, _IMAGE, "<image>"),
    "aya_vision": Folder(_aya_vision, {
        "image_token_id": "<|IMG_PATCH|>", "image_token_index": "<|IMG_PATCH|>"}, "<image>",
        "<|IMG_PATCH|>"),
    "ovis2": Folder(_ovis2, {"image_token_id": "<IMG_ATOM>", "visual_indicator_token_ids": OVIS},
                    "<image>", "<IMG_ATOM>"),
    "idefics2": Folder(_idefics2, _IMAGE, "<image>"),
    "deepseek_vl": Folder(_deepseek_vl, {"image_token_id": "<image_placeholder>"},
                          "<image_placeholder>"),
}
"""Families whose processors need no torchvision."""


# -- with torchvision: their processors read videos too, and that part needs it --------------------

QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PIXELS = {"shortest_edge": 256, "longest_edge": 576}


def _qwen(kind: str, video: str = "Qwen2VLVideoProcessor") -> Callable[[], Any]:
    def processor() -> Any:
        named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
                 "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
        return getattr(tf, kind)(
            tf.Qwen2VLImageProcessor(size=PIXELS, patch_size=4), byte_tokenizer(**named),
            getattr(tf, video)(size=PIXELS, patch_size=4))
    return processor


_QWEN: Tokens = {"vision_start_token_id": QWEN[0], "vision_end_token_id": QWEN[1],
                 "image_token_id": QWEN[2], "video_token_id": QWEN[3]}
_PAD = "<|image_pad|>"
_WRITTEN = "".join((QWEN[0], _PAD, QWEN[1]))


def _glm4v() -> Any:
    tokenizer = byte_tokenizer("<|begin_of_image|>", "<|end_of_image|>", image_token="<|image|>",
                               video_token="<|video|>")
    return tf.Glm4vProcessor(tf.Glm4vImageProcessor(size=PIXELS, patch_size=4), tokenizer,
                             tf.Glm4vVideoProcessor(size=PIXELS, patch_size=4))


def _internvl() -> Any:
    tokenizer = byte_tokenizer(start_image_token="<img>", end_image_token="</img>",
                               context_image_token="<IMG_CONTEXT>", video_token="<video>")
    return tf.InternVLProcessor(
        tf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=2), tokenizer,
        tf.InternVLVideoProcessor(size=SQUARE), image_seq_length=4)


def _llava_onevision() -> Any:
    return tf.LlavaOnevisionProcessor(
        tf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        byte_tokenizer(image_token="<image>", video_token="<video>"),
        tf.LlavaOnevisionVideoProcessor(size=SQUARE), num_image_tokens=4,
        vision_feature_select_strategy="full")


def _smolvlm() -> Any:
    tiles = [f"<row_{r}_col_{c}>" for r in range(1, 3) for c in range(1, 3)]
    return tf.SmolVLMProcessor(
        tf.SmolVLMImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        byte_tokenizer("<image>", "<fake_token_around_image>", "<global-img>",
                       "<end_of_utterance>", *tiles),
        tf.SmolVLMVideoProcessor(size={"longest_edge": 16}), image_seq_len=4)


def _pixtral() -> Any:
    return tf.PixtralProcessor(
        tf.PixtralImageProcessor(size={"longest_edge": 32}, patch_size=4),
        byte_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]"), patch_size=4, spatial_merge_size=2)


GEMMA = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
         "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
         "video_token": "<|video|>"}


def _gemma4() -> Any:
    return tf.Gemma4Processor(
        feature_extractor=tf.Gemma4AudioFeatureExtractor(),
        image_processor=tf.Gemma4ImageProcessor(patch_size=4, pooling_kernel_size=2,
                                                max_soft_tokens=70),
        tokenizer=byte_tokenizer(**GEMMA),
        video_processor=tf.Gemma4VideoProcessor(patch_size=4, pooling_kernel_size=2))


def _cohere2() -> Any:
    # Its processor counts patch_size ** 2 tokens a tile, which is right only where patches happen
    # to be as wide as a tile is in tokens (16 in the published models, 2 in this one).
    return tf.Cohere2VisionProcessor(
        tf.Cohere2VisionImageProcessor(size=SQUARE, patch_size=2, downsample_factor=2,
                                       min_patches=1, max_patches=2),
        byte_tokenizer("<|IMG_LINE_BREAK|>", boi_token="<|START_OF_IMG|>",
                       eoi_token="<|END_OF_IMG|>", image_token="<|IMG_PATCH|>",
                       img_line_break_token="<|LINE|>"))


WIDE: dict[str, Folder] = {
    "qwen2_vl": Folder(_qwen("Qwen2VLProcessor"), _QWEN, _WRITTEN, _PAD),
    "qwen2_5_vl": Folder(_qwen("Qwen2_5_VLProcessor"), _QWEN, _WRITTEN, _PAD),
    "qwen3_vl": Folder(_qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"), _QWEN, _WRITTEN, _PAD),
    "qwen3_5": Folder(_qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"), _QWEN, _WRITTEN, _PAD),
    "glm4v": Folder(_glm4v, {
        "image_token_id": "<|image|>", "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>", "image_end_token_id": "<|end_of_image|>"},
        "<|begin_of_image|><|image|><|end_of_image|>", "<|image|>"),
    "internvl": Folder(_internvl, {"image_token_id": "<IMG_CONTEXT>"}, "<IMG_CONTEXT>"),
    "llava_onevision": Folder(_llava_onevision, {
        **_IMAGE, "video_token_id": "<video>", "video_token_index": "<video>"}, "<image>"),
    "smolvlm": Folder(_smolvlm, {"image_token_id": "<image>"}, "<image>"),
    "mistral3": Folder(_pixtral, {"image_token_id": "[IMG]", "image_token_index": "[IMG]"},
                       "[IMG]"),
    "gemma4": Folder(_gemma4, {
        "image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>",
        "audio_token_id": "<|audio|>", "boa_token_id": "<|audio>", "eoa_token_index": "<audio|>",
        "video_token_id": "<|video|>"}, "<|image|>"),
    "cohere2_vision": Folder(_cohere2, {"image_token_id": "<|IMG_PATCH|>"}, "<|IMG_PATCH|>"),
}
"""Families whose processors do."""
