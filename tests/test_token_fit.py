"""A reward a token from how well words fit the picture, and what is learned from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import toyland
from scripted import asked
from selfloop.collect.independent import Independent
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.optimize.losses.rl import GRPO
from selfloop.organize.chain import Chain
from selfloop.organize.refine.filters import HardToFind
from selfloop.organize.token_rewards import TokenRewards
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.token_fit import TokenFit, baselines
from selfloop.pictures import Library
from selfloop.roles import Optim, Sampling, SelfloopError
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.types import Group, Part, Rollout, Turn, Verdict


@dataclass(frozen=True)
class Fits:
    """An encoder that knows what each word scores, whatever the picture."""

    known: tuple[tuple[str, float], ...] = (("cat", 0.9), ("dog", 0.1), ("mat", 0.5))

    def __call__(self, picture: Image.Image, texts: Sequence[str]) -> list[float]:
        return [dict(self.known).get(text, 0.5) for text in texts]


def letters(ids: Sequence[int], role: str = "solver") -> str:
    return "".join(chr(i) for i in ids if i)


def answered(sample, text: str, mask: tuple[int, ...] | None = None) -> Rollout:
    """One letter a token, and an end."""
    ids = (*map(ord, text), 0)
    return Rollout(id="r", sample=sample.id, context=sample.context, output=(Part(text=text),),
                   turns=(Turn(token_ids=ids, media=sample.media, logprobs=(-1.0,) * len(ids),
                               loss_mask=mask),))


@pytest.fixture
def sample(tmp_path):
    return toyland.samples(tmp_path, 1)[0]


def test_truth_table(sample):
    fit = TokenFit(right=0.6, wrong=0.4, margin=0.1, encoder=Fits())
    assert [round(fit.reward(s), 9) for s in (0.9, 0.7, 0.69, 0.5, 0.31, 0.3, 0.1)] == [
        0.3, 0.1, 0, 0, 0, -0.1, -0.3]
    found = fit(answered(sample, "A cat, a Dog on mat"), sample, letters)
    assert [(a, b, round(r, 9)) for a, b, r in found.spans] == [
        (2, 5, 0.3), (9, 12, -0.3), (16, 19, 0)]  # "on" is too short
    assert found.score == pytest.approx(0.0) and found.parts["fit"] == pytest.approx(0.5)
    expected = [0.0] * 20
    expected[2:5], expected[9:12] = [0.3] * 3, [-0.3] * 3
    assert found.token_scores == pytest.approx(expected)


def test_what_is_not_drawn_earns_nothing(sample):
    fit = TokenFit(right=0.6, wrong=0.4, encoder=Fits(), words=("cat",))
    mask = (0, 0, *(1,) * 4)
    assert fit(answered(sample, "a cat", mask), sample, letters).token_scores == pytest.approx(
        (0.3, 0.3, 0.3, 0.0))
    assert fit(answered(sample, "the dog"), sample, letters).score is None, "not one of the words"
    assert fit(answered(sample, "cat"), asked(n_pictures=0), letters).score is None
    assert fit(answered(sample, "cat"), sample).token_scores is None, "nobody can say what is where"
    changed = answered(sample, "cat").model_copy(update={"output": (Part(text="cats"),)})
    assert fit(changed, sample, letters).token_scores is None


def test_bad_settings():
    for right, wrong, margin in ((0.1, 0.2, 0), (0.2, 0.1, -1), (float("nan"), 0, 0)):
        with pytest.raises(SelfloopError, match="expected finite numbers, right at least wrong"):
            TokenFit(right=right, wrong=wrong, margin=margin)


def test_baselines_are_means():
    blank = Image.new("RGB", (4, 4))
    known = [(blank, "cat", True), (blank, "mat", True), (blank, "dog", False)]
    assert baselines(Fits(), known) == pytest.approx((0.7, 0.1))
    with pytest.raises(SelfloopError, match="got 2 and 0"):
        baselines(Fits(), known[:2])


def test_token_rewards(sample):
    drawn = answered(sample, "cat")
    groups = [Group(sample=sample, rollouts=(drawn,) * 3, verdicts=(
        Verdict(score=1, token_scores=(0.5, 0.0, -1.0, 0.0)), Verdict(score=1),
        Verdict(score=0, token_scores=(0.0,) * 4)))]
    (made,) = TokenRewards(scale=2.0)(groups)
    assert made.advantage == (1.0, 0.0, -2.0, 0.0)
    assert made.branches["answer"].turns == drawn.turns
    bad = groups[0].model_copy(update={"verdicts": (Verdict(token_scores=(1.0,)),) * 3})
    with pytest.raises(SelfloopError, match="1 token scores for 4 drawn tokens"):
        TokenRewards()([bad])


def test_a_loop_learns_to_name_what_fits(tmp_path):
    """End to end: "yes" fits every picture and "no" none, so the model comes to say yes."""
    words = ("yes", "no", "left", "right")
    fits = Fits((("yes", 0.9), ("no", 0.1)))
    loop = Loop(
        name="fisao", seed=3, iterations=3, gate=None,
        sampler=Independent(n=6, max_new_tokens=3),
        verifier=TokenFit(right=0.6, wrong=0.4, encoder=fits, shortest=2),
        learn={"solver": Learn(organizer=Chain(maker=TokenRewards()), loss=GRPO(),
                               optim=Optim(lr=0.3, updates=8, batch=64))},
        evaluation=Evaluation(metric=exact, sampling=Sampling(max_new_tokens=3)))
    run(loop, toyland.samples(tmp_path / "data", 8), {"solver": ToyEngine(words, seed=1)},
        tmp_path / "run", library=Library(tmp_path / "images"))
    said = [[r.text for g in RunFolder(tmp_path / "run").groups(step) for r in g.rollouts]
            for step in (0, 2)]
    first, last = (sum(t.count("yes") - t.count("no") for t in texts) for texts in said)
    assert last > first + 10


def test_hard_to_find(sample):
    def group(iterations: int, solved: bool) -> Group:
        one = answered(sample, "cat").model_copy(update={
            "sampling": {"iterations": iterations, "solved": solved}})
        return Group(sample=sample, rollouts=(one,))

    easy, hard, never = group(5, True), group(6, True), group(3, False)
    assert HardToFind()([easy, hard, never]) == [hard, never]
    with pytest.raises(SelfloopError, match=r"draw with search\.TreeSearch"):
        HardToFind()([Group(sample=sample, rollouts=(answered(sample, "a"),))])


def test_reachable_from_run_yaml(tmp_path):
    from clidata import with_splits
    from selfloop.config import load_config
    from selfloop.methods import build_loop

    path = with_splits(tmp_path)
    path.write_text(path.read_text().replace("n: 2, max_new_tokens: 12, updates: 2, ", ""))
    looks = "selfloop.testbeds.scenes_looks:ColourWords"
    told = repr(build_loop(load_config(path, [
        "method=fisao", f"options.encoder={looks}", "options.right=0.9", "options.wrong=0.4",
        "options.words=[red, blue]"])))
    assert all(part in told for part in ("ColourWords()", "right=0.9", "TokenRewards", "'red'"))


def test_on_the_scenes_seed(tmp_path):
    """Real tokens of a real tokenizer: what a colour earned stands at its tokens alone."""
    from selfloop.data import load
    from selfloop.engines.hf import HFEngine
    from selfloop.recipes.fisao import fisao
    from selfloop.testbeds import scenes

    pool = load(scenes.write(tmp_path / "pool", "train", 8, 3, tasks=("caption",)))
    loop = fisao(exact, right=0.9, wrong=0.5, words=scenes.COLOURS, n=3, lr=1e-5, steps=2,
                 encoder="selfloop.testbeds.scenes_looks:ColourWords", samples=8, iterations=1,
                 max_new_tokens=scenes.TOKENS)
    engine = HFEngine(str(Path(scenes.__file__).parent / "scenes_seed"), threads=1)
    (done,) = run(loop, pool, engine, tmp_path / "run", dev=pool)
    assert not loop.labels_read and done.counts["signals_solver"] > 5
    folder, seen = RunFolder(tmp_path / "run"), 0
    for group in folder.groups(0):
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            if verdict.token_scores is None:
                continue
            (turn,) = rollout.turns
            words = [engine.decode([t]).strip() for t in turn.token_ids]
            for word, score in zip(words, verdict.token_scores, strict=True):
                seen += score != 0
                assert score == 0 or word in scenes.COLOURS, (word, score)
    assert seen > 5
    assert folder.json("steps", "000001", "learned.json")["solver"]["updates"] > 0
