"""EVE and the guided teacher: what is drawn, what it earns, what is learnt, on toys and scenes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import toyland
from scripted import Scripted, collect
from selfloop.collect.challenge import LONGEST, Challenge, program_in
from selfloop.collect.drawing import draw
from selfloop.collect.masked import MaskedAttention
from selfloop.config import load_config
from selfloop.doors import Doors
from selfloop.engines.sandbox import Sandbox, level
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Loop
from selfloop.methods import build_loop
from selfloop.optimize.losses.preference import DPO
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.judging import judge
from selfloop.organize.refine.by_question import ByQuestion
from selfloop.organize.verify.constructed import ByConstruction
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library, read
from selfloop.recipes.eve import eve
from selfloop.recipes.m3id import m3id
from selfloop.roles import SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Group, Message, Part, Rollout, Sample, Turn, Verdict

# -- programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "values", "why"), [
    ("<code>x</code> <values>1, 2</values>", ("1", "2"), ""),
    ("<values>-1.5,20,3</values><code>a\nb</code>", ("-1.5", "20", "3"), ""),
    ("<code>x</code>", (), "no <values>"), ("<values>1,2</values>", (), "no <code>"),
    ("<code>x</code><code>y</code><values>1,2</values>", (), "<code> more than once"),
    ("<code>x</code><values>1</values>", (), "1 values; expected two to four different ones"),
    ("<code>x</code><values>1,1.0</values>", (), "2 values; expected two to four different ones"),
    ("<code>x</code><values>1,2,3,4,5</values>", (), "5 values; expected two to four"),
    ("<code>x</code><values>1,two</values>", (), "values that are no plain numbers"),
    ("<code>x</code><values>1,2;import os</values>", (), "values that are no plain numbers"),
    ("<code>x</code><values>1,1e9</values>", (), "values that are no plain numbers"),
    (f"<code>{'x' * (LONGEST + 1)}</code><values>1,2</values>", (), "over 2000"),
])
def test_programs_are_read_strictly(text: str, values: tuple[str, ...], why: str) -> None:
    code, found, told = program_in(text)
    assert found == values and (why in told if why else not told)
    assert bool(code) == (not why)


@dataclass
class Ran:
    picture: Any = None
    ok: bool = True
    why: str = ""


def pretended(code: str, files: Mapping[str, bytes]) -> Ran:
    """A sandbox for tests that runs nothing: the first word of the program says what comes of it.
    """
    assert files["input.png"].startswith(b"\x89PNG")
    given, _, program = code.partition("\n")
    value = float(given.removeprefix("value = "))
    if program.startswith("crash"):
        return Ran(ok=False, why="ZeroDivisionError")
    if program.startswith("nothing"):
        return Ran()
    shade = 7 if program.startswith("same") else int(value)
    return Ran(Image.new("RGB", (4, 4), (shade, shade, shade)))


def sample(folder: Path) -> Sample:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (9, 90, 9)).save(folder / "a.png")
    return Sample(prompt=(Message(role="user", content=(Part(type="image"), Part(text="look"))),),
                  media=tuple(read(folder / "a.png")), answer="secret")


def challenged(folder: Path, *programs: str, says: str = "10", answers: int = 2
               ) -> tuple[Group, Scripted]:
    """What a proposer of these programs and a solver that says one number draw."""
    def words(request: Any, i: int) -> str:
        return f"<code>{programs[i]}</code><values>10,20</values>" \
            if "Write a short Python program" in request.context.text else says

    engine = Scripted(words)
    library = Library(folder / "run")
    doors = Doors({"solver": engine}, 0, "s", keep=library.keep)
    (group,) = draw(Challenge(pretended, n=len(programs), answers=answers), [sample(folder)],
                    doors, {})
    return group, engine


def test_what_a_program_makes_is_asked_and_its_answer_known(tmp_path: Path) -> None:
    group, engine = challenged(tmp_path, "dim", "crash", "same", "nothing", "dim")
    proposals = [r for r in group.rollouts if r.role == "proposer"]
    assert [r.sampling["why"] for r in proposals] == [
        "", "with value 10: ZeroDivisionError", "two of its values give the same picture",
        "with value 10: it saved no picture", "written before"]
    answers = [r for r in group.rollouts if r.role == "solver"]
    assert len(answers) == 2 and {r.sampling["proposal"] for r in answers} == {proposals[0].id}
    asked = answers[0].context
    assert all(r.context == asked for r in answers)
    assert "10 or 20" in asked.text and "dim" in asked.text and "secret" not in asked.text
    first, second = asked.media
    seen = Library(tmp_path / "run").open(second).getpixel((0, 0))
    assert seen == (int(answers[0].sampling["constructed"]),) * 3
    assert first.sha256 == group.sample.media[0].sha256 and len(engine.asked) == 2


def test_the_value_asked_for_is_by_lot_and_repeats(tmp_path: Path) -> None:
    programs = tuple(f"dim{i}" for i in range(12))
    first, _ = challenged(tmp_path / "a", *programs, answers=1)
    again, _ = challenged(tmp_path / "a", *programs, answers=1)
    right = [r.sampling["constructed"] for r in first.rollouts if r.role == "solver"]
    assert set(right) == {"10", "20"}
    assert right == [r.sampling["constructed"] for r in again.rollouts if r.role == "solver"]


def test_no_picture_no_program(tmp_path: Path) -> None:
    bare = sample(tmp_path).model_copy(update={"media": (), "prompt": (
        Message(role="user", content="hm"),)})
    found, engine = collect(Challenge(pretended), Scripted(lambda r, i: ""), bare)
    assert not found and not engine.asked
    with pytest.raises(SelfloopError, match="at least"):
        Challenge(pretended, n=0)


# -- what is earned -------------------------------------------------------------------------------

def drawn(name: str, said: str = "", role: str = "solver", **notes: Any) -> Rollout:
    asked = Sample(prompt=(Message(content=name[:1]),))
    return Rollout(id=name, sample="s", context=asked.context, turns=(Turn(token_ids=(1,)),),
                   output=(Part(text=said),), role=role, sampling=notes)


def problem(name: str, right: int, wrong: int, program: str = "") -> list[Rollout]:
    return [drawn(name, role="proposer", program=program or name, why=""),
            *(drawn(f"{name}/{i}", "20" if i < right else "10", proposal=name, constructed="20")
              for i in range(right + wrong))]


def earned(*rollouts: Rollout) -> dict[str, float | None]:
    group = Group(sample=Sample(prompt=(Message(content="x"),)), rollouts=rollouts)
    (judged,) = judge(ByConstruction(), [group], Doors({}, 0, "s")).groups
    return {r.id: v.score for r, v in zip(judged.rollouts, judged.verdicts, strict=True)}


@pytest.mark.parametrize(("right", "wrong", "score"), [
    (2, 2, 1.0), (4, 0, 0.25), (0, 4, 0.25), (1, 3, 0.25 + 0.75 * 0.5), (3, 1, 0.625)])
def test_a_challenger_earns_most_when_half_is_right(right: int, wrong: int, score: float) -> None:
    found = earned(*problem("a", right, wrong))
    assert found["a"] == pytest.approx(score)
    assert sum(v for k, v in found.items() if "/" in k) == right  # type: ignore[misc]


def test_what_makes_no_problem_earns_nothing_and_equal_programs_less() -> None:
    failed = drawn("bad", role="proposer", program="bad", why="ZeroDivisionError")
    assert earned(*problem("a", 1, 1), failed) == {"a": 1.0, "a/0": 1.0, "a/1": 0.0, "bad": 0.0}
    twice = earned(*problem("a", 1, 1, "p  q"), *problem("b", 1, 1, "p q"))
    assert twice["a"] == twice["b"] == pytest.approx(0.5)


def test_unknown_is_not_zero() -> None:
    unanswered = drawn("a", role="proposer", program="p", why="")
    other = drawn("x", "20")
    assert earned(unanswered, other) == {"a": None, "x": None}
    with pytest.raises(SelfloopError, match="valid"):
        ByConstruction(valid=2)


def test_answers_to_one_problem_are_a_group() -> None:
    rollouts = [*problem("a", 1, 1), *problem("b", 2, 0)]
    group = Group(sample=Sample(prompt=(Message(content="x"),)), rollouts=tuple(rollouts),
                  verdicts=tuple(Verdict(score=float(i)) for i in range(6)))
    a, b = ByQuestion()([group])
    assert [r.id for r in a.rollouts] == ["a/0", "a/1"] and [r.id for r in b.rollouts] == [
        "b/0", "b/1"]
    assert [v.score for v in a.verdicts] == [1.0, 2.0] and a.sample.parent == "a"
    assert a.sample.id != b.sample.id and a.sample.answer is None
    assert a.sample.cluster == group.sample.cluster


# -- whole loops ----------------------------------------------------------------------------------

OPEN = '__import__("PIL.Image").Image.open("input.png")'
PROGRAMS = tuple(f"<code>{code}</code><values>4,8</values>" for code in (
    f'{OPEN}.resize((int(value),8)).save("picture.png")', f'{OPEN}.save("picture.png")', "1/0"))


def toys() -> dict[str, ToyEngine]:
    return {"solver": ToyEngine(("4", "8"), seed=1), "proposer": ToyEngine(PROGRAMS, seed=2)}


def short(loop: Loop, lr: float = 0.5) -> Loop:
    """The loop for a toy: no gate, and steps that it can feel."""
    learn = {role: replace(how, optim=replace(how.optim, lr=lr)) for role, how in
             loop.learn.items()}
    return replace(loop, learn=learn, gate=None, evaluation=None)


def test_eve_learns_to_answer_and_to_write_programs_that_run(tmp_path: Path) -> None:
    """Twenty-four steps with a pretended sandbox: the same problems come again, and are learnt."""
    loop = short(eve(exact, programs=6, n=8, samples=2, steps=24, iterations=1, kl=0.0,
                     program_tokens=1, max_new_tokens=2))
    loop = replace(loop, sampler=replace(loop.sampler, run=seen))
    assert not loop.labels_read
    folder = tmp_path / "run"
    (done,) = run(loop, toyland.samples(tmp_path / "data", 2), toys(), folder,
                  library=Library(folder / "images"))
    assert done.labels_full == done.labels_answer_only == 0
    found = RunFolder(folder)

    def rate(steps: range, role: str) -> float:
        judged = [v.score for s in steps for g in found.groups(s)
                  for r, v in zip(g.rollouts, g.verdicts, strict=True)
                  if r.role == role and v.score is not None]
        return sum(judged) / len(judged)

    def running(steps: range) -> float:
        told = [not r.sampling["why"] or r.sampling["why"] == "written before"
                for s in steps for g in found.groups(s) for r in g.rollouts
                if r.role == "proposer"]
        return sum(told) / len(told)

    early, late = range(6), range(18, 24)
    assert rate(late, "solver") > rate(early, "solver") + 0.1
    assert running(late) > running(early)


def seen(code: str, files: Mapping[str, bytes]) -> Ran:
    """What PROGRAMS do, done by hand."""
    value = int(float(code.partition("\n")[0].removeprefix("value = ")))
    if "1/0" in code:
        return Ran(ok=False, why="ZeroDivisionError")
    return Ran(Image.new("RGB", (value if "resize" in code else 8, 8)))


@pytest.mark.skipif(level()[0] is None, reason="this machine cannot shut code in")
def test_eve_with_the_sandbox(tmp_path: Path) -> None:
    loop = short(eve(exact, programs=12, n=2, samples=1, steps=1, iterations=1, program_tokens=1,
                     max_new_tokens=2, seed=3))
    assert isinstance(loop.sampler.run, Sandbox)  # type: ignore[union-attr]
    folder = tmp_path / "run"
    run(loop, toyland.samples(tmp_path / "data", 1), toys(), folder,
        library=Library(folder / "images"))
    (group,) = RunFolder(folder).groups(0)
    whys = {r.sampling["program"]: r.sampling["why"] for r in group.rollouts
            if r.role == "proposer" and r.sampling["why"] != "written before"}
    for program, why in whys.items():
        if program is not None:
            assert ("resize" in program) == (not why), (program, why)
            assert "1/0" not in program or "ZeroDivisionError" in why
    answers = [r for r in group.rollouts if r.role == "solver"]
    assert answers, "the seed is such that a program that runs is among the twelve"
    for r in answers:
        made = Library(folder / "images").open(r.context.media[1])
        assert made.width == int(r.sampling["constructed"])


# -- the guided teacher ---------------------------------------------------------------------------

@pytest.mark.parametrize(("decoding", "asks"), [
    ("m3id", {"contrast"}), ("vcd", {"contrast"}), ("masked", {"forced_prefix",
                                                               "masked_attention"})])
def test_a_guided_teacher_on_the_toy(tmp_path: Path, decoding: str, asks: set[str]) -> None:
    loop = m3id(exact, decoding=decoding, n=3, max_new_tokens=3, lr=0.1, updates=3)
    assert loop.sampler.asks == asks and not loop.labels_read  # type: ignore[union-attr]
    folder = tmp_path / "run"
    (done,) = run(replace(loop, gate=None, evaluation=None), toyland.samples(tmp_path / "data", 6),
                  ToyEngine(("yes", "no"), seed=1), folder, library=Library(folder / "images"))
    assert done.counts["signals_solver"] > 0 and done.labels_full == 0
    for pair in RunFolder(folder).signals(0, "solver"):
        chosen, rejected = pair.branches["chosen"], pair.branches["rejected"]
        assert chosen.context == rejected.context, "both under the plain question and picture"
        assert all(t.logprobs is None for t in (*chosen.turns, *rejected.turns)) \
            or decoding == "masked"


def test_what_each_decoding_is() -> None:
    plain, vcd = m3id(exact).sampler, m3id(exact, decoding="vcd").sampler
    told = {f.name: getattr(vcd, f.name) for f in dataclasses.fields(vcd)}  # type: ignore[arg-type]
    assert (told["against"], told["severity"], told["away"], told["floor"], told["rate"]) == (
        "diffusion", 0.5, 1.0, 0.1, 0.0)
    assert (plain.against, plain.rate, plain.away) == ("no picture", 0.02, 0.0)  # type: ignore[union-attr]
    assert isinstance(m3id(exact, decoding="masked").sampler, MaskedAttention)
    assert isinstance(m3id(exact).learn["solver"].loss, DPO)
    assert m3id(exact, imitate=True).learn["solver"].loss == SFT("chosen")
    with pytest.raises(SelfloopError, match="expected m3id, vcd or masked"):
        m3id(exact, decoding="other")


@pytest.mark.parametrize(("loop", "draws"), [
    (eve(exact, programs=4, n=8), 36), (m3id(exact, n=3), 6), (m3id(exact, n=2, decoding="masked"),
                                                               4)])
def test_a_plan_counts_all_that_is_drawn(loop: Loop, draws: int) -> None:
    from selfloop.costs import draws_of

    assert draws_of(loop) == draws


def test_imitating_the_teacher_moves_the_plain_model_towards_it(tmp_path: Path) -> None:
    """A toy's answers with the picture, pushed from those without, become likelier plainly."""
    samples = toyland.samples(tmp_path / "data", 4)
    engine = ToyEngine(("yes", "no"), seed=1)
    loop = m3id(exact, imitate=True, rate=0.5, n=6, max_new_tokens=2, lr=0.2, updates=12)
    folder = tmp_path / "run"
    run(replace(loop, gate=None, evaluation=None), samples, engine, folder,
        library=Library(folder / "images"))
    chosen = [p.branches["chosen"] for p in RunFolder(folder).signals(0, "solver")]
    before = [sum(x) for x in engine.logprobs(chosen, "seed")]
    after = [sum(x) for x in engine.logprobs(chosen)]
    assert sum(after) > sum(before) + 0.05 * len(chosen)


@pytest.mark.parametrize(("method", "options", "words"), [
    ("m3id", ["options.decoding=vcd"], ["MixedDecoding", "diffusion", "DPO"]),
    ("eve", ["options.programs=2", "options.seconds=3"], ["Challenge", "Sandbox", "GRPO"])])
def test_both_are_methods_of_run_yaml(tmp_path: Path, method: str, options: list[str],
                                      words: list[str]) -> None:
    from clidata import with_splits

    path = with_splits(tmp_path, method=method)
    path.write_text(path.read_text().replace(
        "options: {n: 2, max_new_tokens: 12, updates: 2, batch: 4, lr: 5e-4}", "options: {n: 2}"))
    loop = build_loop(load_config(path, options))
    assert all(word in repr(loop) for word in words)
