"""Environments and tools that show pictures, from the first draw to learned weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from killing import contents
from scripted import Scripted, asked, collect
from selfloop import keys, store
from selfloop.collect.drawing import draw
from selfloop.collect.env import EnvSampler
from selfloop.collect.gymnasium_env import GymEnvironment
from selfloop.collect.tools import Action, PictureTool, read_brackets, read_tags
from selfloop.config import SEED
from selfloop.data import load
from selfloop.doors import Doors
from selfloop.engines.hf import HFEngine
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.signals import GroupAdvantage
from selfloop.organize.verify.environment import EnvironmentReturn, LastTurn
from selfloop.organize.verify.rules import exact
from selfloop.pictures import Library
from selfloop.recipes.supervised import supervised
from selfloop.roles import Optim, SelfloopError, reads
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.testbeds import digits, walls
from selfloop.types import Branch, Sample

TASKS = ("largest", "smallest", "even")
RIGHT = LastTurn(exact)


# -- what a turn asks for -------------------------------------------------------------------------


@pytest.mark.parametrize(("read", "text", "found"), [
    (read_tags, "<crop>0,0,500,500</crop>", Action("crop", (0, 0, 500, 500))),
    (read_tags, "<zoom>0,1000</zoom>", Action("zoom", (0, 500, 500, 1000))),
    (read_tags, "<box>1,2,300,400</box>", Action("box", (1, 2, 300, 400))),
    (read_tags, "It is a cat.", None),
    (read_tags, "<crop>0,0,5,5</crop> <answer>a cat</answer>", None),
    (read_brackets, "[0,0,500,500]", Action("crop", (0, 0, 500, 500))),
    (read_brackets, "see [500, 0, 1000, 500] .", Action("crop", (500, 0, 1000, 500))),
    (read_brackets, "[500,500]", Action("zoom", (250, 250, 750, 750))),
    (read_brackets, "3 5 = 8", None),
])
def test_what_a_turn_asks_for(read, text, found):
    assert read(text) == found


@pytest.mark.parametrize("text", [
    "[0,0,500,500] [1,2]", "[", "[]", "[a]", "[0,0,500]", "[0,0,9999,500]", "[500,0,0,500]",
    "[[0,0,500,500]]", "[0,0,10,10]"])
def test_unreadable_brackets_cost_a_use_and_are_explained(text):
    assert isinstance(read_brackets(text), str)
    tool = PictureTool(uses=1, read=read_brackets, instruction="")()
    assert tool.reset(asked(), "k") == asked().context
    shown, reward, done = tool.step(text)
    assert shown[0].startswith("That could not be read") and not reward and not done
    assert tool.step("[0,0,500,500]") == ((), 0.0, True), "no use is left"


# -- walls ----------------------------------------------------------------------------------------


def test_a_part_of_a_wall_is_the_picture_it_was_made_of():
    items = digits.items("train", 8, 3)[4:]
    wall = walls.picture(items)
    assert wall.size == (64, 64)
    for number, item in enumerate(items, 1):
        assert np.array_equal(walls.part(wall, number), digits.picture(item))
    row = walls.rows("train", 2, 3)[1]
    assert row["parts"] == [digits.row(item)["digits"] for item in items]
    assert row["answer"] == digits.answer_to(row["task"], row["parts"][row["place"] - 1])
    assert row["prompt"].endswith(f"{walls.PLACES[row['place'] - 1]} ?")
    (box,) = [read_brackets(b) for b in walls.BOXES[row["place"] - 1:][:1]]
    tool = PictureTool(read=read_brackets, instruction="")()
    tool.reset(asked(), "k")
    assert tool.step(walls.BOXES[2])[0][0].ops[0].key == "0,500,500,1000" and box.tool == "crop"


# -- stored, masked, resumed ----------------------------------------------------------------------


def look_and_learn(folder, data):
    """Two steps of reinforcement on walls, on the toy engine; `data` holds the walls."""
    samples = load(data / "walls-train.jsonl")
    loop = Loop(
        name="peek", sampler=EnvSampler(walls.Peek(), n=8, max_turns=2, max_new_tokens=2),
        verifier=RIGHT, gate=None, iterations=1, steps=2, samples=6, shard=3,
        learn={"solver": Learn(organizer=Chain(maker=GroupAdvantage()), loss=GRPO(),
                               optim=Optim(lr=0.1, batch=64))},
        evaluation=Evaluation(metric=RIGHT, sampler=EnvSampler(
            walls.Peek(), n=1, max_turns=2, max_new_tokens=2, temperature=0.0)))
    run(loop, samples, ToyEngine([*"0123"], contexts=512), folder, dev=samples[:4])
    return RunFolder(folder)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    data, folder = tmp_path_factory.mktemp("walls"), tmp_path_factory.mktemp("run")
    walls.write(data, "train", 12, 0, ("even",))
    return data, look_and_learn(folder, data)


def test_observed_pictures_are_stored_and_opened_again(played):
    _, found = played
    elsewhere = Library(found.images)
    for group in found.groups(0):
        for rollout in group.rollouts:
            wall, seen = rollout.turns[1].media
            assert wall == group.sample.media[0] and not seen.ops
            name = seen.model_copy(update={"meta": {}})
            shown = elsewhere.open(name)
            text = rollout.output[0].text
            number = next((int(c) for c in text if c in "1234"), 1)
            assert np.array_equal(shown, walls.part(Library().open(wall), number))
            stored = found.images / f"{seen.sha256}.png"
            assert hashlib.sha256(stored.read_bytes()).hexdigest() == seen.sha256


def test_only_drawn_tokens_are_trained(played):
    _, found = played
    engine = ToyEngine([*"0123"], contexts=512)
    signals = found.signals(0, "solver")
    assert signals
    for signal in signals:
        branch: Branch = signal.branches["answer"]
        (row,) = engine.rows(branch)
        drawn = [t for turn in branch.turns for t in turn.token_ids]
        trained = [t for t, on in zip(row.token_ids, row.trained, strict=True) if on]
        assert trained == drawn and len(branch.turns) == 2
        assert len(row.token_ids) > branch.turns[0].prompt_token_ids.__len__() + len(drawn)
        assert [m.sha256 for m in row.media] == [m.sha256 for m in branch.turns[1].media]


class Killed(BaseException):
    """Goes through everything, as a kill does; real ones are tried in test_kill.py."""


@pytest.mark.parametrize("moment", [9, 17, 26, 40])
def test_killed_and_resumed_equals_uninterrupted(played, tmp_path, monkeypatch, moment):
    data, whole = played
    folder, plain, reached = tmp_path / "run", store.boundary, []

    def boundary(name):
        plain(name)
        reached.append(name)
        if len(reached) == moment:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(store, "boundary", boundary)
        look_and_learn(folder, data)
    look_and_learn(folder, data)

    def but_places(where):  # the pictures' meta names the run's own folder
        return {k: v for k, v in contents(where).items() if not k.endswith(".parquet")}
    assert but_places(folder) == but_places(whole.path)
    for step in range(2):
        assert bare(RunFolder(folder).groups(step)) == bare(whole.groups(step))


def bare(groups) -> list:
    """Groups without the folder that their pictures lie in."""
    def stripped(value):
        if isinstance(value, dict):
            return {k: stripped(v) for k, v in value.items() if k != "uri"}
        return [stripped(v) for v in value] if isinstance(value, list) else value
    return [stripped(g.model_dump(mode="json")) for g in groups]


def test_only_the_models_own_last_words_are_judged():
    said = ["2", ""]
    sample = asked(answer="4").model_copy(update={"media": (), "prompt": asked("q", 0).prompt})
    (rollout,), _ = collect(EnvSampler(Telling, n=1, max_turns=2), lambda r, i: said[
        sum(m.role == "assistant" for m in r.context.prompt)], sample)
    assert exact(rollout, "4").score == 1.0, "the environment's words, as if they were the model's"
    assert RIGHT(rollout, answer="4").score == 0.0
    (rollout,), _ = collect(EnvSampler(Telling, n=1, max_turns=1), lambda r, i: "4", sample)
    assert RIGHT(rollout, answer="4").score == 1.0 and reads(RIGHT) == {"answer"}


@dataclass
class Telling:
    """Gives the answer away, and goes on."""

    def reset(self, sample: Sample, key: str):
        return sample.context

    def step(self, text: str):
        return ("4",), 0.0, False


@dataclass
class Odd:
    def reset(self, sample: Sample, key: str):
        return sample.context

    def step(self, text: str):
        return (3.5,), 0.0, False


def test_what_is_no_observation_is_refused():
    with pytest.raises(SelfloopError, match="an environment showed float; expected texts"):
        collect(EnvSampler(Odd, n=1), lambda r, i: "a")


def test_a_picture_that_cannot_be_stored_is_refused(played):
    sample = load(played[0] / "walls-train.jsonl")[0]
    with pytest.raises(SelfloopError, match="keep=Library"):
        draw(EnvSampler(walls.Peek(), n=1, max_turns=2), [sample],
             Doors({"solver": Scripted(lambda r, i: "2")}, 0, "s"), {})


# -- gymnasium ------------------------------------------------------------------------------------


class Corridor:
    """Six squares in a row, in gymnasium's shape; the last one pays 1."""

    made: list[Corridor] = []

    def __init__(self) -> None:
        self.at, self.closed = 0, False
        Corridor.made.append(self)

    def reset(self, seed=None):
        self.at = seed % 4
        return self.at, {}

    def step(self, action):
        self.at += 1 if action == 1 else -1
        return self.at, float(self.at == 5), self.at == 5, self.at < 0, {}

    def render(self):
        frame = np.zeros((6, 6, 3), np.uint8)
        frame[:, max(0, self.at)] = 255
        return frame

    def close(self):
        self.closed = True


