"""Random models of three shapes, written as ordinary from_pretrained folders that all sides load.

LLaVA-shaped: a CLIP tower of fixed picture size, Llama text. Qwen2.5-VL-shaped: windowed vision
attention, a patch merger, M-RoPE. Gemma-3-shaped: five of six text layers see 512 tokens back, and
a picture's tokens see each other. One byte is one token, so that prompts have an exact length; the
rest of the vocabulary is words that nothing is spelled with, so that the head has a real width.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models

PATCH = 14
"""Pixels of a side of a vision patch, in all shapes."""
IMAGE, END = "<|image_pad|>", "<|im_end|>"
BEGIN, FINISH = "<|vision_start|>", "<|vision_end|>"
SPECIALS = ("<|endoftext|>", "<|im_start|>", END, IMAGE, "<|video_pad|>", BEGIN, FINISH)
WINDOW = 512
"""Tokens that a windowed layer of the Gemma 3 shape sees, as in Gemma 3 1B."""
CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ 'PICTURE' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


@dataclass(frozen=True)
class Size:
    """Widths and depths of a model."""

    width: int = 256
    layers: int = 6
    heads: int = 8
    inner: int = 688
    vision_width: int = 256
    vision_layers: int = 6
    vision_heads: int = 8
    vocabulary: int = 4_096
    """The head then weighs 22 % of the layers, as in SmolVLM-256M (21 %); 11 % in Qwen2.5-VL-3B."""


TINY = Size()


def small(width: int, vocabulary: int) -> Size:
    """A model for a CPU: as deep as the tiny one, with heads of the same size."""
    return replace(TINY, width=width, heads=width // 32, inner=width * 688 // 256,
                   vocabulary=vocabulary)


def _timed(size: Size) -> bool:
    """Whether it is one of those that a CPU is timed with: neither smaller, nor for a GPU."""
    return TINY.width <= size.width < LARGE.width


LARGE = Size(2048, 36, 16, 11008, 1280, 32, 16, 151_936)
"""The widths and depths of Qwen2.5-VL-3B, for a GPU."""


def build(kind: str, side: int, folder: Path, size: Size = TINY) -> Path:
    """The folder of a `kind` of model whose pictures become side * side tokens; made if absent."""
    pixels_are_fixed = kind != "qwen2_5_vl"
    name = f"{kind}-{side}" if pixels_are_fixed else kind
    folder = folder / f"{name}-{size.width}x{size.layers}-{size.vocabulary}"
    settings = json.dumps([kind, side if pixels_are_fixed else 0, asdict(size)])
    made = folder / "made.json"
    if made.is_file() and made.read_text() == settings:
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = {"llava": _llava, "qwen2_5_vl": _qwen, "gemma3": _gemma}[kind]
        model, processor = make(side, size)
        if _timed(size):
            _spread(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind == "qwen2_5_vl":
        _mention_videos(folder / "processor_config.json")
    made.write_text(settings)
    return folder


def make_tokenizer(vocabulary: int, **named: str) -> tf.PreTrainedTokenizerFast:
    """Bytes, filler words, specials: exactly `vocabulary` tokens. `named`: what processors ask for
    by name, where it is not Qwen's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    filler = [f"w{i}" for i in range(vocabulary - len(alphabet) - len(SPECIALS))]
    core = Tokenizer(token_models.BPE({c: i for i, c in enumerate([*alphabet, *filler])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token="<|endoftext|>",
        extra_special_tokens=named or {"image_token": IMAGE, "video_token": "<|video_pad|>"},
        clean_up_tokenization_spaces=False, padding_side="left", model_max_length=32768)


def _text(size: Size, tokenizer: Any, kv_heads: int) -> dict[str, Any]:
    return {"vocab_size": size.vocabulary, "hidden_size": size.width,
            "intermediate_size": size.inner, "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads, "num_key_value_heads": kv_heads,
            "max_position_embeddings": 8192, "tie_word_embeddings": True,
            "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id}


def _llava(side: int, size: Size) -> tuple[Any, Any]:
    tokenizer = make_tokenizer(size.vocabulary)
    pixels = {"height": side * PATCH, "width": side * PATCH}
    processor = tf.LlavaProcessor(
        tf.models.clip.image_processing_pil_clip.CLIPImageProcessorPil(
            size=pixels, crop_size=pixels, do_center_crop=False),
        tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token=IMAGE,
        chat_template=CHATML.replace("PICTURE", IMAGE))
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**_text(size, tokenizer, size.heads)),
        vision_config=tf.CLIPVisionConfig(
            hidden_size=size.vision_width, intermediate_size=4 * size.vision_width,
            num_hidden_layers=size.vision_layers, num_attention_heads=size.vision_heads,
            image_size=side * PATCH, patch_size=PATCH, projection_dim=size.vision_width),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE), image_seq_length=side * side,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
        tie_word_embeddings=True)
    return tf.LlavaForConditionalGeneration(config), processor


