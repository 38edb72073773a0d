"""A vision-language model small enough to learn on one CPU core, and ordinary in every other way.

`build` writes a `from_pretrained` folder: LLaVA shaped (CLIP vision tower, linear projector with
one hidden layer, Llama text model), about 1.3 million parameters, loaded by plain `transformers`
Auto classes without remote code. Nothing in it knows about any testbed but the word list.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SIDE = 32
"""Height and width in pixels that every picture is resized to."""
PATCH = 16
"""Height and width in pixels of one vision patch: SIDE // PATCH squared patches a picture."""

MEAN, SPREAD = 0.15, 0.25
"""Brightness (0 to 1) taken off and divided by: dark paper comes out near 0, ink up to 3.4."""

PAD, BOS, EOS, IMAGE, UNK = "<pad>", "<bos>", "<eos>", "<image>", "<unk>"
USER, ASSISTANT = "<user>", "<assistant>"
SPECIALS = (PAD, BOS, EOS, IMAGE, UNK, USER, ASSISTANT)

WORDS = [
    "a", "all", "and", "answer", "are", "as", "at", "biggest", "both", "by", "count", "digit",
    "digits", "does", "down", "each", "even", "first", "for", "from", "greatest", "highest",
    "how", "image", "in", "is", "it", "largest", "last", "least", "left", "list", "lowest",
    "many", "maximum", "minimum", "most", "no", "number", "numbers", "odd", "of", "on", "one",
    "or", "order", "out", "picture", "please", "read", "right", "see", "shown", "smallest",
    "sum", "text", "that", "the", "there", "these", "they", "this", "to", "total", "up", "us",
    "what", "which", "write", "yes", "you",
]
MARKS = tuple("=?.,:;!+-*/()[]'\"_#%")

# The template writes each message as <user> parts <eos> or <assistant> parts <eos>; a plain
# string is accepted for a list of parts because most callers write text-only turns so.
CHAT_TEMPLATE = (
    "{{ '<bos>' }}"
    "{%- for message in messages -%}"
    "{{ '<assistant>' if message['role'] == 'assistant' else '<user>' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<eos>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}"
)


def vocabulary(words: Sequence[str] = WORDS) -> list[str]:
    """Every token in id order: specials, then each digit, word and mark without and with the
    space before it, so that text made of known words is decoded back exactly."""
    pieces = [*"0123456789", *words, *MARKS]
    spaced = [f" {piece}" for piece in pieces]
    return [*SPECIALS, *pieces, *spaced, " ", "\n"]


def make_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Word-level, one token a digit ("10" is "1", "0"). Unknown words become <unk>."""
    ids = {token: i for i, token in enumerate(vocabulary(words))}
    core = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    pattern = Regex(r" ?[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]|\s")
    core.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens={"image_token": IMAGE, "user_token": USER, "bot_token": ASSISTANT},
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="left",
    )


def make_processor(words: Sequence[str] = WORDS) -> LlavaProcessor:
    """Any picture, any mode and size, becomes float32 (3, SIDE, SIDE)."""
    pictures = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[MEAN, MEAN, MEAN],
        image_std=[SPREAD, SPREAD, SPREAD],
    )
    return LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=pictures,
        tokenizer=make_tokenizer(words),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_config(tokenizer: PreTrainedTokenizerFast, *, width: int = 128, layers: int = 3
                ) -> LlavaConfig:
    """The shape of the model: `layers` in each tower, `width` channels, heads of 32 channels."""
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=width,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=vocabulary().index(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def make_generation_config(tokenizer: PreTrainedTokenizerFast, longest: int = 16
                           ) -> GenerationConfig:
    """Stops at <eos>; never writes another special token. Drawing <image> would otherwise put a
    placeholder without a picture into the next turn, and the others cannot be read as text."""
    never = [t for t in SPECIALS if t != EOS]
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=tokenizer.convert_tokens_to_ids(never),
        do_sample=False,
        max_new_tokens=longest,
    )


def spread_weights(model: LlavaForConditionalGeneration) -> None:
    """Draw the initial weights from torch's generator at 1 / sqrt(fan in).

    The libraries' 0.02 fits widths in the thousands; at 128 channels the pictures would hardly
    reach the answer, and the first several hundred updates would learn nothing from them.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "position_embedding" in name or "class_embedding" in name:
                weight.normal_(0.0, 0.3)
            elif "embed_tokens" in name:
                weight.normal_(0.0, 0.05)
            elif weight.ndim >= 2 and ("vision_tower" not in name or "patch" in name):
                weight.normal_(0.0, weight[0].numel() ** -0.5)


def build(folder: str | Path, *, seed: int = 0, width: int = 128, layers: int = 3,
          words: Sequence[str] = WORDS, longest: int = 16) -> Path:
    """Write an untrained model, processor and tokenizer to `folder` and return it.

    `words` is the vocabulary beside digits and marks, `longest` the default limit of an answer in
    tokens. The weights depend on `seed` and the sizes alone; the caller's torch generator is left
    as it was. Raises ValueError when `width` does not divide into heads of 32 channels.
    """
    if width % 32:
        raise ValueError(f"width must be a multiple of 32 (heads of 32 channels), not {width}")
    folder = Path(folder)
    processor = make_processor(words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = make_config(processor.tokenizer, width=width, layers=layers)
        model = LlavaForConditionalGeneration(config)
        spread_weights(model)
    model.generation_config = make_generation_config(processor.tokenizer, longest)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
