"""Which tokens may never be sampled: placeholders that stand for pixels or frames, pad, bos.

A sampled placeholder would enter the next prompt without a picture behind it, and the model then
either fails or silently reads another picture's features. They are found by what the model's
config, the processor and the tokenizer call them, not by a list of model families.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from selfloop.roles import SelfloopError

_MODALITY = re.compile(
    r"image|img|video|audio|vision|visual|frame|pixel|(^|_)(bo|eo)[iva](_|$)", re.IGNORECASE)
"""Words for what a processor expands; boi/eoi and kin are the field's names for begin/end."""
_IDS = re.compile(r"_token_(id|index|ids|indices)$")
_NOT_EXPANDED = re.compile(r"box|object|think|tool|point|quad|(?<!p)ref", re.IGNORECASE)
"""What an assistant writes *about* pictures stays allowed (grounding, tools, thinking)."""
_ASKED_WITH = re.compile(r"(?<![a-z])(loc|det|seg|coord)(?![a-z])|ground", re.IGNORECASE)
"""What questions are documented to be asked with: "<loc_155>" of SmolDocling, "<|grounding|>" and
"<|det|>" of DeepSeek-OCR. None of them ends a turn or stands for a picture."""


_SHAPING = (
    "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "begin_suppress_tokens", "sequence_bias",
    "min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "guidance_scale", "watermarking_config", "stop_strings",
    "token_healing", "force_words_ids", "constraints")
_NOTHING: dict[str, tuple[Any, ...]] = {
    name: (None, False, 0, [], 1 if "penalty" in name or name == "guidance_scale" else 0)
    for name in _SHAPING}
"""Values of each that change nothing."""


def suppressed(model_config: Any, processor: Any, vocab_size: int, generation_config: Any = None
               ) -> dict[int, str]:
    """Token id -> why it may never be sampled; `set(...)` of it is what the sampler masks.

    `vocab_size` is the width of the logits: rows beyond the tokenizer's length are padding of the
    matrix and have no text. End-of-turn tokens are always allowed, also where pad equals eos.
    """
    tokenizer = processor.tokenizer
    reasons: dict[int, str] = {}
    for token, why in (*_configured(model_config.to_dict(), "config"),
                       *_of_processor(processor), *_of_tokenizer(tokenizer), *_expanded(processor)):
        if 0 <= token < vocab_size:
            reasons.setdefault(token, why)
    for name in ("pad", "bos"):
        marker = getattr(tokenizer, f"{name}_token_id", None)
        if marker is not None:
            reasons.setdefault(int(marker), name)
    for token in getattr(generation_config, "suppress_tokens", None) or ():
        if isinstance(token, int) and 0 <= token < vocab_size:  # -1 is written for "none"
            reasons.setdefault(token, "generation_config.suppress_tokens")
    # Not from len(tokenizer) on: ids may have gaps.
    for token in set(range(vocab_size)) - set(tokenizer.get_vocab().values()):
        reasons.setdefault(token, "beyond the tokenizer's vocabulary")
    for token in ends(tokenizer, generation_config):
        if reasons.pop(token, "").startswith("placeholder"):
            raise SelfloopError(
                f"token {token} ({tokenizer.convert_ids_to_tokens(token)}) ends an answer by "
                "eos_token_id, and stands for a picture: take it out of the list in "
                "generation_config.json")
    return reasons


def not_followed(generation_config: Any) -> list[str]:
    """Settings of generation_config.json that `generate` lets shape an answer and the sampler does
    not: what it draws is the model's own distribution, which is trained. "name=value" each."""
    found = {name: getattr(generation_config, name, None) for name in _SHAPING}
    return [f"{name}={value}" for name, value in found.items() if value not in _NOTHING[name]]


