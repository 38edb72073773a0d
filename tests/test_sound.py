"""Sounds: read whole, placed in rows, opened again, and heard by a model that takes them."""

from __future__ import annotations

import io
import json
import wave

import numpy as np
import pytest
import torch
import transformers as tf

from families import FAMILIES
from families.making import VOCAB, awaken
from hf_models import CHATML, byte_tokenizer
from selfloop import sound
from selfloop.collect.negatives import worse_media
from selfloop.data import load, save
from selfloop.engines.hf import HFEngine
from selfloop.optimize.losses.sft import SFT
from selfloop.pictures import Library
from selfloop.roles import Request, Sampling, SelfloopError
from selfloop.types import Branch, Demonstration

av = pytest.importorskip("av")
RATE = 16_000


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


def coded(samples: np.ndarray, form: str, codec: str, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=form) as box:
        stream = box.add_stream(codec, rate=rate, layout="mono")
        whole = np.rint(samples * 32767).astype("<i2")
        step = stream.codec_context.frame_size or 1024
        to = av.AudioResampler(format=stream.format, layout=stream.layout, rate=rate)
        for at in range(0, len(whole), step):
            frame = av.AudioFrame.from_ndarray(whole[None, at:at + step], "s16", "mono")
            frame.rate, frame.pts = rate, at
            for one in to.resample(frame):
                box.mux(stream.encode(one))
        box.mux(stream.encode())
    return file.getvalue()


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2])
def test_a_wave_file_is_read_exactly(width):
    found = sound.decode(wav(tone(), width=width), "a", seconds=1)
    assert found.rate == RATE and found.seconds == 0.5
    assert np.abs(found.samples - tone()).max() < (0.01 if width == 1 else 1e-4)
    both = np.stack([tone(), np.zeros(8000)], axis=1)
    assert np.abs(sound.decode(wav(both), "a", seconds=1).samples - tone() / 2).max() < 1e-4


@pytest.mark.parametrize(("form", "codec"), [("flac", "flac"), ("ogg", "libopus"),
                                              ("mp3", "libmp3lame"), ("adts", "aac")])
def test_every_format_is_heard(form, codec):
    found = sound.decode(coded(tone(2.0), form, codec), "a", seconds=5).at(RATE)
    assert found.seconds == pytest.approx(2.0, abs=0.2)
    middle = found.samples[8000:24000]
    loudest = np.abs(np.fft.rfft(middle)).argmax()
    assert loudest == pytest.approx(440, abs=2) and middle.std() == pytest.approx(0.354, abs=0.03)


def test_another_rate_is_the_same_sound():
    fast = sound.decode(wav(tone(rate=44_100), 44_100), "a", seconds=1).at(RATE)
    assert fast.rate == RATE and len(fast.samples) == 8000
    assert np.abs(fast.samples[200:-200] - tone()[200:-200]).max() < 5e-3
    assert fast.at(RATE) is fast


def test_what_cannot_be_heard_is_said():
    with pytest.raises(SelfloopError, match=r"x\.wav: longer than the limit of 0\.2 seconds"):
        sound.decode(wav(tone()), "x.wav", seconds=0.2)
    with pytest.raises(SelfloopError, match="not a sound that can be read"):
        sound.decode(b"#EXTM3U\nhttp://there/a.mp3", "x", seconds=1)
    with pytest.raises(SelfloopError, match=r"has no samples|broken or cut off"):
        sound.decode(wav(tone())[:44], "x", seconds=1)
    from test_video import clip
    with pytest.raises(SelfloopError, match="it has no sound"):
        sound.decode(clip(), "x", seconds=1)


# -- rows -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    from PIL import Image

    for name, hertz in (("low", 220), ("high", 1760)):
        (tmp_path / f"{name}.wav").write_bytes(wav(tone(hertz=hertz)))
    Image.new("RGB", (16, 16), (200, 0, 0)).save(tmp_path / "red.png")
    return tmp_path


def rows(folder, *given):
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in given))
    return load(folder / "data.jsonl")


@pytest.mark.parametrize("row", [
    {"audio": "low.wav", "prompt": "what is it?"}, {"audios": ["low.wav"], "prompt": "what is it?"},
    {"audio": {"path": "low.wav"}, "prompt": "<audio>\nwhat is it?"},
    {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "low.wav"},
                                               {"type": "text", "text": "what is it?"}]}]},
])
def test_rows_with_sound(folder, row):
    (sample,) = rows(folder, row)
    assert [(p.type, p.text) for m in sample.prompt for p in m.content] == [
        ("audio", ""), ("text", "what is it?")]
    assert sample.media[0].kind == "audio" and sample.media[0].meta["seconds"] == 0.5
    assert np.abs(Library().open(sample.media[0]).samples - tone(hertz=220)).max() < 1e-4
    assert load(save([sample], folder / "again.jsonl"))[0].media == sample.media
    assert not sample.context.without_media().media


def test_bad_sounds_are_named(folder):
    (folder / "not.wav").write_text("no")
    with pytest.raises(SelfloopError, match=r"row 1, field 'audio': .*not\.wav: not a sound"):
        rows(folder, {"audio": "not.wav", "prompt": "?"})
    with pytest.raises(SelfloopError, match=r"field 'audios': 2 <audio> markers .* 1 sounds"):
        rows(folder, {"audios": ["low.wav"], "prompt": "<audio><audio>"})


def test_a_sound_keeps_its_place_among_spoilt_pictures(folder):
    row = {"images": ["red.png"], "audio": "low.wav", "prompt": "<audio><image>"}
    (sample,) = rows(folder, row)
    heard, seen = worse_media(sample.media, "blur", 1.0, "key")
    assert heard == sample.media[0] and seen.changed


