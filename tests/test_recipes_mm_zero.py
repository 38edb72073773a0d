"""MM-Zero: what is proposed, drawn by programs and answered, what it earns, and who learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import toyland
from scripted import Scripted
from selfloop.collect.drawing import draw
from selfloop.collect.illustrate import TAGS, Illustrate, conceived_in
from selfloop.config import load_config
from selfloop.costs import draws_of
from selfloop.doors import Doors
from selfloop.engines.sandbox import Sandbox, level
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Loop
from selfloop.methods import build_loop
from selfloop.organize.judging import judge
from selfloop.organize.refine.by_question import ByQuestion
from selfloop.organize.refine.filters import AccuracyBand, Role
from selfloop.organize.verify.illustrated import Illustrated
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library
from selfloop.recipes.mm_zero import mm_zero
from selfloop.roles import SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Group, Message, Part, Rollout, Sample, Turn


def proposal(caption: str = "bars", easy: str = "4", hard: str = "8") -> str:
    return (f"<caption>{caption}</caption><easy_question>low of {caption}?</easy_question>"
            f"<easy_answer>{easy}</easy_answer><hard_question>sum of {caption}?</hard_question>"
            f"<hard_answer>{hard}</hard_answer>")


@pytest.mark.parametrize(("text", "why"), [
    (proposal(), ""), ("Well.\n" + proposal() + "\nDone.", ""), ("bars", "no <caption>"),
    (proposal().replace("</hard_answer>", ""), "<hard_answer> and </hard_answer> do not pair"),
    (proposal() + "<easy_answer>5</easy_answer>", "<easy_answer> more than once"),
    (proposal(easy=" "), "<easy_answer> is empty")])
def test_proposals_are_read_strictly(text: str, why: str) -> None:
    found, told = conceived_in(text)
    assert told == why and (found is None) == bool(why)
    if found is not None:
        assert (found.caption, found.easy_answer) == ("bars", "4")
        assert found.hard_question == "sum of bars?"


# -- what is drawn --------------------------------------------------------------------------------

@dataclass
class Ran:
    picture: Any = None
    ok: bool = True
    why: str = ""


RUN: Counter[str] = Counter()


def pretended(code: str, files: Mapping[str, bytes]) -> Ran:
    """A sandbox for tests that runs nothing: the program's first word says what comes of it."""
    assert not files
    RUN[code] += 1
    if code.startswith("crash"):
        return Ran(ok=False, why="ZeroDivisionError")
    if code.startswith("nothing"):
        return Ran()
    made = Image.new("RGB", (4, 4), (9, 9, 9))
    if not code.startswith("blank"):
        made.putpixel((len(code) % 4, 0), (200, 9, 9))
    return Ran(made)


def illustrated(folder: Path, proposals: list[str], programs: list[str], says: Any = "4",
                answers: int = 2) -> tuple[Group, Scripted]:
    def words(request: Any, i: int) -> str:
        if "Think of a picture" in request.context.text:
            return proposals[i]
        if "Write a short Python program" in request.context.text:
            return programs[i] if programs[i].startswith("no ") else f"<code>{programs[i]}</code>"
        return says if isinstance(says, str) else str(says(request, i))

    RUN.clear()
    engine, library = Scripted(words), Library(folder / "run")
    topic = Sample(prompt=(Message(role="user", content="weather"),), answer="secret")
    (group,) = draw(Illustrate(pretended, len(proposals), len(programs), answers), [topic],
                    Doors({"solver": engine}, 0, "s", keep=library.keep), {})
    return group, engine