def corridor_run(says, seed=3, n=1, tmp=None):
    sample = Sample(prompt=asked("go to the end", 0).prompt, meta={"env_seed": seed})
    library = Library(tmp)
    sampler = EnvSampler(GymEnvironment(Corridor, ("left", "right")), n=n)
    (group,) = draw(sampler, [sample], Doors({"solver": Scripted(says)}, 0, "s",
                                             keep=library.keep), {})
    return group.rollouts, library


def test_a_gymnasium_environment_is_played_by_naming_actions(tmp_path):
    (rollout,), library = corridor_run(lambda r, i: "go right", tmp=tmp_path)
    assert rollout.sampling["return"] == 1.0 and len(rollout.turns) == 2
    assert "Say one of: left, right." in rollout.context.text
    columns = [int(np.asarray(library.open(m)).any(axis=(0, 2)).argmax())
               for m in rollout.turns[-1].media]
    assert columns == [3, 4] and Corridor.made[-1].closed
    assert EnvironmentReturn()(rollout).score == 1.0


def test_a_turn_without_one_action_moves_nothing(tmp_path):
    words = iter(["left or right", "hm", "right", "right"])
    (rollout,), _ = corridor_run(lambda r, i: next(words), tmp=tmp_path)
    assert rollout.sampling == {**rollout.sampling, "return": 1.0, "turns": 4}
    assert len(rollout.turns[-1].media) == 2, "no new picture where nothing moved"


