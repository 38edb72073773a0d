"""Outcome and process reward models: signals, losses, ranking figures, and both end to end."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from loss_rows import batch, f64, same, value
from loss_rows import scored as scored_rows
from selfloop.cli import main
from selfloop.config import load_config
from selfloop.data import load
from selfloop.doors import Doors
from selfloop.engines.hf import HFEngine
from selfloop.evaluate.ranking import answer_auc, auc, best_of, pair_accuracy, step_auc
from selfloop.methods import METHODS, build_loop
from selfloop.optimize.losses.reward import BradleyTerry, StepBCE
from selfloop.organize.judging import judge
from selfloop.organize.rewarded import ASK, OutcomePairs, StepLabels, judged
from selfloop.organize.verify.gold_steps import GoldSteps, split_named, words_in
from selfloop.organize.verify.process import Process
from selfloop.organize.verify.reward_model import OutcomeReward, StepReward, rewards
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.steps import ranker_named, steps_in
from selfloop.pictures import Library
from selfloop.recipes.process_reward import process_reward
from selfloop.recipes.reward_model import reward_model
from selfloop.roles import SelfloopError, reads
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.testbeds import digits, tiny_vlm
from selfloop.types import (
    Advantage,
    Branch,
    Context,
    Group,
    Message,
    Part,
    Rollout,
    Sample,
    Turn,
    Verdict,
)

SEED = Path(tiny_vlm.__file__).parent / "seed"
X = Branch(context=Context(prompt=()), text="x")


def asked(text: str = "how many ?", **more: object) -> Sample:
    return Sample(prompt=(Message(role="user", content=(Part(text=text),)),), **more)


def group(sample: Sample, said: dict[str, Verdict]) -> Group:
    rollouts = tuple(Rollout(id=f"{sample.id}/{i}", sample=sample.id, context=sample.context,
                             turns=(Turn(token_ids=(1,)),), output=(Part(text=text),))
                     for i, text in enumerate(said))
    return Group(sample=sample, rollouts=rollouts, verdicts=tuple(said.values()))


def scores(sample: Sample, **said: float | None) -> Group:
    return group(sample, {text: Verdict(score=s) for text, s in said.items()})


# -- what is judged -------------------------------------------------------------------------------

def test_an_answer_is_judged_as_a_turn_of_the_conversation() -> None:
    branch = judged(asked().context, "3 5", "right ?", "good")
    assert [(m.role, m.content[0].text) for m in branch.context.prompt] == [
        ("user", "how many ?"), ("assistant", "3 5"), ("user", "right ?")]
    assert branch.text == "good"


def test_pairs_of_judged_answers() -> None:
    one, other = asked(), asked("which ?")
    made = OutcomePairs()([scores(one, a=1.0, b=0.0, c=None), scores(other, a=1.0, b=1.0)], "k")
    (pair,) = made
    said = {name: b.context.prompt[1].content[0].text for name, b in pair.branches.items()}
    assert said == {"chosen": "a", "rejected": "b"} and pair.sample == one.id
    assert pair.branches["chosen"].context.prompt[2].content[0].text == ASK
    assert BradleyTerry().accepts(pair) and not StepBCE().accepts(pair)


def test_steps_become_beginnings_with_their_mean_label() -> None:
    def steps(*labels: float) -> Verdict:
        return Verdict(score=1.0, spans=tuple((2 * i, 2 * i + 1, x) for i, x in enumerate(labels)))

    made = StepLabels()([group(asked(), {
        "3 5": steps(1, 0), "3 6": steps(0, 1), "3": Verdict(score=1.0), "7": steps(-2)})], "k")
    found = {s.branches["answer"].context.prompt[1].content[0].text: s.advantage for s in made}
    assert found == {"3": 0.5, "3 5": 0.0, "3 6": 1.0}, "none without spans, none outside [0, 1]"
    assert all(StepBCE().accepts(s) for s in made)
    assert [len(s.rollouts) for s in made] == [2, 1, 1]


@pytest.mark.parametrize(("text", "score", "labels"), [
    ("3 5 = 8", 1, [1, 1, 1, 1]), ("3 4 = 7", 0, [1, 0, 1, 0]), ("3 5", 0, [1, 1]),
    ("3 5 = 8 8", 0, [1, 1, 1, 1, 0]), ("", 0, []), ("3  5 = 8", 1, [1, 1, 1, 1]),
])
def test_gold_steps(text: str, score: float, labels: list[float]) -> None:
    (rollout,) = group(asked(), {text: Verdict()}).rollouts
    found = GoldSteps(words_in)(rollout, "3 5 = 8")
    assert found.score == score and [s for _, _, s in found.spans] == labels
    assert [text[a:b] for a, b, _ in found.spans] == text.split()
    assert GoldSteps(words_in)(rollout, None).score is None, "unknown is not zero"
    assert reads(GoldSteps()) == {"rationale"}


def test_splits_by_name() -> None:
    assert split_named("words") is words_in and split_named("lines") is steps_in
    assert split_named("selfloop.organize.verify.gold_steps:words_in") is words_in
    with pytest.raises(SelfloopError, match="steps 'line': expected lines, words or module:name"):
        split_named("line")
    with pytest.raises(SelfloopError, match="is str, which cannot be called"):
        split_named("selfloop.organize.rewarded:ASK")


# -- the step loss --------------------------------------------------------------------------------

def test_one_label_is_read_at_the_first_token_alone() -> None:
    rows = scored_rows([[0.0, 0.0], [0.0, 0.0]], mask=[[1, 1], [1, 1]],
                       others_BTK=[[[-0.1, -2.1], [-9, 4]], [[-3.0, 0.0], [1.0, 0.0]]])
    signals = [Advantage(branches={"answer": X}, advantage=a) for a in (1.0, (0.0, 0.5))]
    found = batch({"answer": rows}, advantage=[[1.0, 1.0], [0.0, 0.5]], signals=signals)

    def ce(v: float, label: float) -> float:
        p = 1 / (1 + math.exp(-v))
        return -label * math.log(p) - (1 - label) * math.log(1 - p)

    expected = (ce(2.0, 1.0) + ce(-3.0, 0.0) + ce(1.0, 0.5)) / 3
    assert float(value(StepBCE(), found)) == pytest.approx(expected)


def test_the_step_loss_is_the_cross_entropy_over_the_two_words() -> None:
    """TRL 1.16 has no trainer of process reward models; earlier ones took the mean cross-entropy
    over two classes on the steps' last tokens, which is this one with the words as classes."""
    rng = torch.Generator().manual_seed(0)
    words = torch.randn(8, 3, 2, generator=rng, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 2, (8, 3), generator=rng)
    ids = [tuple(float(x) for x in row) for row in labels]
    rows = scored_rows(torch.zeros(8, 3), others_BTK=None)
    rows = rows.__class__(rows.logp_BT, rows.mask_BT, others_BTK=words)
    found = batch({"answer": rows}, advantage=f64(labels), signals=[
        Advantage(branches={"answer": X}, advantage=a) for a in ids])
    theirs = torch.nn.functional.cross_entropy(words.reshape(-1, 2), 1 - labels.reshape(-1))
    same(value(StepBCE(), found), theirs, [words])