def test_pictures_are_conceived_drawn_and_asked_about(tmp_path: Path) -> None:
    group, engine = illustrated(tmp_path, [proposal(), "none", proposal("map")],
                                ["draw", "crash", "blank", "nothing", "no code", "draw"])
    of = {role: [r for r in group.rollouts if r.role == role] for role in (
        "proposer", "coder", "solver")}
    assert [r.sampling["why"] for r in of["proposer"]] == ["", "no <caption>", ""]
    assert [bool(r.sampling["conceived"]) for r in of["proposer"]] == [True, False, True]
    assert [r.sampling["why"] for r in of["coder"]] == 2 * [
        "", "ZeroDivisionError", "its picture is of one colour", "it saved no picture",
        "no <code>", ""]
    assert RUN["draw"] == 1, "equal programs are run once"
    assert len(of["solver"]) == 2 * 2 * 4
    for code in of["coder"]:
        (asked,) = {r.context.text for r in of["proposer"] if r.id == code.sampling["proposal"]}
        assert "weather" in asked and "secret" not in asked
        assert "Its answer: 4" in code.context.text and "weather" not in code.context.text
    drawn = [c for c in of["coder"] if not c.sampling["why"]]
    for code in drawn:
        mine = [r for r in of["solver"] if r.sampling["drawing"] == code.id]
        easy, hard = mine[:2], mine[2:]
        assert all(r.sampling["expected"] == "4" and "proposal" not in r.sampling for r in easy)
        assert all(r.sampling["proposal"] == code.id and "expected" not in r.sampling for r in hard)
        assert len({r.context.identity for r in mine}) == 2 and len(mine[0].context.media) == 1
        assert "Its answer" not in mine[0].context.text
    assert [r.role for r in group.rollouts[:6]] == ["proposer", "coder", *4 * ["solver"]]
    # one call for the proposals, one a readable proposal, two a picture: side by side
    assert len(engine.asked) == 1 + 2 + 2 * len(drawn)


def test_drawing_again_draws_the_same(tmp_path: Path) -> None:
    first, _ = illustrated(tmp_path / "a", [proposal()], ["draw", "draw more"])
    again, _ = illustrated(tmp_path / "b", [proposal()], ["draw", "draw more"])
    told = [[(r.id, r.role, r.context.identity, r.text, r.sampling) for r in g.rollouts]
            for g in (first, again)]
    assert told[0] == told[1]
    with pytest.raises(SelfloopError, match="at least 1"):
        Illustrate(pretended, codes=0)


# -- what is earned -------------------------------------------------------------------------------

def said(name: str, text: str = "", role: str = "solver", **notes: Any) -> Rollout:
    asked = Sample(prompt=(Message(content=name.split("/")[0]),))
    return Rollout(id=name, sample="s", context=asked.context, turns=(Turn(token_ids=(1,)),),
                   output=(Part(text=text),), role=role, sampling=notes)


def conceived(name: str, caption: str) -> Rollout:
    fields = dict(zip(TAGS, (caption, f"{caption} low", "4", f"{caption} sum", "8"), strict=True))
    return said(name, role="proposer", conceived=fields, why="")


def picture(of: str, name: str, easy: str, hard: str) -> list[Rollout]:
    """A program whose picture was asked about: a letter an answer, "-" for a blank one."""
    words = {"-": "", "r": "4", "w": "5"}
    return [said(name, role="coder", program=name, why="", proposal=of),
            *(said(f"{name}/e{i}", words.get(c, c), drawing=name, expected="4")
              for i, c in enumerate(easy)),
            *(said(f"{name}/h{i}", words.get(c, c), drawing=name, proposal=name)
              for i, c in enumerate(hard))]


def earned(*rollouts: Rollout, verifier: Illustrated | None = None) -> dict[str, float | None]:
    group = Group(sample=Sample(prompt=(Message(content="x"),)), rollouts=rollouts)
    (judged,) = judge(verifier or Illustrated(), [group], Doors({}, 0, "s")).groups
    return {r.id: v.score for r, v in zip(judged.rollouts, judged.verdicts, strict=True)}


@pytest.mark.parametrize(("easy", "hard", "code"), [
    ("rrrr", "aabb", 1 + 1 + 0.5), ("rrww", "aaab", 1 + 0.5 + 0.25), ("wwww", "aaaa", 1.0),
    ("rr--", "ab--", 1 + 0.5 + 0.25), ("r---", "abcd", 1 + 0.25 + 0.25)])
def test_a_program_earns_by_what_its_picture_lets_be_answered(easy: str, hard: str, code: float
                                                              ) -> None:
    found = earned(conceived("p", "bars"), *picture("p", "c", easy, hard))
    assert found["c"] == pytest.approx(code)
    assert found["p"] == pytest.approx(code - 1), "without the point for drawing at all"