# -- a model that hears ---------------------------------------------------------------------------

GEMMA = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
         "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A tiny random Gemma 4 with its audio tower, and its processor but for the part that reads
    video, which needs torchvision."""
    from transformers.models.gemma4 import image_processing_pil_gemma4 as pil

    patch = pytest.MonkeyPatch()
    kind, parent = tf.Gemma4Processor, tf.processing_utils.ProcessorMixin
    whole, inner = kind.__init__, parent.__init__
    patch.setattr(kind, "get_attributes", classmethod(
        lambda cls: ["feature_extractor", "image_processor", "tokenizer"]))
    patch.setattr(kind, "__init__", lambda self, a, b, c, **k: whole(self, a, b, c, None, **k))
    patch.setattr(parent, "__init__",
                  lambda self, *a, video_processor=None, **k: inner(self, *a, **k))
    tokenizer = byte_tokenizer(**GEMMA)
    processor = kind(tf.Gemma4AudioFeatureExtractor(), pil.Gemma4ImageProcessorPil(
        patch_size=4, pooling_kernel_size=2, max_soft_tokens=70), tokenizer)
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
    place = tmp_path_factory.mktemp("gemma4")
    model.save_pretrained(place)
    processor.save_pretrained(place)
    yield HFEngine(place, threads=1)
    patch.undo()


def asked(folder, *names, picture=False):
    return [s.context for s in rows(folder, *({
        "audio": f"{name}.wav", "prompt": "what is it?",
        **({"images": ["red.png"]} if picture else {})} for name in names))]


@pytest.mark.parametrize("picture", [False, True])
def test_the_model_hears_the_sound(gemma, folder, picture):
    gemma.bind(Library().open)
    low, high = asked(folder, "low", "high", picture=picture)
    branches = [Branch(context=c, text="a") for c in (low, high, low.without_media())]
    first, second, deaf = (lp[0] for lp in gemma.logprobs(branches))
    assert len({round(x, 6) for x in (first, second, deaf)}) == 3
    assert gemma.logprobs(branches[:1])[0][0] == pytest.approx(first, abs=1e-5)
    (ids, media) = gemma.prompts.render(low)
    inputs = gemma.prompts.inputs([(ids, media)])
    assert inputs["input_features"].shape[0] == 1
    with torch.no_grad():
        logits = gemma.model(**inputs).logits[0, -1].masked_fill(gemma.banned_V, -torch.inf)
    token = gemma.prompts.chat.encode("a")[0]
    assert torch.log_softmax(logits.float(), -1)[token] == pytest.approx(
        gemma.logprobs(branches[:1])[0][0], abs=1e-4)


def test_it_draws_and_learns_from_what_it_hears(gemma, folder):
    gemma.bind(Library().open)
    low, high = asked(folder, "low", "high")
    gemma.publish(0, 0)
    drawn = gemma.generate([Request(context=c, key=c.identity, n=2, sampling=Sampling(
        max_new_tokens=3)) for c in (low, high)], 0)
    assert [len(turns) for turns in drawn] == [2, 2]
    audio = gemma.processor.tokenizer.convert_tokens_to_ids("<|audio|>")
    assert all(audio not in t.token_ids and audio in t.prompt_token_ids
               for turns in drawn for t in turns)
    gemma.forward_backward([Demonstration(branches={
        "target": Branch(context=low, turns=(drawn[0][0],))})], SFT(), {})
    towers = [p.grad for n, p in gemma.model.named_parameters() if "audio_tower" in n]
    assert any(g is not None and g.abs().sum() > 0 for g in towers)
    gemma.model.zero_grad(set_to_none=True)


def test_a_long_sound_is_not_cut(gemma, folder):
    gemma.bind(Library().open)
    (folder / "long.wav").write_bytes(wav(tone(31.0)))
    (short, long) = asked(folder, "low", "long")
    audio = gemma.processor.tokenizer.convert_tokens_to_ids("<|audio|>")
    heard = [gemma.prompts.render(c)[0].count(audio) for c in (short, long)]
    assert heard[0] == pytest.approx(0.5 * 25, abs=2)
    assert heard[1] == pytest.approx(31.0 * 25, abs=2), "25 tokens a second, beyond 30 seconds too"


def test_the_doctor_tells_who_hears(gemma):
    from selfloop.doctor import diagnose

    assert any("it takes sound, 16,000 samples a second" in f.what
               for f in diagnose(str(gemma.loaded.folder)))


def test_who_takes_no_sound_says_so(folder):
    from selfloop.config import SEED

    (low,) = asked(folder, "low")
    engine = HFEngine(SEED, threads=1)
    engine.bind(Library().open)
    engine.publish(0, 0)
    with pytest.raises(SelfloopError, match="takes no sound"):
        engine.generate([Request(context=low, key="k", n=1,
                                 sampling=Sampling(max_new_tokens=1))], 0)


def test_a_server_is_sent_a_wave_file(folder):
    import base64

    from selfloop.engines.openai_messages import Pictures, messages, with_pictures

    (low,) = asked(folder, "low", picture=True)
    named = {"messages": messages(low, Pictures())}
    assert "sound:" + low.media[1].identity in json.dumps(named)
    sent = with_pictures(named, low.media, Pictures(), Library().open)
    kinds = {part["type"]: part for part in sent["messages"][0]["content"]}
    assert set(kinds) == {"image_url", "input_audio", "text"}
    data = base64.b64decode(kinds["input_audio"]["input_audio"]["data"])
    assert np.abs(sound.decode(data, "sent", seconds=1).samples - tone(hertz=220)).max() < 2e-4