def controls(tokenizer: Any) -> frozenset[str]:
    """Special tokens, as text, that a prompt's own words may not spell: ends and starts of turns,
    bos, pad, placeholders; not what is written *about* pictures (boxes, places, tools)."""
    return frozenset(
        added.content for added in getattr(tokenizer, "added_tokens_decoder", {}).values()
        if added.special and len(added.content) > 1
        and not _NOT_EXPANDED.search(added.content) and not _ASKED_WITH.search(added.content))


def placeholders(reasons: Mapping[int, str]) -> frozenset[int]:
    """Those of `suppressed` that stand for (parts of) pictures, videos or sounds."""
    return frozenset(t for t, why in reasons.items() if why.startswith("placeholder"))


def ends(tokenizer: Any, generation_config: Any = None) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's eos and all of the generation config's."""
    found = {tokenizer.eos_token_id}
    given = getattr(generation_config, "eos_token_id", None)
    found |= set(given) if isinstance(given, list | tuple) else {given}
    return frozenset(int(t) for t in found if t is not None)


def _configured(config: Mapping[str, Any], where: str) -> Iterator[tuple[int, str]]:
    """`image_token_id`, `vision_start_token_id`, `boi_token_index` ... at any depth."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _configured(value, f"{where}.{name}")
        elif isinstance(name, str) and _IDS.search(name) and _MODALITY.search(name):
            values = value if isinstance(value, list | tuple) else (value,)
            yield from ((v, f"placeholder: {where}.{name}") for v in values
                        if isinstance(v, int) and not isinstance(v, bool))


def _of_processor(processor: Any) -> Iterator[tuple[int, str]]:
    """Attributes such as `image_token` (text) and `image_token_id` (number)."""
    for name, value in sorted(vars(processor).items()):
        if not _MODALITY.search(name):
            continue
        if _IDS.search(name):
            values = value if isinstance(value, list | tuple) else (value,)
            yield from ((v, f"placeholder: processor.{name}") for v in values
                        if isinstance(v, int) and not isinstance(v, bool))
        elif name.endswith("_token"):
            yield from _named(processor.tokenizer, str(value), f"processor.{name}")


def _of_tokenizer(tokenizer: Any) -> Iterator[tuple[int, str]]:
    """Special tokens by the name they are given, and by their own text."""
    named = {**getattr(tokenizer, "special_tokens_map", {}),
             **(getattr(tokenizer, "_special_tokens_map", None) or {})}
    for name, value in named.items():
        if _MODALITY.search(name) and isinstance(value, str):
            yield from _named(tokenizer, value, f"tokenizer.{name}")
    for token, added in sorted(tokenizer.added_tokens_decoder.items()):
        text = added.content
        if added.special and _MODALITY.search(text) and not _NOT_EXPANDED.search(text):
            yield token, f"placeholder: special token {text}"


def _expanded(processor: Any) -> Iterator[tuple[int, str]]:
    """Special tokens that the processor itself adds around a blank picture, such as tile marks.

    Numbered ones ("<row_1_col_2>") stand for all tokens of the same form.
    """
    tokenizer = processor.tokenizer
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
    try:
        text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        ids = processor(text=[text], images=[[Image.new("RGB", (64, 48))]], padding=False,
                        truncation=False, add_special_tokens=False)["input_ids"][0]
    except Exception:  # a folder that cannot read a picture fails, in words, at its first prompt
        return
    special = {t: a.content for t, a in tokenizer.added_tokens_decoder.items() if a.special}
    written = set(tokenizer(text, add_special_tokens=False)["input_ids"])
    forms = {re.sub(r"\d+", "0", special[int(t)]) for t in ids
             if int(t) in special and int(t) not in written}
    for token, content in sorted(special.items()):
        if re.sub(r"\d+", "0", content) in forms:
            yield token, f"placeholder: the processor writes {content}"


def _named(tokenizer: Any, text: str, where: str) -> Iterator[tuple[int, str]]:
    token = tokenizer.get_vocab().get(text)
    if token is not None:
        yield int(token), f"placeholder: {where} {text}"
