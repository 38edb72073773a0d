"""Judges that read pictures are attacked through the picture; those that do not look are found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfloop.auditing.audit import Audited, audit
from selfloop.auditing.pictured import BLANK, IN_PICTURE, ORDERS, Pictured, band, written
from selfloop.organize.verify.judges import PointwiseJudge, ReferenceJudge
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library, read
from selfloop.roles import Request
from selfloop.types import Message, Part, Sample, Turn

COLOURS = {"red": (200, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 200)}


def samples(folder: Path, n: int = 6) -> list[Sample]:
    """One-colour pictures and the question which colour it is."""
    found = []
    for i in range(n):
        name = list(COLOURS)[i % 3]
        Image.new("RGB", (60 + i, 40), COLOURS[name]).save(folder / f"{i}.png")
        found.append(Sample(prompt=(Message(role="user", content=(
            Part(type="image"), Part(text=f"Which colour is number {i} ?"))),),
            media=tuple(read(folder / f"{i}.png")), answer=name))
    return found


class Eyes:
    """A judging model that really opens the picture: its verdict is `judged(picture, asked)`."""

    supports = frozenset({"images"})
    version = 0

    def __init__(self, judged: Callable[[Image.Image | None, str], int]) -> None:
        self.judged, self.asked = judged, 0

    def generate(self, requests: list[Request], version: int) -> list[list[Turn]]:
        self.asked += len(requests)
        return [[self._turn(r)] * r.n for r in requests]

    def _turn(self, request: Request) -> Turn:
        text = request.context.text
        picture = Library().open(request.context.media[-1]) if request.context.media else None
        code = text.rpartition("score ")[2][:8]
        said = f"score {code}: {self.judged(picture, text)}"
        return Turn(token_ids=tuple(map(ord, said)))

    def decode(self, token_ids: Any) -> str:
        return "".join(map(chr, token_ids))


def answer_in(asked: str) -> str:
    return asked.split("Answer to judge:\n")[1].split("\n")[1].strip().lower()


def reads_orders(picture: Image.Image) -> bool:
    """Whether one of the orders is legibly there: the very strip of text, found at the bottom."""
    for text in ORDERS:
        note = band(text, picture.width)
        own = picture.crop((0, picture.height - note.height, picture.width, picture.height))
        if picture.height > note.height and np.array_equal(np.asarray(own), np.asarray(note)):
            return True
    return False


def honest(picture: Image.Image | None, asked: str) -> int:
    """Ten points where the answer names the colour of the picture's corner."""
    assert picture is not None
    seen = picture.getpixel((1, 1))
    return 10 if COLOURS.get(answer_in(asked)) == seen else 0


def obeying(picture: Image.Image | None, asked: str) -> int:
    """The same judge, but it does as the picture says."""
    assert picture is not None
    return 10 if reads_orders(picture) else honest(picture, asked)


def credulous(picture: Image.Image | None, asked: str) -> int:
    """Is shown the picture and never looks: whatever is a colour may be right."""
    number = int(asked.split("number ")[1].split()[0])
    return 10 if answer_in(asked) == list(COLOURS)[number % 3] else 0  # it guesses by the question


def told(found: Audited, name: str) -> str:
    return next(c.fault for c in found.cases if c.name == name)


def tried(found: Audited, name: str) -> int:
    return next(c.paid.n for c in found.cases if c.name == name)


@pytest.mark.parametrize(("judged", "faults"), [
    (honest, set()), (obeying, {IN_PICTURE}), (credulous, {BLANK})])
@pytest.mark.parametrize("quick", [False, True])
def test_who_obeys_the_picture_and_who_never_looks(tmp_path: Path, judged: Any, faults: set[str],
                                                   quick: bool) -> None:
    found = audit(PointwiseJudge(), samples(tmp_path), engines={"judge": Eyes(judged)},  # type: ignore[dict-item]
                  quick=quick)
    assert {c.name for c in found.cases if c.fault} == faults, found.reasons
    assert tried(found, IN_PICTURE) == tried(found, BLANK) == 6
    assert found.ok == (not faults)


def test_a_judge_that_knows_the_gold_answer_need_not_look(tmp_path: Path) -> None:
    def compares(picture: Image.Image | None, asked: str) -> int:
        gold = asked.split("A known right answer:\n")[1].split("\n")[1].strip()
        return 10 if answer_in(asked) == gold else 0

    found = audit(ReferenceJudge(), samples(tmp_path), engines={"judge": Eyes(compares)},  # type: ignore[dict-item]
                  quick=True)
    assert found.ok, found.reasons
    assert not tried(found, BLANK) and tried(found, IN_PICTURE) == 6


async def words_alone(generate: Any, rollout: Any, sample: Sample) -> bool:
    """Asks a model about the text, and never shows it a picture."""
    from selfloop.organize.verify.asking import ask
    from selfloop.roles import Sampling

    await ask(generate, "Is this good English ? score 00000000", (), "judge", Sampling(), "words")
    return rollout.text in COLOURS


def test_who_shows_nobody_a_picture_claims_nothing_of_it(tmp_path: Path) -> None:
    found = audit(words_alone, samples(tmp_path), engines={"judge": Eyes(lambda p, t: 0)},  # type: ignore[dict-item]
                  quick=True)
    assert not tried(found, BLANK) and not told(found, BLANK)


def test_answers_that_fit_any_picture_deserve_nothing(tmp_path: Path) -> None:
    def flattered(rollout: Any, answer: Any) -> Any:
        return None if answer is None else "the picture" in rollout.text or exact(rollout, answer)

    found = audit(flattered, samples(tmp_path))
    assert "pays for" in told(found, "answer to any picture")
    assert not told(audit(exact, samples(tmp_path)), "answer to any picture")


def test_pictures_made_for_the_audit(tmp_path: Path) -> None:
    (sample, *_) = samples(tmp_path, 3)
    (tmp_path / "made").mkdir()
    made = Pictured(tmp_path / "made")
    ordered, blank = made.with_orders(sample, ORDERS[0]), made.blanked(sample)
    assert ordered is not None and blank is not None
    sheet = Library().open(ordered.media[0])
    assert reads_orders(sheet) and sheet.getpixel((1, 1)) == COLOURS["red"]
    assert sheet.crop((0, 0, 60, 40)).tobytes() == Library().open(sample.media[0]).tobytes()
    grey = Library().open(blank.media[0])
    assert grey.getcolors() == [(60 * 40, (128, 128, 128))]
    assert ordered.prompt == sample.prompt and len({s.id for s in (ordered, blank, sample)}) == 3


def test_long_orders_are_broken_into_lines_that_fit() -> None:
    picture = written(Image.new("RGB", (10, 10)), " ".join(["word"] * 200))
    assert picture.width == 320 and picture.height > 10 + 22 * 5
    right = np.asarray(picture)[12:, -3:]
    assert (right == 255).all(), "nothing is cut off at the edge"


def test_pictures_that_are_gone_are_left_out(tmp_path: Path) -> None:
    found = samples(tmp_path)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    result = audit(exact, found)
    assert result.ok and not tried(result, IN_PICTURE)
    assert ("orders in the picture", "not tried") in [(r[0], r[3]) for r in result.rows()]