# -- figures --------------------------------------------------------------------------------------

def test_pairs_and_the_best_by_hand() -> None:
    a, b, c = asked("a"), asked("b"), asked("c")
    rule = [scores(a, x=1, y=0, z=0), scores(b, x=1, y=0), scores(c, x=1, y=1)]
    ours = [scores(a, x=0.9, y=0.2, z=0.9), scores(b, x=0.1, y=0.8), scores(c, x=0.5, y=None)]
    found = pair_accuracy(rule, ours)
    assert (found.value, found.count) == ((1 + 0.5 + 0) / 3, 3)
    assert found.low <= found.value <= found.high
    best = best_of(rule, ours)
    assert best.value == pytest.approx((0.5 + 0 + 1) / 3) and best.count == 3
    with pytest.raises(SelfloopError, match="no problem has right and wrong answers"):
        pair_accuracy(rule[2:], ours[2:])
    with pytest.raises(SelfloopError, match="no answer was judged by both"):
        best_of([scores(a, x=None)], [scores(a, x=1.0)])
    assert answer_auc(rule, ours).value == pytest.approx(roc_auc_score(
        [1, 0, 0, 1, 0, 1], [0.9, 0.2, 0.9, 0.1, 0.8, 0.5]))


def test_auc_equals_sklearns_and_its_interval_widens_with_clusters() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.4
    score = np.round(rng.normal(size=400) + right, 1)  # with ties
    alone = auc(list(score), list(right), list(range(400)))
    assert alone.value == pytest.approx(roc_auc_score(right, score), abs=1e-12)
    assert alone.low < alone.value < alone.high
    often = auc(*(list(np.repeat(x, 5)) for x in (score, right, range(400))))
    assert often.value == pytest.approx(alone.value)
    assert often.high - often.low == pytest.approx(alone.high - alone.low, rel=0.05)
    with pytest.raises(SelfloopError, match="auc: 3 of 3 are right; it needs some of each"):
        auc([1, 2, 3], [True] * 3, "abc")


def test_auc_of_steps_wants_equal_steps() -> None:
    def steps(*labels: float, shift: int = 0) -> Verdict:
        return Verdict(score=1.0, spans=tuple(
            (2 * i + shift, 2 * i + 1 + shift, x) for i, x in enumerate(labels)))

    rule = [group(asked(), {"3 5": steps(1, 0), "3 6": steps(1, 1)})]
    ours = [group(asked(), {"3 5": steps(0.9, 0.3), "3 6": steps(0.2, 0.8)})]
    assert step_auc(rule, ours).value == pytest.approx(2 / 3)
    other = [group(asked(), {"3 5": steps(0.9, 0.3, shift=1), "3 6": Verdict()})]
    with pytest.raises(SelfloopError, match="into other steps: give both the same split"):
        step_auc(rule, other)


# -- both, end to end -----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    digits.write(folder, "train", 24, seed=11)
    return folder / "train.jsonl"