def test_a_program_without_a_picture_costs_its_writer_and_is_nothing_for_its_proposer() -> None:
    broken = said("c2", role="coder", program=None, why="no <code>", proposal="p")
    found = earned(conceived("p", "bars"), *picture("p", "c1", "rr", "ab"), broken)
    assert (found["c1"], found["c2"]) == (2.5, -0.1)
    assert found["p"] == pytest.approx(1.5 / 2)
    unread = said("q", role="proposer", conceived=None, why="no <caption>")
    assert earned(unread)["q"] == -1.0


def test_proposals_that_are_alike_pay_for_it_and_rare_ones_gain() -> None:
    three = [conceived("a", "bars of rain by month"), conceived("b", "bars of rain by month"),
             conceived("c", "map of an island with two roads")]
    rest = [r for p in "abc" for r in picture(p, f"{p}1", "rr", "ab")]
    found = earned(*three, *rest)
    # clusters of 2 and 1 of 3: (2/3 - 1/3) * 3 * .5 = .5 and (1/3 - 1/3) = 0
    assert found["a"] == found["b"] == pytest.approx(1.5 - 0.5) and found["c"] == 1.5
    free = earned(*three, *rest, verifier=Illustrated(crowding=0))
    assert {free[p] for p in "abc"} == {1.5}


def test_answers_to_hard_questions_earn_by_the_vote_and_easy_ones_nothing() -> None:
    found = earned(conceived("p", "bars"), *picture("p", "c", "rrrw", "aab-"))
    assert [found[f"c/h{i}"] for i in range(4)] == [1.0, 1.0, 0.0, 0.0]
    assert [found[f"c/e{i}"] for i in range(4)] == [None] * 4
    tie = earned(conceived("p", "bars"), *picture("p", "c", "rr", "aabb"))
    assert [tie[f"c/h{i}"] for i in range(4)] == [None] * 4 and tie["c"] == 2.5
    unclear = earned(conceived("p", "bars"), *picture("p", "c", "rwxy", "aaab"))
    assert all(unclear[f"c/h{i}"] is None for i in range(4)), "the easy question divides"

    def short(rollout: Rollout) -> float:
        return float(len(rollout.text) < 2)

    formed = earned(conceived("p", "bars"), *picture("p", "c", "rrrr", ["a", "a", "bb"]),  # type: ignore[arg-type]
                    verifier=Illustrated(form=short))
    assert [formed[f"c/h{i}"] for i in range(3)] == pytest.approx([1.0, 1.0, 0.0])


def test_unknown_is_not_zero() -> None:
    found = earned(conceived("p", "bars"), *picture("p", "c", "rr", "--"), said("x", "20"))
    assert found["c"] is None and found["p"] is None and found["x"] is None
    both = earned(conceived("p", "bars"), *picture("p", "c", "rr", "--"),
                  *picture("p", "d", "rr", "ab"))
    assert both["p"] == 1.5, "what is known of the other picture"
    with pytest.raises(SelfloopError, match="easy and weight"):
        Illustrated(easy=2)


def test_each_role_learns_from_groups_of_its_own() -> None:
    rollouts = (conceived("p", "bars"), *picture("p", "c", "rr", "aab"),
                *picture("p", "d", "rr", "aa"), conceived("q", "map"),
                *picture("q", "e", "rr", "aab"))
    group = Group(sample=Sample(prompt=(Message(content="x"),)), rollouts=rollouts)
    (judged,) = judge(Illustrated(), [group], Doors({}, 0, "s")).groups
    how = mm_zero(exact).learn

    def groups(role: str) -> list[list[str]]:
        found = [judged]
        for step in how[role].organizer.steps:  # type: ignore[attr-defined]
            found = step(found)
        return [[r.id for r in g.rollouts] for g in found]

    assert groups("proposer") == [["p", "q"]]
    assert groups("coder") == [["c", "d"], ["e"]]
    assert groups("solver") == [[f"{p}/h{i}" for i in range(3)] for p in "ce"], "all agree on d's"
    assert how["solver"].organizer.steps == (  # type: ignore[attr-defined]
        Role("solver"), ByQuestion(), AccuracyBand(0.25, 0.75))


# -- whole loops ----------------------------------------------------------------------------------

BARS = 'd=__import__("PIL.Image").Image.new("RGB",(8,8));d.putpixel((1,1),(9,9,9));' \
    'd.save("picture.png")'
PROGRAMS = (f"<code>{BARS}</code>", "<code>1/0</code>")
PROPOSALS = (proposal("bars"), "a picture of bars")


