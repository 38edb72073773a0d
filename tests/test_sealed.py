"""The sealed test split, attacked from inside: names, links, copies, programs, leaked pictures."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import toyland
from selfloop.data import load, save
from selfloop.engines.toy import ToyEngine
from selfloop.evaluate import hiding
from selfloop.evaluate.sealed import Sealed, alike, seal
from selfloop.organize.verify.rules import exact
from selfloop.pictures import read
from selfloop.recipes.star import star
from selfloop.roles import SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder


@pytest.fixture
def test_file(tmp_path):
    path = tmp_path / "test.jsonl"
    save(toyland.samples(tmp_path / "pictures", 4), path)
    yield path
    hiding._hidden.clear()  # this process goes on to other tests


def linked(path):
    os.link(path, path.with_name("hard.jsonl"))
    return path.with_name("hard.jsonl")


def pointed(path):
    path.with_name("soft.jsonl").symlink_to(path)
    return path.with_name("soft.jsonl")


def copied(path):
    return Path(shutil.copyfile(path, path.with_name("copy.jsonl")))


def roundabout(path):
    return path.parent / "pictures" / ".." / path.name


@pytest.mark.parametrize("way", [lambda p: p, linked, pointed, copied, roundabout],
                         ids=["itself", "hard link", "symlink", "copy", "roundabout"])
@pytest.mark.parametrize("use", [
    lambda p: open(p).close(), lambda p: p.read_bytes(), lambda p: os.open(p, os.O_RDONLY),
    load, lambda p: os.link(p, p.with_name("another")), lambda p: os.rename(p, p.with_name("b")),
    lambda p: shutil.copyfile(p, p.with_name("c")), lambda p: p.unlink(),
    lambda p: subprocess.run(["cat", str(p)], check=True),
    lambda p: os.system(f"cat '{p}' > /dev/null"),
], ids=["open", "read", "os.open", "data.load", "link", "rename", "copyfile", "delete",
        "subprocess", "shell"])
def test_nothing_in_the_process_gets_at_it_while_a_run_is_under_way(test_file, way, use):
    before = test_file.read_bytes()
    name = way(test_file)  # made before the run, when nobody watched
    Sealed(test_file, load)
    with hiding.closed():
        with pytest.raises(SelfloopError, match="sealed while a run is under way"):
            use(name)
        with pytest.raises(SelfloopError, match="tried 1 times"):
            hiding.check()
        (test_file.parent / "other.txt").write_text("others may be read and written")
        assert (test_file.parent / "other.txt").read_text()
    assert test_file.read_bytes() == before and len(load(name)) == 4


def test_a_folder_may_be_hidden(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "q.txt").write_text("x")
    hiding.hide(tmp_path / "in")
    try:
        with hiding.closed(), pytest.raises(SelfloopError):
            (tmp_path / "in" / "deep" / "q.txt").read_text()
    finally:
        hiding._hidden.clear()


@dataclass(frozen=True)
class Peeking:
    """Tries to read the test questions at every answer, and keeps quiet about it."""

    path: str

    def __call__(self, rollout, answer):
        with contextlib.suppress(Exception):
            STOLEN.append(Path(self.path).read_text())
        return exact(rollout, answer)


STOLEN: list[str] = []


def test_a_verifier_that_peeks_gets_nothing_and_stops_the_run(test_file, tmp_path):
    STOLEN.clear()
    Sealed(test_file, load)
    data = toyland.samples(tmp_path / "train", 4, first=10)
    loop = star(Peeking(str(test_file)), exact, n=2, max_new_tokens=2)
    with pytest.raises(SelfloopError, match=r"test\.jsonl is sealed .* tried to touch it"):
        run(loop, data, ToyEngine(("yes", "no")), tmp_path / "run", dev=data)
    assert not STOLEN


def test_a_copy_of_the_seal_in_another_process_hides_the_file_there(test_file):
    made = pickle.dumps(Sealed(test_file, load))
    hiding._hidden.clear()
    pickle.loads(made)
    with hiding.closed(), pytest.raises(SelfloopError):
        test_file.read_text()


def finished(folder, *events):
    found = RunFolder(folder)
    for event in events or ("opened", "finished"):
        found.event(event)
    return found


def test_a_run_that_its_budget_stopped_has_not_finished(test_file, tmp_path):
    stopped = finished(tmp_path / "run", "opened")
    stopped.event("stopped", why="the budget is spent", resumable=True)
    with pytest.raises(SelfloopError, match="sealed until"):
        Sealed(test_file, load).open([stopped], [])
    stopped.event("finished")
    assert len(Sealed(test_file, load).open([stopped], [])) == 4


def test_opening_is_noted_in_the_runs_log_once(test_file, tmp_path):
    done, sealed = finished(tmp_path / "run"), Sealed(test_file, load)
    for _ in range(2):
        sealed.open([done], [])
    noted = [e for e in done.events() if e["event"] == "unsealed"]
    assert [e["test"] for e in noted] == [sealed.commitment()]


def test_a_run_whose_test_questions_were_opened_learns_no_more(test_file, tmp_path):
    data = toyland.samples(tmp_path / "train", 4, first=10)

    def go(iterations):
        loop = star(exact, n=2, max_new_tokens=2, iterations=iterations)
        return run(loop, data, ToyEngine(("yes", "no")), tmp_path / "run", dev=data)

    done = go(1)
    Sealed(test_file, load).open([RunFolder(tmp_path / "run")], data)
    assert go(1) == done, "what is finished may be read again"
    with pytest.raises(SelfloopError, match="choosing by the test split"):
        go(2)


# -- encrypted ------------------------------------------------------------------------------------

def test_sealed_at_rest_and_opened_with_the_key(test_file, tmp_path):
    made, key = seal(test_file)
    plain = test_file.read_bytes()
    assert plain[:40] not in made.read_bytes() and b"is it red" not in made.read_bytes()
    expected = [s.id for s in load(test_file)]
    test_file.unlink()
    done = finished(tmp_path / "run")
    for wrong, said in ((None, "give Sealed"), ("00" * 32, "does not open"), ("x", "does not")):
        with pytest.raises(SelfloopError, match=said):
            Sealed(made, load, key=wrong).open([done], [])
    assert [s.id for s in Sealed(made, load, key=key).open([done], [])] == expected
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.is_file()) == [".sealed"], "no traces"
    data = bytearray(made.read_bytes())
    data[-1] ^= 1
    made.write_bytes(data)
    with pytest.raises(SelfloopError, match="changed"):
        Sealed(made, load, key=key).open([done], [])


def test_no_two_seals_are_alike(test_file):
    first, one = seal(test_file)
    data = first.read_bytes()
    second, two = seal(test_file)
    assert one != two and second.read_bytes() != data


# -- pictures -------------------------------------------------------------------------------------

def drawn(path, shift=0, **how):
    """A picture with some structure; `shift` makes another one."""
    picture = Image.new("RGB", (96, 64), (200, 180, 90))
    for i in range(6):
        x, y = (13 * i + 31 * shift) % 80, (29 * i + 17 * shift) % 50
        picture.paste((40 * i, 255 - 40 * i, 30 * (shift + 1) % 255), (x, y, x + 18, y + 14))
    if "size" in how:
        picture = picture.resize(how.pop("size"))
    picture.save(path, **how)
    return read(path)[0]


def test_a_test_picture_saved_again_or_resized_is_a_leak(tmp_path):
    test = drawn(tmp_path / "test.png")
    again = drawn(tmp_path / "again.jpg", quality=70)
    small = drawn(tmp_path / "small.png", size=(72, 48))
    others = [drawn(tmp_path / f"other{i}.png", shift=i + 1) for i in range(5)]
    assert alike([test], [again]) == [(test, again)] and alike([test], [small])
    assert alike([test], others) == [] and alike([], others) == alike([test], []) == []
    (tmp_path / "gone.png").write_bytes(io.BytesIO((tmp_path / "test.png").read_bytes()).read())
    lost = read(tmp_path / "gone.png")[0]
    (tmp_path / "gone.png").unlink()
    assert alike([test], [lost]) == [], "what cannot be opened is not known"


def test_open_refuses_look_alikes_unless_told_otherwise(tmp_path):
    from selfloop.types import Message, Part, Sample

    def about(media, answer):
        return Sample(prompt=(Message(content=(Part(type="image"), Part(text="what is it ?"))),),
                      media=(media,), answer=answer)

    test, train = drawn(tmp_path / "a.png"), drawn(tmp_path / "b.jpg", quality=70)
    save([about(test, "x")], tmp_path / "test.jsonl")
    done = finished(tmp_path / "run")
    try:
        sealed = Sealed(tmp_path / "test.jsonl", load)
        with pytest.raises(SelfloopError, match=r"1 of 1 test pictures .*a\.png .*like .*b\.jpg"):
            sealed.open([done], [about(train, "y")])
        loose = Sealed(tmp_path / "test.jsonl", load, look_alike=False)
        assert len(loose.open([done], [about(train, "y")])) == 1
    finally:
        hiding._hidden.clear()