def learned(loop: object, data: Path, folder: Path) -> tuple[list[Group], Path]:
    """The groups that the loop judged, and the trained model's folder."""
    engine = HFEngine(SEED, device="cpu")
    (done,) = run(loop, load(data), engine, folder)  # type: ignore[arg-type]
    assert done.counts["signals_solver"] > 10
    engine.save(folder / "model")
    return list(RunFolder(folder).groups(0)), folder / "model"


def judging(verifier: object, groups: list[Group]) -> list[Group]:
    return judge(verifier, groups, Doors({}, 0, "k")).groups  # type: ignore[arg-type]


def test_an_outcome_reward_model_on_digits(data: Path, tmp_path: Path) -> None:
    loop = reward_model(exact, n=4, updates=12, batch=16, lr=3e-4, max_new_tokens=10)
    assert loop.labels_read == {"verifier": frozenset({"answer"})}
    groups, model = learned(loop, data, tmp_path)
    rule = judging(exact, groups)
    before, after = (pair_accuracy(rule, judging(OutcomeReward(str(at), device="cpu"), groups))
                     for at in (SEED, model))
    assert before.count > 20 and after.value > max(0.8, before.value + 0.1), (before, after)
    again = HFEngine(model, device="cpu")
    again.bind(Library().open)
    branch = judged(groups[0].sample.context, groups[0].rollouts[0].text)
    ids = [[again.encode("yes")[0], again.encode("no")[0]]] * 2
    ((good, bad), _) = again.logprobs([branch], others=[ids])[0]
    (found,) = judging(OutcomeReward(str(model), device="cpu"), groups[:1])[0].verdicts[:1]
    assert found.parts["logit"] == pytest.approx(good - bad, abs=1e-5)
    assert found.score == pytest.approx(1 / (1 + math.exp(bad - good)), abs=1e-6)
    empty = groups[0].rollouts[0].model_copy(update={"output": ()})
    assert OutcomeReward(str(model))(empty, groups[0].sample).score is None
    with pytest.raises(SelfloopError, match="'yes' and 'yes' begin with the same token"):
        rewards(str(model), [branch], ("yes", "yes"), device="cpu")


def test_a_process_reward_model_on_digits(data: Path, tmp_path: Path) -> None:
    loop = process_reward(steps="words", n=2, updates=12, batch=24, lr=3e-4, max_new_tokens=10)
    assert loop.labels_read == {"verifier": frozenset({"rationale"})}
    groups, model = learned(loop, data, tmp_path)
    rule = judging(GoldSteps(words_in), groups)
    before, after = (step_auc(rule, judging(StepReward(str(at), split=words_in, device="cpu"),
                                            groups)) for at in (SEED, model))
    assert before.count > 100 and after.value > max(0.75, before.value + 0.1), (before, after)
    few = groups[:2]
    least, product = (judging(StepReward(str(model), how, words_in, device="cpu"), few)
                      for how in ("min", "prod"))
    for a, b in zip(least[0].verdicts, product[0].verdicts, strict=True):
        steps = [s for _, _, s in a.spans]
        assert a.score == min(steps) and b.score == pytest.approx(math.prod(steps))
    last = judging(Process(StepReward(str(model), split=words_in, device="cpu"), "last"), few)
    assert last[0].verdicts[0].score == least[0].verdicts[0].spans[-1][2]
    assert judging(StepReward(str(model), split=words_in, most=1, device="cpu"), few)[0] \
        .verdicts[0].rationale.endswith(" steps"), "too many steps: it abstains"


# -- from run.yaml --------------------------------------------------------------------------------

def test_from_run_yaml_to_a_verifier(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                     ) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orm.yaml").write_text(yaml.safe_dump({
        "method": "reward_model", "data": {"train": str(data)}, "model": "embedded",
        "iterations": 1, "verifier": "exact", "options": {
            "n": 4, "updates": 2, "batch": 4, "lr": 1e-4, "max_new_tokens": 8,
            "words": ["yes", "no"]}}))
    for command in (["run", "orm.yaml", "--name", "orm"],
                    ["export", "orm", "--version", "1", "--out", "orm-model"]):
        said = CliRunner().invoke(main, command)
        assert said.exit_code == 0, said.output
    (tmp_path / "my_rewards.py").write_text(
        "from selfloop.organize.verify.reward_model import OutcomeReward\n"
        "orm = OutcomeReward('orm-model', device='cpu')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (sample,) = list(load(data))[:1]
    (rollout,) = group(sample, {"3 5 = 8": Verdict()}).rollouts
    found = ranker_named("my_rewards:orm")(rollout, sample)  # type: ignore[operator]
    assert 0 < found.score < 1 and found.cost > 20


def test_methods_and_options(data: Path, tmp_path: Path) -> None:
    for method, options in (("reward_model", {"per_sample": 2, "centre": 0.0}),
                            ("process_reward", {"steps": "words"})):
        assert method in METHODS
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({
            "method": method, "data": {"train": str(data)}, "model": "embedded",
            "verifier": "exact", "iterations": 2, "options": options}))
        loop = build_loop(load_config(tmp_path / "run.yaml"))
        assert loop.iterations == 2 and loop.gate is None and loop.evaluation is None
