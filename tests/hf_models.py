"""Tiny random vision-language models of several families, as ordinary folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from selfloop.types import Context, Media, Message, Part

CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ IMAGE }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def byte_tokenizer(*specials: str, **named: str) -> tf.PreTrainedTokenizerFast:
    """One token a byte, ChatML markers, and a family's own specials; pad is eos here."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = ["<bos>", "<|im_start|>", "<|im_end|>", "<think>", *specials, *named.values()]
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in texts])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        extra_special_tokens=named or None, clean_up_tokenization_spaces=False)


def text_sizes(tokenizer: tf.PreTrainedTokenizerFast, **more: object) -> dict[str, object]:
    return {"vocab_size": len(tokenizer) + 5, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 256, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, **more}


def vision_sizes(side: int, patch: int) -> dict[str, int]:
    return {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": side, "patch_size": patch}


def llava(folder: Path) -> Path:
    """The package's own tiny LLaVA, smaller still."""
    from selfloop.testbeds.tiny_vlm import build

    return build(folder, width=64, layers=2)


def gemma3(folder: Path) -> Path:
    """Sliding windows of 8 tokens in every other layer; pictures attend to themselves both ways."""
    tokenizer = byte_tokenizer(image_token="<image_soft_token>", boi_token="<start_of_image>",
                               eoi_token="<end_of_image>")
    ids = tokenizer.convert_tokens_to_ids
    processor = tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}), tokenizer,
        image_seq_length=4, chat_template=CHATML.replace("IMAGE", "'<start_of_image>'"))
    config = tf.Gemma3Config(
        text_config=tf.Gemma3TextConfig(
            **text_sizes(tokenizer, head_dim=8, sliding_window=8,
                         layer_types=["sliding_attention", "full_attention"])),
        vision_config=tf.SiglipVisionConfig(**vision_sizes(32, 8)), mm_tokens_per_image=4,
        image_token_id=ids("<image_soft_token>"), boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"))
    return _written(folder, tf.Gemma3ForConditionalGeneration, config, processor)


def idefics3(folder: Path) -> Path:
    """Pixels come as [B, pictures, ...] and rows of tiles stand between special tokens."""
    tiles = [f"<row_{r}_col_{c}>" for r in range(1, 3) for c in range(1, 3)]
    tokenizer = byte_tokenizer("<image>", "<fake_token_around_image>", "<global-img>",
                               "<end_of_utterance>", *tiles)
    processor = tf.Idefics3Processor(
        tf.Idefics3ImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        tokenizer, image_seq_len=4, chat_template=CHATML.replace("IMAGE", "'<image>'"))
    config = tf.Idefics3Config(
        text_config=tf.LlamaConfig(**text_sizes(tokenizer)), scale_factor=2,
        vision_config=vision_sizes(32, 8), pad_token_id=tokenizer.pad_token_id,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    return _written(folder, tf.Idefics3ForConditionalGeneration, config, processor)


FAMILIES = {"llava": llava, "gemma3": gemma3, "idefics3": idefics3}


def _written(folder: Path, kind: type, config: object, processor: object) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        for name, parameter in model.named_parameters():
            if not parameter.any() and "projection" in name:  # Gemma 3 starts blind
                torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def open_picture(medium: Media) -> Image.Image:
    """Pixels made from the hash, so that no file is needed."""
    seed = int(medium.sha256[:8], 16)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8))


def picture(number: int) -> Media:
    return Media(sha256=hashlib.sha256(str(number).encode()).hexdigest())


def asked(number: int, text: str = "how many?", pictures: int = 1) -> Context:
    """A question about picture `number` (and the ones after it)."""
    media = tuple(picture(number + i) for i in range(pictures))
    content = (*(Part(type="image") for _ in media), Part(text=text))
    return Context(prompt=(Message(role="user", content=content),), media=media)