def test_gymnasium_says_what_is_missing(tmp_path):
    with pytest.raises(SelfloopError, match="a word of its own"):
        GymEnvironment(Corridor, ("left", "left"))
    flat = replace(GymEnvironment(Corridor, ("left", "right")))
    episode = flat()
    episode.env.render = lambda: np.zeros((3, 3))
    with pytest.raises(SelfloopError, match="no RGB array"):
        episode.reset(asked(n_pictures=0), "k")
    try:
        import gymnasium  # noqa: F401
    except ImportError:
        with pytest.raises(SelfloopError, match="needs gymnasium"):
            GymEnvironment("CartPole-v1", ("left", "right"))()


# -- learned on the embedded model ----------------------------------------------------------------

LOOKS = {"peek": ("1", "2", "3", "4"), "crop": walls.BOXES}
ENVIRONMENTS = {"peek": walls.Peek(), "crop": PictureTool(uses=1, read=read_brackets,
                                                          instruction="")}


def playing(name: str, n: int, temperature: float = 1.0) -> EnvSampler:
    return EnvSampler(ENVIRONMENTS[name], n=n, max_turns=2, temperature=temperature,
                      max_new_tokens=12 if name == "peek" else 24)


def cold_start(name: str, samples, keep) -> list[Sample]:
    """How to look, at random, so that nothing is told of where; and how to answer what is seen."""
    made = []
    for sample in samples:
        anywhere = LOOKS[name][int(keys.generator(f"cold/{sample.id}").integers(4))]
        made.append(sample.model_copy(update={"rationale": anywhere,
                                              "meta": {**sample.meta, "task": "look"}}))
        episode, look = ENVIRONMENTS[name](), LOOKS[name][int(sample.meta["place"]) - 1]
        context = episode.reset(sample, "k")
        shown = [keep(part) if isinstance(part, Image.Image) else part
                 for part in episode.step(look)[0]]
        context = context.said("assistant", look).said("user", *shown)
        made.append(Sample(prompt=context.prompt, media=context.media, answer=sample.answer,
                           rationale=sample.rationale))
    return made


