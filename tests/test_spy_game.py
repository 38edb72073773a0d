"""Spy games in a loop: who is paid for what, one phase at a time, and Vision-Zero as a recipe."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import toyland
from scripted import Scripted, asked, collect
from selfloop.collect.self_play import SpyGame, parse_vote
from selfloop.config import RunConfig
from selfloop.costs import draws_of
from selfloop.data import load
from selfloop.doors import Doors
from selfloop.engines.hf import HFEngine
from selfloop.engines.toy import ToyEngine
from selfloop.methods import build_loop
from selfloop.organize.advantages import AsScored, Marked, RunningBaseline
from selfloop.organize.judging import judge
from selfloop.organize.refine.filters import Apart, Noted
from selfloop.organize.refine.phases import Alternate
from selfloop.organize.signals import GroupAdvantage
from selfloop.organize.verify.environment import EnvironmentReturn
from selfloop.organize.verify.game_votes import ClueVotes
from selfloop.organize.verify.rules import exact
from selfloop.recipes.vision_zero import vision_zero
from selfloop.roles import SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.testbeds import digits
from selfloop.types import Group, Verdict

SEED = Path(digits.__file__).parent / "seed"


def finds(request, index: int) -> str:
    """Spies give themselves away, and everybody votes for them."""
    if "Which player" not in request.context.text:
        return "odd" if request.context.media[0].ops else "usual"
    return "<answer>" + re.search(r"Player (\d): odd", request.context.text)[1] + "</answer>"


def escapes(request, index: int) -> str:
    """The spy's clue reads like any other, and a civilian is voted for: whoever is player 1 or 2
    and not the spy."""
    if "Which player" not in request.context.text:
        return "odd" if request.context.media[0].ops else "usual"
    spy = re.search(r"Player (\d): odd", request.context.text)[1]
    return f"<answer>{'2' if spy == '1' else '1'}</answer>"


def played(says, game: SpyGame | None = None, guidance=None) -> Group:
    rollouts, engine = collect(game or SpyGame(n=2), says, guidance=guidance)
    group = Group(sample=asked(), rollouts=tuple(rollouts))
    return judge(EnvironmentReturn(), [group], Doors({"solver": engine}, 0, "s")).groups[0]


def by_phase(signals, group: Group, phase: str) -> dict[bool, list[float]]:
    """Advantages of spies and of civilians."""
    notes = {r.id: r.sampling for r in group.rollouts}
    found: dict[bool, list[float]] = {True: [], False: []}
    for s in signals:
        if notes[s.rollouts[0]]["phase"] == phase:
            found[notes[s.rollouts[0]]["spy"]].append(s.advantage)
    return found


def organized(group: Group, state=None, **options):
    return vision_zero(exact, **options).learn["solver"].organizer([group], state or {}, "k")


def test_the_signs_of_clues_are_right():
    caught = played(finds)
    signals, state, guidance = organized(caught)
    clues = by_phase(signals, caught, "clue")
    assert len(signals) == 16 and guidance == {"phase": "clue"}, "clues are learned first"
    assert all(a < 0 for a in clues[True]), "a caught spy"
    assert all(a > 0 for a in clues[False]), "civilians who helped"
    free = played(escapes)
    clues = by_phase(organized(free)[0], free, "clue")
    assert all(a > 0 for a in clues[True]), "a spy that got away"
    blamed = {r.id for r in free.rollouts if r.sampling.get("votes") and not r.sampling["spy"]}
    assert all(s.advantage < 0 for s in organized(free)[0] if s.rollouts[0] in blamed)
    assert set(state["baseline"]) == {f"solver/{p}/{s}" for p in ("clue", "vote")
                                      for s in (True, False)}


def test_one_mean_over_clues_and_votes_has_the_signs_wrong():
    """Why the phases are kept apart: the civilians' good clues are punished."""
    caught = played(finds)
    mixed = by_phase(GroupAdvantage()([caught], "k"), caught, "clue")
    assert all(a < 0 for a in mixed[False])


