"""Sounds: read whole, placed in rows, opened again, and heard by a model that takes them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import transformers as tf

from hearing import (
    GEMMA,
    RATE,
    asked,
    draws_and_learns,
    hears,
    make_sounds,
    rows,
    save_gemma,
    takes_long_sounds_whole,
    tone,
    wav,
)
from hf_models import byte_tokenizer
from selfloop import sound
from selfloop.collect.negatives import worse_media
from selfloop.data import load, save
from selfloop.engines.hf import HFEngine
from selfloop.pictures import Library
from selfloop.roles import Request, Sampling, SelfloopError

av = pytest.importorskip("av")


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
    return make_sounds(tmp_path)


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

@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A tiny random Gemma 4 with its audio tower, and its processor but for the part that reads
    video, which needs torchvision (with it: tests/processors/test_with_torchvision.py)."""
    from transformers.models.gemma4 import image_processing_pil_gemma4 as pil

    patch = pytest.MonkeyPatch()
    kind, parent = tf.Gemma4Processor, tf.processing_utils.ProcessorMixin
    whole, inner = kind.__init__, parent.__init__
    patch.setattr(kind, "get_attributes", classmethod(
        lambda cls: ["feature_extractor", "image_processor", "tokenizer"]))
    patch.setattr(kind, "__init__", lambda self, a, b, c, **k: whole(self, a, b, c, None, **k))
    patch.setattr(parent, "__init__",
                  lambda self, *a, video_processor=None, **k: inner(self, *a, **k))
    place = tmp_path_factory.mktemp("gemma4")
    save_gemma(kind(tf.Gemma4AudioFeatureExtractor(), pil.Gemma4ImageProcessorPil(
        patch_size=4, pooling_kernel_size=2, max_soft_tokens=70), byte_tokenizer(**GEMMA)), place)
    yield HFEngine(place, threads=1)
    patch.undo()


@pytest.mark.parametrize("picture", [False, True])
def test_the_model_hears_the_sound(gemma, folder, picture):
    hears(gemma, folder, picture)


def test_it_draws_and_learns_from_what_it_hears(gemma, folder):
    draws_and_learns(gemma, folder)


def test_a_long_sound_is_not_cut(gemma, folder):
    takes_long_sounds_whole(gemma, folder)


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
