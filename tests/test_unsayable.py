"""A drawn text that cannot be forced ends its own path, and neither its neighbours' nor the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toyland
from scripted import Scripted, asked, collect
from selfloop.collect.beams import SentenceTree
from selfloop.collect.forced import ForcedPrefix, Resumed
from selfloop.collect.masked import MaskedAttention
from selfloop.collect.negatives import Negatives
from selfloop.collect.search import TreeSearch
from selfloop.collect.unsayable import Unsayable
from selfloop.engines.toy import ToyEngine
from selfloop.pictures import Library
from selfloop.roles import Request, SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder


def refused(request: Request, mark: str) -> bool:
    return mark in request.sampling.prefix


class Mute(Scripted):
    """A scripted engine that cannot be made to begin with any text that holds a "b"."""

    def attempt(self, requests: Any, version: int) -> Any:
        rows = iter(self.generate([r for r in requests if not refused(r, "b")], version))
        return [Unsayable(f"cannot write {r.sampling.prefix!r}") if refused(r, "b")
                else next(rows) for r in requests]


def letters(request: Request, i: int) -> str:
    """Sentences "a", "b", "c" ...; the second one ends the answer."""
    return "" if request.sampling.prefix.count(".") == 2 else f"{'abcde'[i]}."


def test_a_sentence_tree_drops_the_path_and_counts_it() -> None:
    tree = SentenceTree(width=3, top=1, bottom=2, depth=3)
    spoken, _ = collect(tree, Scripted(letters))
    found, _ = collect(tree, Mute(letters))
    assert {r.text for r in spoken} > {r.text for r in found} == {
        t for t in {r.text for r in spoken} if "b" not in t}
    assert all("dropped" not in r.sampling for r in spoken)
    dropped = {r.sampling["dropped"] for r in found}
    assert dropped == {2}, '"b.", and of the three that survive the next level "c.b."'


def test_the_other_samples_of_the_batch_go_on() -> None:
    from selfloop.collect.drawing import draw
    from selfloop.doors import Doors

    def says(request: Request, i: int) -> str:
        own = "b" if "worst" in request.context.text else "a"
        return "" if request.sampling.prefix else f"{own}{i}."

    samples = [asked("worst ?"), asked("good ?")]
    worst, good = draw(SentenceTree(width=2, depth=2), samples, Doors({"solver": Mute(says)}, 0,
                                                                      "s"), {})
    assert not worst.rollouts and {r.text for r in good.rollouts} == {"a0.", "a1."}


def test_an_engine_that_fails_otherwise_still_stops_the_tree() -> None:
    def says(request: Request, i: int) -> str:
        if request.sampling.prefix:
            raise SelfloopError("out of memory")
        return "a."

    with pytest.raises(SelfloopError, match="out of memory"):
        collect(SentenceTree(width=2, depth=2), says)


def test_a_forced_text_that_the_user_gave_is_an_error() -> None:
    with pytest.raises(Unsayable, match="cannot write 'b'"):
        collect(ForcedPrefix("b", n=1), Mute(lambda r, i: "x"))


def test_a_tree_search_takes_the_step_out() -> None:
    def says(request: Request, i: int) -> str:
        return f"{'abc'[i]}\n" if request.sampling.stop and not request.sampling.prefix else "end"

    search = TreeSearch(check=never, budget=12, children=3, depth=1)
    found, _ = collect(search, Mute(says))
    assert found and all("b" not in r.text for r in found)
    assert {r.text[0] for r in found} == {"a", "c"}
    assert found[0].sampling["iterations"] == 12


def never(rollout: Any) -> bool:
    return False


def test_resumed_and_masked_answers_leave_it_out() -> None:
    def says(request: Request, i: int) -> str:
        return " else" if request.sampling.prefix else "ba da"

    found, _ = collect(Resumed(n=2, kept=0.5), Mute(says))
    assert [r.text for r in found] == ["ba da"] * 2
    found, _ = collect(MaskedAttention(n=1, least=0.5, most=0.5, tries=2), Mute(
        lambda r, i: "new" if r.sampling.hidden else "ba da"))
    assert [r.text for r in found] == ["ba da", "new"], "one word less: nothing is forced"


class MuteToy(ToyEngine):
    """A toy that draws the word no and cannot be made to begin with it.

    It draws one word at a time here, which is to stop at every word."""

    supports = ToyEngine.supports | {"stop"}

    def attempt(self, requests: Any, version: int) -> Any:
        return [Unsayable("cannot write no") if refused(r, "no") else self.generate([r], version)[0]
                for r in requests]


def test_a_run_goes_on(tmp_path: Path) -> None:
    loop = replace(toyland.loops()["mdpo"], iterations=1, steps=1, gate=None, evaluation=None,
                   sampler=SentenceTree(width=6, top=2, bottom=2, depth=3, sentence_tokens=1,
                                        stop=("yes", "no")))
    samples = toyland.samples(tmp_path / "data", 8)
    (done,) = run(loop, samples, MuteToy(("yes", "no")), tmp_path / "run",
                  library=Library(tmp_path / "run" / "images"))
    drawn = [r for g in RunFolder(tmp_path / "run").groups(0) for r in g.rollouts]
    assert done.counts["drawn"] == len(drawn) > 8
    assert all("no" not in r.text.split()[:-1] for r in drawn)
    assert sum(r.sampling.get("dropped", 0) for r in drawn) > 0


def test_a_negative_that_cannot_be_said_is_skipped_and_told() -> None:
    def says(request: Request, i: int) -> str:
        return "" if request.sampling.prefix else ("ba da do di", "two red cats sit")[i]

    sampler = Negatives(causes=("truncated", "attribute"), n=2, vocabulary=("blue",))
    found, _ = collect(sampler, Mute(says))
    told = {r.text: r.sampling.get("skipped") for r in found if "negative" not in r.sampling}
    # "two blue cats sit" cannot be said either, since this engine refuses every "b".
    assert told == {"ba da do di": ["truncated", "attribute"], "two red cats sit": ["attribute"]}
    assert [r.text for r in found if r.sampling.get("negative") == "truncated"] == ["two red"]