def test_votes_are_measured_within_their_game():
    def says(request, index):
        text = finds(request, index)
        mine = re.search(r"You are player (\d)", request.context.text)[1]
        return "<answer>none</answer>" if "answer" in text and mine == "3" else text

    group = played(says, SpyGame(n=3))
    made, _, _ = organized(group, {"phases": {"now": "vote", "steps": 0, "right": 0.5}})
    votes = by_phase(made, group, "vote")
    assert len(made) == len(votes[True] + votes[False]) == 12
    notes = {r.id: r.sampling for r in group.rollouts}
    for game in ("g0", "g1", "g2"):
        own = [s.advantage for s in made if notes[s.rollouts[0]]["game"] == game]
        assert sum(own) == pytest.approx(0, abs=1e-6)
    for s in made:
        voted = notes[s.rollouts[0]].get("voted")
        assert voted is None or (s.advantage > 0) == (voted == "right")


def test_clue_votes_read_what_the_game_notes():
    group = played(finds, SpyGame(n=2, decisions=3), {"phase": "vote"})
    assert sum(r.sampling["phase"] == "vote" for r in group.rollouts) == 2 * 4 * 3
    paid = ClueVotes()(group)
    for r, own, verdict in zip(group.rollouts, group.verdicts, paid, strict=True):
        clue = r.sampling["phase"] == "clue"
        assert verdict.score == (pytest.approx(own.score) if clue else None)
        assert ("votes" in r.sampling) == clue
    part = group.model_copy(update={"verdicts": (), "rollouts": tuple(
        r for r in group.rollouts if r.sampling["game"] == "g0" or not r.sampling["spy"])})
    for r, verdict in zip(part.rollouts, ClueVotes()(part), strict=True):
        judged = r.sampling["phase"] == "clue" and r.sampling["game"] == "g0"
        assert (verdict.score is not None) == judged, "a game without its spy is not whole"


def voted(right: int, of: int, phase: str = "vote") -> Group:
    group = played(finds, SpyGame(rounds=1))
    votes = [r for r in group.rollouts if "voted" in r.sampling]
    civilians = [r.model_copy(update={"sampling": {
        **r.sampling, "voted": "right" if i < right else "wrong"}})
        for i, r in enumerate((votes * of)[:of])]
    clue = next(r for r in group.rollouts if r.sampling["phase"] == "clue")
    return Group(sample=asked(), rollouts=(clue, *civilians),
                 verdicts=(Verdict(score=0.1),) * (of + 1))


def test_phases_change_with_the_votes_and_not_before():
    step = Alternate(easy=0.9, hard=0.6, least=2, decay=0.5)
    state: dict = {}
    #        right of 10, phase that is learned, phase of the coming step, running share
    table = [(0, "clue", "clue", 0.0), (10, "clue", "vote", 0.5), (10, "vote", "vote", 0.75),
             (10, "vote", "vote", 0.875), (10, "vote", "clue", 0.9375),
             (2, "clue", "clue", 0.56875), (8, "clue", "clue", 0.684375),
             (0, "clue", "vote", 0.3421875)]
    for right, now, coming, share in table:
        (kept,), update = step([voted(right, 10)], state)
        assert {r.sampling["phase"] for r in kept.rollouts} == {now}
        assert update["guidance"] == {"phase": coming}
        assert update["phases"]["now"] == coming
        assert update["phases"]["right"] == pytest.approx(share)
        state |= update
    nothing, update = step([Group(sample=asked(), rollouts=())], {})
    assert nothing[0].rollouts == () and update["phases"]["right"] is None
    for bad in ({"hard": 0.95}, {"least": 0}, {"decay": 1.0}, {"first": "votes"}):
        with pytest.raises(SelfloopError):
            Alternate(**bad)


def test_what_is_noted_alike():
    group = played(finds)
    (clues,) = Noted("phase", "clue")([group])
    assert len(clues.rollouts) == len(clues.verdicts) == 16
    assert not Noted("phase", "no such")([group])[0].rollouts
    parts = Apart(("game", "phase"))([group])
    assert [len(p.rollouts) for p in parts] == [8, 4, 8, 4]
    assert {p.sample.id for p in parts} == {group.sample.id}
    with pytest.raises(SelfloopError, match="names of notes"):
        Apart(())
    only = Marked(AsScored(), "phase", value="vote")([group], "k")
    assert len(only) == 8 and len(Marked(AsScored(), "phase")([group], "k")) == 24
    assert len(Marked(AsScored(), "phase", True, "vote")([group], "k")) == 16


