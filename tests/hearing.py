"""A tiny Gemma 4 that hears, and what anything that hears must do."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from families import FAMILIES
from families.making import VOCAB, awaken
from hf_models import CHATML
from selfloop.data import load
from selfloop.engines.hf import HFEngine
from selfloop.optimize.losses.sft import SFT
from selfloop.pictures import Library
from selfloop.roles import Request, Sampling
from selfloop.types import Branch, Context, Demonstration, Sample

RATE = 16_000
GEMMA = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
         "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}


def tone(seconds: float = 0.5, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def wav(samples: np.ndarray, rate: int = RATE, width: int = 2) -> bytes:
    """Samples [T] or [T, channels] in [-1, 1] as a WAV file of 8 or 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        out.setsampwidth(width)
        out.setframerate(rate)
        scaled = np.rint(samples * 127 + 128).astype("u1") if width == 1 else \
            np.rint(samples * 32767).astype("<i2")
        out.writeframes(scaled.tobytes())
    return file.getvalue()


def make_sounds(folder: Path) -> Path:
    """Two tones and a picture."""
    from PIL import Image

    for name, hertz in (("low", 220), ("high", 1760)):
        (folder / f"{name}.wav").write_bytes(wav(tone(hertz=hertz)))
    Image.new("RGB", (16, 16), (200, 0, 0)).save(folder / "red.png")
    return folder


def rows(folder: Path, *given: dict[str, Any]) -> list[Sample]:
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in given))
    return load(folder / "data.jsonl")


def asked(folder: Path, *names: str, picture: bool = False) -> list[Context]:
    return [s.context for s in rows(folder, *({
        "audio": f"{name}.wav", "prompt": "what is it?",
        **({"images": ["red.png"]} if picture else {})} for name in names))]


def save_gemma(processor: Any, place: Path) -> None:
    """A folder with this processor and a tiny random model with an audio tower to go with it."""
    tokenizer = processor.tokenizer
    processor.chat_template = CHATML.replace(
        "{%- if part['type'] == 'image' -%}{{ IMAGE }}",
        "{%- if part['type'] == 'image' -%}{{ '<|image|>' }}"
        "{%- elif part['type'] == 'audio' -%}{{ '<|audio|>' }}")
    config = FAMILIES["gemma4"](torch.float32).model.config.to_dict()
    number = tokenizer.convert_tokens_to_ids
    config |= {f"{n}_token_id": number(GEMMA[f"{n}_token"]) for n in ("image", "boi", "eoi",
                                                                      "audio", "boa")}
    config |= {"eoa_token_index": number("<audio|>"), "video_token_id": number("<|video|>"),
               "audio_config": tf.Gemma4AudioConfig(
                   hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                   subsampling_conv_channels=[128, 4], output_proj_dims=32,
                   conv_kernel_size=3).to_dict()}
    words = len(tokenizer) + 5
    config["text_config"] |= {k: words for k, v in config["text_config"].items()
                              if k.startswith("vocab_size") and v == VOCAB}
    config["text_config"] |= {"max_position_embeddings": 2048, **{
        f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("pad", "bos", "eos")}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.Gemma4ForConditionalGeneration(tf.Gemma4Config.from_dict(config))
        awaken(model)
    model.save_pretrained(place)
    processor.save_pretrained(place)


def hears(engine: HFEngine, folder: Path, picture: bool) -> None:
    """What is heard decides what is said, and it is the processor's own features that are read."""
    engine.bind(Library().open)
    low, high = asked(folder, "low", "high", picture=picture)
    branches = [Branch(context=c, text="a") for c in (low, high, low.without_media())]
    first, second, deaf = (lp[0] for lp in engine.logprobs(branches))
    assert len({round(x, 6) for x in (first, second, deaf)}) == 3
    assert engine.logprobs(branches[:1])[0][0] == pytest.approx(first, abs=1e-5)
    (ids, media) = engine.prompts.render(low)
    inputs = engine.prompts.inputs([(ids, media)])
    assert inputs["input_features"].shape[0] == 1
    with torch.no_grad():
        logits = engine.model(**inputs).logits[0, -1].masked_fill(engine.banned_V, -torch.inf)
    token = engine.prompts.chat.encode("a")[0]
    assert torch.log_softmax(logits.float(), -1)[token] == pytest.approx(
        engine.logprobs(branches[:1])[0][0], abs=1e-4)


def draws_and_learns(engine: HFEngine, folder: Path) -> None:
    """Answers to sounds, never a placeholder in them; the tower that heard gets gradients."""
    engine.bind(Library().open)
    low, high = asked(folder, "low", "high")
    engine.publish(0, 0)
    drawn = engine.generate([Request(context=c, key=c.identity, n=2, sampling=Sampling(
        max_new_tokens=3)) for c in (low, high)], 0)
    assert [len(turns) for turns in drawn] == [2, 2]
    audio = engine.processor.tokenizer.convert_tokens_to_ids("<|audio|>")
    assert all(audio not in t.token_ids and audio in t.prompt_token_ids
               for turns in drawn for t in turns)
    engine.forward_backward([Demonstration(branches={
        "target": Branch(context=low, turns=(drawn[0][0],))})], SFT(), {})
    towers = [p.grad for n, p in engine.model.named_parameters() if "audio_tower" in n]
    assert any(g is not None and g.abs().sum() > 0 for g in towers)
    engine.model.zero_grad(set_to_none=True)


def takes_long_sounds_whole(engine: HFEngine, folder: Path) -> None:
    """25 tokens a second, beyond the 30 seconds at which extractors cut by themselves too."""
    engine.bind(Library().open)
    (folder / "long.wav").write_bytes(wav(tone(31.0)))
    (short, long) = asked(folder, "low", "long")
    audio = engine.processor.tokenizer.convert_tokens_to_ids("<|audio|>")
    heard = [engine.prompts.render(c)[0].count(audio) for c in (short, long)]
    assert heard[0] == pytest.approx(0.5 * 25, abs=2)
    assert heard[1] == pytest.approx(31.0 * 25, abs=2)
