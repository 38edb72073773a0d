"""Videos as timed frames: read, placed, opened again, spoilt, learned from; and what refuses."""

from __future__ import annotations

import io
import json
import random
import sys

import numpy as np
import pytest
from PIL import Image

from scripted import collect
from selfloop import sound, video
from selfloop.collect.describing import Describe
from selfloop.collect.negatives import Negatives
from selfloop.collect.propose import Propose
from selfloop.collect.related import RelatedQuestions
from selfloop.data import load, save
from selfloop.doors import Doors
from selfloop.organize.judging import judge
from selfloop.organize.refine.annotate import WithDescription
from selfloop.organize.refine.own_questions import proposed_samples
from selfloop.organize.verify.judges import PointwiseJudge
from selfloop.organize.verify.vote import MajorityVote
from selfloop.pictures import Library
from selfloop.roles import SelfloopError
from selfloop.types import Group, Media

av = pytest.importorskip("av")

CONTAINERS = {"mp4": "libx264", "mov": "mpeg4", "webm": "libvpx-vp9", "matroska": "libx264",
              "avi": "mpeg4", "mpegts": "mpeg2video", "mpeg": "mpeg2video"}


def clip(form: str = "mp4", n: int = 30, fps: int = 10, grey=lambda i: i * 8) -> bytes:
    """n frames of one grey each (or of an array of pixels), in a container's usual codec."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as box:
        stream = box.add_stream(CONTAINERS[form], rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(n):
            pixels = np.full((48, 64, 3), grey(i) % 256, np.uint8)
            box.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        box.mux(stream.encode())
    return file.getvalue()


def animation(form: str = "GIF", n: int = 5, duration: int | None = 200) -> bytes:
    frames = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(n)]
    file = io.BytesIO()
    more = {} if duration is None else {"duration": duration}
    frames[0].save(file, form, save_all=True, append_images=frames[1:], lossless=True, **more)
    return file.getvalue()


def grey_of(picture: Image.Image) -> int:
    return picture.getpixel((30, 20))[0]


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", CONTAINERS)
def test_every_frame_has_its_time_and_is_found_again(form):
    data = clip(form)
    times = video.times(data, "clip", frames=100, pixels=10**6)
    assert times == pytest.approx([i / 10 for i in range(30)], abs=2e-3)
    for index in (0, 1, 13, 29, 7):  # in no order: B-frames are shown otherwise than they are kept
        assert abs(grey_of(video.frame(data, "clip", index)) - 8 * index) <= 3


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_are_videos_too(form):
    assert video.times(animation(form), "clip", frames=9, pixels=10**6) == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8])
    assert video.times(animation("GIF", duration=None), "c", frames=9, pixels=10**6) == [None] * 5


def test_frames_at_even_distances():
    assert video.spread(5, 8) == [0, 1, 2, 3, 4]
    assert video.spread(8, 8) == list(range(8))
    assert video.spread(30, 3) == [5, 15, 25]
    assert video.spread(100, 1) == [50]
    for count in range(9, 60):
        chosen = video.spread(count, 8)
        gaps = np.diff([-(count - chosen[-1]), *chosen])  # as on a circle: every stretch is alike
        assert len(set(chosen)) == 8 and gaps.max() - gaps.min() <= 1


def test_pictures_are_no_videos():
    assert video.container(b"GIF89a" + b"G" * 400) is None
    assert video.container(b"\0\0\0\x1cftypavif" + bytes(99)) is None
    for form in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"):
        file = io.BytesIO()
        Image.new("RGB", (9, 9)).save(file, form)
        assert video.container(file.getvalue()) is None and sound.form(file.getvalue()) is None


def test_what_cannot_be_read_is_said(monkeypatch):
    whole = clip("webm")
    with pytest.raises(SelfloopError, match=r"x\.webm: cut off \(.* of 3\.0 seconds"):
        video.times(whole[:len(whole) // 2], "x.webm", frames=100, pixels=10**6)
    with pytest.raises(SelfloopError, match="broken or cut off"):
        video.times(clip("mp4")[:900], "x.mp4", frames=100, pixels=10**6)
    with pytest.raises(SelfloopError, match="more than 12 frames"):
        video.times(whole, "x", frames=12, pixels=10**6)
    with pytest.raises(SelfloopError, match=r"64 x 48 = 3,072 pixels a frame .* limit of 3,000"):
        video.times(whole, "x", frames=100, pixels=3000)
    with pytest.raises(SelfloopError, match="no frame 30; it has 30"):
        video.frame(whole, "x", 30)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SelfloopError, match=r"pip install 'selfloop\[video\]'"):
        video.times(whole, "x", frames=100, pixels=10**6)


@pytest.mark.parametrize("data", [
    b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
    b"ffconcat version 1.0\nfile /etc/passwd\n",
    b"<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>"])
def test_a_playlist_is_never_followed(data, tmp_path, monkeypatch):
    monkeypatch.setattr(av, "open", lambda *a, **k: pytest.fail("FFmpeg was let near it"))
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    with pytest.raises(SelfloopError, match=r"clip\.mp4"):
        load([{"video": str(path), "question": "what?"}])


def test_damaged_files_are_refused_and_nothing_else():
    """Bytes changed and ends cut off: a frame, a sound, or one line; never another exception."""
    from test_sound import coded, tone, wav

    rng = random.Random("damage")
    whole = [*map(clip, ("mp4", "webm", "avi", "mpegts")), wav(tone()),
             coded(tone(), "flac", "flac"), coded(tone(), "mp3", "libmp3lame")]
    refused = 0
    for _ in range(700):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.choice((1, 3, 10, 50))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        broken = bytes(data[:rng.randrange(len(data))] if rng.random() < 0.3 else data)
        try:
            if video.container(broken):
                times = video.times(broken, "x", frames=100, pixels=10**6)
                assert video.frame(broken, "x", rng.randrange(len(times))).mode == "RGB"
            else:
                assert len(sound.decode(broken, "x", seconds=9).samples)
        except SelfloopError as error:
            refused += "\n" not in str(error)
    assert 100 < refused < 600


# -- rows -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clip())
    (tmp_path / "walk.gif").write_bytes(animation())
    for i in range(3):
        Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def rows(folder, *given, **how):
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in given))
    return load(folder / "data.jsonl", **how)


def parts(sample) -> list[str]:
    return [p.text if p.type == "text" else p.type for m in sample.prompt for p in m.content]


def test_a_video_becomes_timed_frames(folder):
    found = rows(folder, {"video": "clip.mp4", "question": "what is first?", "answer": "x"},
                 frames=3)
    assert parts(found[0]) == ["<0.5 seconds>", "image", "<1.5 seconds>", "image",
                               "<2.5 seconds>", "image", "what is first?"]
    assert [abs(grey_of(Library().open(m)) - g) <= 3 for m, g in zip(
        found[0].media, (40, 120, 200), strict=True)] == [True] * 3
    assert len({m.sha256 for m in found[0].media}) == 1
    assert len({m.identity for m in found[0].media}) == 3
    assert [m.meta["frame"] for m in found[0].media] == [5, 15, 25]
    assert found.notes == ("videos are shown by 3 frames at even distances; frames= is how many "
                           "(1 rows)",)
    assert not rows(folder, {"video": "walk.gif", "question": "?"}).notes  # all five are shown


@pytest.mark.parametrize("row", [
    {"videos": ["walk.gif"], "prompt": "before\n<video>\nafter"},
    {"video": ["walk.gif"], "prompt": "before\n<video>\nafter"},
    {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "before"}, {"type": "video", "video": "walk.gif"},
        {"type": "text", "text": "after"}]}]},
    {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "before"}, {"type": "video"},
        {"type": "text", "text": "after"}]}], "videos": ["walk.gif"]},
    {"conversations": [{"from": "human", "value": "before<video>after"}],
     "video": "walk.gif"},
])
def test_the_shapes_that_peers_use(folder, row):
    (sample,) = rows(folder, row, frames=2)
    assert parts(sample) == ["before", "<0.2 seconds>", "image", "<0.6 seconds>", "image", "after"]


@pytest.mark.parametrize(("row", "times"), [
    ({"video": ["0.png", "1.png", "2.png"], "fps": 2}, ["<0.0 seconds>", "<0.5 seconds>",
                                                         "<1.0 seconds>"]),
    ({"videos": [["0.png", "1.png", "2.png"]], "fps": [4.0]}, ["<0.0 seconds>", "<0.2 seconds>",
                                                                "<0.5 seconds>"]),
    ({"video": ["0.png", "1.png", "2.png"]}, []),  # an unknown time is not written
])
def test_a_list_of_frames(folder, row, times):
    (sample,) = rows(folder, {**row, "question": "and now?"}, frames=2)
    assert [p for p in parts(sample) if p.endswith("seconds>")] == times
    assert len(sample.media) == 3, "frames that a row lists are all shown"
    assert "fps" not in sample.meta or not times


def test_pictures_and_videos_in_one_row(folder):
    (sample,) = rows(folder, {"images": ["0.png"], "videos": ["walk.gif", "clip.mp4"],
                              "prompt": "<video> <image> <video>?"}, frames=1)
    assert parts(sample) == ["<0.4 seconds>", "image", " ", "image", " ", "<1.5 seconds>", "image",
                             "?"]
    assert sample.media[1].meta["uri"].endswith("0.png")


@pytest.mark.parametrize(("row", "what"), [
    ({"videos": ["walk.gif"], "prompt": "<video><video>"},
     "field 'videos': 2 <video> markers .* 1 videos"),
    ({"video": "gone.mp4", "prompt": "?"}, "field 'video': .*gone.mp4: no such file"),
    ({"images": ["clip.mp4"], "prompt": "?"},
     "field 'images': .*clip.mp4: a video where a picture"),
    ({"image": "gone.png", "prompt": "?"}, "field 'image': .*gone.png: no such picture"),
    ({"video": [], "prompt": "<video>?"}, "field 'videos': 1 <video> markers .* 0 videos"),
    ({"video": "http://there/a.mp4", "prompt": "?"}, "never fetches"),
    ({"video": ["0.png"] * 65, "prompt": "?"}, "a video of 65 pictures; expected 1 to 64"),
    ({"video": 7, "prompt": "?"}, "field 'video': a video given as int"),
])
def test_bad_rows_are_named(folder, row, what):
    with pytest.raises(SelfloopError, match=what):
        rows(folder, row)


def test_a_file_is_looked_at_once_and_bytes_are_kept(folder, monkeypatch):
    row = {"video": "clip.mp4", "question": "?"}
    (first,) = rows(folder, row, frames=2)
    looked = video.times
    monkeypatch.setattr(video, "times", lambda *a, **k: pytest.fail("looked at again"))
    (again,) = rows(folder, row, frames=2)
    assert again == first
    monkeypatch.setattr(video, "times", looked)
    assert len(rows(folder, row, frames=4)[0].media) == 4
    (given,) = load([{"video": {"bytes": clip(), "path": None}, "question": "?"}], frames=2,
                    images=folder / "kept")
    assert [m.sha256 for m in given.media] == [m.sha256 for m in first.media]
    assert [p.suffix for p in (folder / "kept").iterdir()] == [".mp4"]
    assert grey_of(Library(folder / "kept").open(given.media[1])) == grey_of(
        Library().open(first.media[1]))


def test_saved_and_loaded_again(folder):
    found = rows(folder, {"video": "clip.mp4", "question": "?", "answer": "x"}, frames=2)
    for name in ("again.jsonl", "again.parquet"):
        assert load(save(found, folder / name))[0].media == found[0].media


# -- frames are pictures --------------------------------------------------------------------------


def test_frames_are_spoilt_like_pictures_and_stay_themselves(folder):
    from selfloop.organize.signals import clean
    from selfloop.organize.verify.similarity import open_one

    (sample,) = rows(folder, {"video": "clip.mp4", "question": "?"}, frames=2)
    last = sample.media[1]
    assert not last.changed and last.plain is last
    blurred = last.with_op("blank")
    assert blurred.changed and blurred.plain == last
    context = sample.context.seen_as((sample.media[0], blurred))
    assert clean(context).media == sample.media
    one = sample.model_copy(update={"media": (blurred, sample.media[0])})
    assert grey_of(open_one(one, "")) == grey_of(Library().open(last))


def test_shuffled_frames_are_a_negative(folder):
    from scripted import collect

    (sample,) = rows(folder, {"video": "clip.mp4", "question": "which way?", "answer": "up"})
    drawn, engine = collect(Negatives(causes=("shuffle",), severity=1.0, n=1),
                            lambda *_: "up", sample)
    assert [r.sampling.get("negative") for r in drawn] == [None, "shuffle"]
    wrong = engine.asked[1]
    seen = [m.identity for m in wrong.context.media]
    assert seen != [m.identity for m in sample.media]
    assert sorted(seen) == sorted(m.identity for m in sample.media)


def test_a_seed_model_answers_about_a_video_and_learns(folder, tmp_path):
    from selfloop.config import SEED
    from selfloop.engines.hf import HFEngine
    from selfloop.organize.verify.rules import exact
    from selfloop.recipes.supervised import supervised
    from selfloop.running import run
    from selfloop.store import RunFolder

    found = rows(folder, *(
        {"video": name, "question": "which digit is largest ?", "answer": str(i)}
        for i, name in enumerate(("clip.mp4", "walk.gif"))), frames=2)
    run(supervised(exact, labels="answer", views=0, iterations=1, updates=1,
                   batch=2, lr=1e-3, max_new_tokens=4), found, HFEngine(SEED, threads=1),
        tmp_path / "run", dev=found)
    signals = RunFolder(tmp_path / "run").signals(0, "solver")
    assert {len(b.context.media) for s in signals for b in s.branches.values()} == {2}


def test_from_videos_to_a_checked_run(folder, capsys):
    """`selfloop init` and `selfloop check`: frames of one video stay in one split."""
    from selfloop.cli import main

    for i in range(24):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 8, 3))
        looks = np.kron(coarse, np.ones((8, 8, 1), int))
        (folder / f"{i}.mp4").write_bytes(clip(n=6, grey=lambda j, looks=looks: looks))
    (folder / "labels.jsonl").write_text("".join(json.dumps(
        {"video": str(folder / f"{i}.mp4"), "question": f"{what} ?", "answer": answer}) + "\n"
        for i in range(24) for what, answer in (("which way", "up"), ("how far", str(i % 2)))))
    with pytest.raises(SystemExit) as ended:
        main(["init", str(folder / "labels.jsonl"), "--frames", "3", "--out", str(folder / "out")])
    assert not ended.value.code, capsys.readouterr()
    where: dict[str, set[str]] = {}
    for split in ("train", "dev", "test"):
        for sample in load(folder / "out" / "data" / f"{split}.jsonl"):
            assert len(sample.media) == 3 and "<0.1 seconds>" in parts(sample)
            where.setdefault(sample.media[0].sha256, set()).add(split)
    assert len(where) == 24 and all(len(splits) == 1 for splits in where.values())
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["check", str(folder / "out" / "run.yaml")])
    assert not ended.value.code, capsys.readouterr()


def test_a_run_says_that_frames_were_left_out(folder):
    from clidata import with_splits
    from selfloop.config import load_config, load_data

    path = with_splits(folder)
    (folder / "train" / "train.jsonl").write_text(json.dumps(
        {"video": str(folder / "clip.mp4"), "question": "?", "answer": "x"}))
    notes = load_data(load_config(path, ["data.frames=4"])).notes
    assert any("shown by 4 frames at even distances" in note for note in notes)


# -- prompts made anew for the same frames --------------------------------------------------------


def said_by(message) -> list[str]:
    return [part.text or part.type for part in message.content]


@pytest.mark.parametrize(("row", "times"), [
    ({"video": "walk.gif"}, ["<0.2 seconds>", "<0.6 seconds>"]),
    ({"video": ["0.png", "1.png"], "fps": 2}, ["<0.0 seconds>", "<0.5 seconds>"]),
    ({"video": ["0.png", "1.png"]}, []),
    ({"images": ["0.png", "1.png"]}, []),
])
def test_frames_keep_their_times_in_every_prompt_made_of_them(folder, row, times):
    """Propose, its checks, its answers, the next step's problem, descriptions, related questions
    and a judge: the times stand before the frames, and the question's own words nowhere."""
    (sample,) = rows(folder, {**row, "question": "what comes first?"}, frames=2)
    shown = [word for time in times for word in (time, "image")] or ["image", "image"]
    assert said_by(sample.prompt[0])[:-1] == shown

    def says(request, index):
        text = request.context.text
        return "yes" if "Can this" in text else "<question>Who moves?</question>" \
            if "Ask one" in text else "6"

    rollouts, engine = collect(Propose(n=1, answers=1, checks=1), says, sample)
    collect(Describe(), engine, sample)
    collect(RelatedQuestions(views=1), engine, sample.model_copy(
        update={"meta": {"related": ["who waits?"]}}))
    group = Group(sample=sample, rollouts=tuple(rollouts))
    doors = Doors({"solver": engine}, 0, "s")
    judge(PointwiseJudge(role="solver"), [Group(sample=sample, rollouts=group.rollouts[:1])], doors)
    judge(WithDescription(MajorityVote()), [group], doors)
    (new,) = proposed_samples([group])
    assert len(engine.asked) > 8
    for context in (*(r.context for r in engine.asked), new.context):
        assert said_by(context.prompt[0])[:len(shown)] == shown
        assert ("first" in context.text) == (context.prompt == sample.prompt) or \
            "begin" in context.text, "only a judge quotes the question"
    spoilt = sample.media[0].with_op("blur", 0.5, "k")
    assert spoilt.mark == sample.media[0].mark
    blind = sample.context.without_media()
    assert (blind.text, blind.media) == ("what comes first?", ()), "times go with their frames"


def test_a_sound_s_length_is_no_time():
    assert Media(kind="audio", sha256="0" * 64, meta={"seconds": 1.5}).mark == ""
    assert Media(sha256="0" * 64, meta={"seconds": 1.25}).mark == "<1.2 seconds>"