def test_baselines_tell_spies_from_civilians():
    step = RunningBaseline(decay=0.5, by=("phase", "spy"))
    group = played(finds)
    _, update = step([group], {})
    means = update["baseline"]
    assert means["solver/clue/True"] < 0 < means["solver/clue/False"]
    assert means["solver/vote/True"] == -0.5 and means["solver/vote/False"] == 0.5
    lower, _ = step([group], update)
    for r, before, after in zip(group.rollouts, group.verdicts, lower[0].verdicts, strict=True):
        own = means[f"solver/{r.sampling['phase']}/{r.sampling['spy']}"]
        assert after.score == pytest.approx(before.score - own)


@pytest.mark.parametrize("op", ["blurr", "page", "region", ""])
def test_an_operation_that_is_none_is_refused_when_built(op):
    with pytest.raises(SelfloopError, match=r"SpyGame\(op=.*there are: blank"):
        SpyGame(op=op)
    with pytest.raises(SelfloopError):
        vision_zero(exact, op=op)


def test_votes_without_tags_and_words_of_one_s_own():
    assert parse_vote("Player 3.", 4, tags=False) == (2, True)
    assert parse_vote("3 5", 4, tags=False) == (None, False)
    game = SpyGame(rounds=1, rules="{me} of {players} {else}", clue="say", vote="who ?", tags=False)
    rollouts, engine = collect(game, lambda r, i: "2")
    assert engine.asked[0].context.text == "1 of 4 {else}\nsay"
    assert {r.sampling.get("voted") for r in rollouts if r.sampling["phase"] == "vote"} <= {
        "right", "wrong", None}
    assert draws_of(vision_zero(exact)) == 4 * (2 + 2)


# -- whole runs -----------------------------------------------------------------------------------


def test_a_run_on_the_toy_engine_alternates(tmp_path):
    loop = vision_zero(exact, games=2, rounds=1, op="blank", tags=False, max_new_tokens=1,
                       least=1, samples=4, steps=3, iterations=1, lr=0.05)
    run(replace(loop, gate=None), toyland.samples(tmp_path / "data", 6),
        ToyEngine(("1", "2", "3", "4"), contexts=512, seed=3), tmp_path / "run",
        dev=toyland.samples(tmp_path / "data", 2, first=6))
    found = RunFolder(tmp_path / "run")
    learned, left = [], [found.manifest(step)["guidance"]["phase"] for step in range(3)]
    for step in range(3):
        notes = {r.id: r.sampling for g in found.groups(step) for r in g.rollouts}
        votes = sum(n["phase"] == "vote" for n in notes.values())
        now = "clue" if not step else left[step - 1]
        assert votes == 4 * 2 * 4 * (2 if now == "vote" else 1), "decisions, while they are learned"
        signals = found.signals(step, "solver")
        assert signals and {notes[s.rollouts[0]]["phase"] for s in signals} == {now}
        learned.append(now)
    assert learned == ["clue", "vote", "vote"], "a model that votes at random learns to vote"


def test_vision_zero_on_the_digits_seed(tmp_path):
    digits.write(tmp_path / "data", "train", 10, seed=0)
    samples = list(load(tmp_path / "data" / "train.jsonl"))
    loop = vision_zero(exact, games=1, rounds=1, op="blank", tags=False, max_new_tokens=8,
                       rules="", clue=digits.prompts["read"], vote=digits.prompts["even"],
                       samples=4, steps=2, iterations=1, lr=1e-5)
    (done,) = run(replace(loop, gate=None), samples[:6], HFEngine(str(SEED), threads=1),
                  tmp_path / "run", dev=samples[6:])
    assert done.labels_answer_only == done.labels_full == 0 and not loop.labels_read
    found = RunFolder(tmp_path / "run")
    for group in found.groups(0):
        seen = {r.sampling["player"]: r.context.media[0] for r in group.rollouts}
        assert sum(m.changed for m in seen.values()) == 1
    assert found.json("steps", "000000", "learned.json")["solver"]["updates"] == 1


def test_reachable_from_run_yaml():
    config = RunConfig.model_validate({
        "data": {"train": "train.jsonl"}, "model": "embedded", "verifier": "exact",
        "method": "vision_zero", "options": {"games": 3, "op": "blur", "max_new_tokens": 8}})
    told = repr(build_loop(config))
    assert all(part in told for part in ("n=3", "op='blur'", "Alternate(", "by=('phase', 'spy')"))


def test_scripted_players_are_asked_in_turn():
    engine = Scripted(finds)
    rollouts, _ = collect(SpyGame(n=1), engine)
    assert [r.sampling["player"] for r in rollouts] == [0, 1, 2, 3] * 3