def toys() -> dict[str, ToyEngine]:
    return {"solver": ToyEngine(("4", "8"), seed=1), "proposer": ToyEngine(PROPOSALS, seed=2),
            "coder": ToyEngine(PROGRAMS, seed=3)}


def short(loop: Loop, lr: float = 0.3) -> Loop:
    """The loop for a toy: no gate, and steps that it can feel."""
    learn = {role: replace(how, optim=replace(how.optim, lr=lr))
             for role, how in loop.learn.items()}
    return replace(loop, learn=learn, gate=None, evaluation=None)


def drew(code: str, files: Mapping[str, bytes]) -> Ran:
    """What PROGRAMS do, done by hand."""
    return Ran(ok=False, why="ZeroDivisionError") if "1/0" in code else pretended(code, files)


def test_all_three_learn(tmp_path: Path) -> None:
    """Twelve steps with a pretended sandbox: more can be read, and more is drawn."""
    loop = short(mm_zero(exact, proposals=4, codes=4, n=3, samples=2, steps=12, iterations=1,
                         kl=0.0, proposal_tokens=1, program_tokens=1, max_new_tokens=1), lr=0.5)
    loop = replace(loop, sampler=replace(loop.sampler, run=drew))  # type: ignore[type-var]
    assert not loop.labels_read
    folder = tmp_path / "run"
    (done,) = run(loop, toyland.samples(tmp_path / "data", 2), toys(), folder,
                  library=Library(folder / "images"))
    assert done.labels_full == done.labels_answer_only == 0
    found = RunFolder(folder)
    assert not any(r.context.media for s in range(12) for g in found.groups(s)
                   for r in g.rollouts if r.role != "solver"), "no picture of the data is shown"

    def share(steps: range, role: str) -> float:
        told = [not r.sampling["why"] for s in steps for g in found.groups(s) for r in g.rollouts
                if r.role == role]
        return sum(told) / len(told)

    early, late = range(4), range(8, 12)
    for role in ("proposer", "coder"):
        assert share(late, role) > share(early, role) + 0.1, role
        assert done.counts[f"signals_{role}"] > 0
    assert done.counts["signals_solver"] > 0
    for signal in found.signals(0, "solver"):
        (branch,) = signal.branches.values()
        assert "sum of" in branch.context.text and len(branch.context.media) == 1


@pytest.mark.skipif(level()[0] is None, reason="this machine cannot shut code in")
def test_with_the_sandbox(tmp_path: Path) -> None:
    loop = short(mm_zero(exact, proposals=3, codes=4, n=2, samples=1, steps=1, iterations=1,
                         proposal_tokens=1, program_tokens=1, max_new_tokens=2, seed=0))
    assert isinstance(loop.sampler.run, Sandbox)  # type: ignore[union-attr]
    folder = tmp_path / "run"
    run(loop, toyland.samples(tmp_path / "data", 1), toys(), folder,
        library=Library(folder / "images"))
    (group,) = RunFolder(folder).groups(0)
    programs = {r.sampling["program"]: r.sampling["why"] for r in group.rollouts
                if r.role == "coder"}
    assert programs.pop(BARS) == "" and "ZeroDivisionError" in programs.pop("1/0")
    answers = [r for r in group.rollouts if r.role == "solver"]
    assert answers and all(Library(folder / "images").open(r.context.media[0]).size == (8, 8)
                           for r in answers)


def test_a_plan_counts_all_that_is_drawn() -> None:
    assert draws_of(mm_zero(exact, proposals=3, codes=2, n=4)) == 3 * (1 + 2 * (1 + 8))


def test_it_is_a_method_of_run_yaml(tmp_path: Path) -> None:
    from clidata import with_splits

    path = with_splits(tmp_path, method="mm_zero")
    path.write_text(path.read_text().replace(
        "options: {n: 2, max_new_tokens: 12, updates: 2, batch: 4, lr: 5e-4}", "options: {n: 2}"))
    loop = build_loop(load_config(path, ["options.codes=3", "options.seconds=3"]))
    assert all(word in repr(loop) for word in ("Illustrate", "Sandbox", "codes=3", "GRPO"))
    assert set(loop.learn) == {"proposer", "coder", "solver"}