def _qwen(side: int, size: Size) -> tuple[Any, Any]:
    images_only()
    tokenizer = make_tokenizer(size.vocabulary)
    ids = tokenizer.convert_tokens_to_ids
    processor = tf.Qwen2_5_VLProcessor(
        tf.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(
            size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280}), tokenizer,
        chat_template=CHATML.replace("PICTURE", f"{BEGIN}{IMAGE}{FINISH}"))
    if _timed(size):  # four patches a token cost what the layers cost it: 0.9 in 3B
        size = replace(size, vision_width=size.width // 2, vision_heads=size.width // 64)
    depth = size.vision_layers
    text = {key: value for key, value in _text(size, tokenizer, _key_heads(size)).items()
            if key != "tie_word_embeddings"}
    half = size.width // size.heads // 2
    config = tf.Qwen2_5_VLConfig(
        text_config={**text, "tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6,
            "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]}},
        vision_config={
            "depth": depth, "hidden_size": size.vision_width, "num_heads": size.vision_heads,
            "intermediate_size": 8 * size.vision_width // 3, "out_hidden_size": size.width,
            "fullatt_block_indexes": list(range(depth // 3, depth, max(1, depth // 3)))},
        image_token_id=ids(IMAGE), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True)
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


def _gemma(side: int, size: Size) -> tuple[Any, Any]:
    tokenizer = make_tokenizer(size.vocabulary, image_token=IMAGE, boi_token=BEGIN,
                               eoi_token=FINISH)
    ids, edge = tokenizer.convert_tokens_to_ids, 2 * side * PATCH
    role = "('model' if message['role'] == 'assistant' else message['role'])"
    processor = tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size={"height": edge, "width": edge}), tokenizer,
        image_seq_length=side * side, chat_template=CHATML.replace("PICTURE", BEGIN)
        .replace("message['role']", role).replace("assistant\n", "model\n"))
    config = tf.Gemma3Config(
        text_config=tf.Gemma3TextConfig(
            **_text(size, tokenizer, _key_heads(size)), head_dim=size.width // size.heads,
            query_pre_attn_scalar=size.width // size.heads, sliding_window=WINDOW),
        vision_config=tf.SiglipVisionConfig(
            hidden_size=size.width // 2, intermediate_size=2 * size.width,
            num_hidden_layers=size.vision_layers, num_attention_heads=max(1, size.width // 64),
            image_size=edge, patch_size=PATCH),
        mm_tokens_per_image=side * side, image_token_id=ids(IMAGE), boi_token_index=ids(BEGIN),
        eoi_token_index=ids(FINISH), tie_word_embeddings=True)
    return tf.Gemma3ForConditionalGeneration(config), processor


def _key_heads(size: Size) -> int:
    """Some four heads share a key; with 18 heads (576 channels) it is six."""
    return max(n for n in range(1, max(2, size.heads // 4 + 1)) if size.heads % n == 0)


def images_only() -> None:
    """Let Qwen2.5-VL's processor load without its video part, which needs torchvision.

    torchvision cannot stand beside a CPU build of torch from the package index. The class itself
    is changed, in this process only, so that every side reads pictures through the same code.
    """
    kind: Any = tf.Qwen2_5_VLProcessor
    kind.get_attributes = classmethod(lambda cls: ["image_processor", "tokenizer"])


def _mention_videos(path: Path) -> None:
    """Write the video part's settings back for readers that do load it (vLLM)."""
    settings = json.loads(path.read_text())
    settings["video_processor"] = {"video_processor_type": "Qwen2VLVideoProcessor"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _spread(model: torch.nn.Module) -> None:
    """Initial weights at 1 / sqrt(fan in): at the libraries' 0.02 a narrow model's answers would
    hardly depend on the picture, and agreement of two sides would say nothing about it."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed" in name and "patch" not in name:
                weight.normal_(0.0, 0.06)
            elif weight.ndim >= 2:
                weight.normal_(0.0, weight[0].numel() ** -0.5)