def started(name: str, folder, n: int, updates: int):
    """(training walls, dev walls, the library, an engine after the cold start)."""
    walls.write(folder, "train", 2 * n, 0, TASKS)
    walls.write(folder, "dev", n // 2, 0, TASKS)
    train, dev = (list(load(folder / f"walls-{split}.jsonl")) for split in ("train", "dev"))
    library, engine = Library(folder / "images"), HFEngine(str(SEED), threads=1)
    loop = supervised(exact, updates=updates, batch=32, lr=1e-3, views=0.0, iterations=1)
    run(replace(loop, evaluation=None), cold_start(name, train[:n], library.keep), engine,
        folder / "cold", library=library)
    engine.save(folder / "started")
    return train[n:], dev, library, HFEngine(str(folder / "started"), threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peek", "crop"])
def test_collected_organized_and_learned_on_the_embedded_model(name, tmp_path):
    train, dev, library, engine = started(name, tmp_path, n=60, updates=60)
    loop = Loop(
        name=name, sampler=playing(name, 8), verifier=RIGHT, gate=None, iterations=1, steps=1,
        samples=12, learn={"solver": Learn(
            organizer=Chain(maker=GroupAdvantage()), loss=GRPO(), optim=Optim(lr=1e-5, batch=512))},
        evaluation=Evaluation(metric=RIGHT, sampler=playing(name, 1, 0.0)))
    (done,) = run(loop, train, engine, tmp_path / "run", dev=dev[:10], library=library)
    found = RunFolder(tmp_path / "run")
    signals = found.signals(0, "solver")
    assert signals and found.json("steps", "000000", "learned.json")["solver"]["updates"] == 1
    assert 0 <= done.dev["greedy"] <= 1
    two = [s for s in signals if len(s.branches["answer"].turns) == 2]
    assert two, "the model looks"
    for signal in two:
        branch = signal.branches["answer"]
        (row,) = engine.rows(branch)
        trained = [t for t, on in zip(row.token_ids, row.trained, strict=True) if on]
        assert trained == [t for turn in branch.turns for t in turn.token_ids]
        for seen in branch.turns[1].media[1:]:  # none where the place could not be read
            assert bool(seen.ops) == (name == "crop") and library.open(seen).size[0] in (32, 64)
    assert any(len(s.branches["answer"].turns[1].media) == 2 for s in two), "something was shown"
