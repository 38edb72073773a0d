"""mDPO, PAPO, NoisyRollout, M-STaR, VL-Rethinker, SDPO and SDFT, and what they are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toyland
from loss_rows import X, answers, batch, leaves, pairs, random, same, scored, value
from scripted import Scripted, asked, collect
from selfloop.collect.forced import Rethink
from selfloop.collect.independent import Independent
from selfloop.collect.unsayable import Unsayable
from selfloop.config import load_config
from selfloop.costs import draws_of
from selfloop.data import load
from selfloop.doors import Doors
from selfloop.engines.hf import HFEngine
from selfloop.engines.toy import ToyEngine
from selfloop.loop import Evaluation, Learn, Loop
from selfloop.methods import build_loop
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.perception import Perception
from selfloop.optimize.losses.preference import MDPO, weighed_dpo
from selfloop.optimize.losses.rl import GRPO
from selfloop.optimize.losses.sft import SFT, WeightedTokens
from selfloop.organize.advantages import Marked, Together
from selfloop.organize.beside import Beside
from selfloop.organize.chain import Chain
from selfloop.organize.judging import judge
from selfloop.organize.privileged import FEEDBACK, FromDemonstrations, FromPeers, told
from selfloop.organize.refine.replay import SelectiveReplay, strength
from selfloop.organize.signals import Demonstrate, GroupAdvantage, Privileged, Views
from selfloop.organize.token_weights import TokenWeights
from selfloop.organize.verify.likelihood import SelfLikelihood
from selfloop.organize.verify.reward_model import StepReward
from selfloop.organize.verify.rules import exact
from selfloop.organize.verify.steps import Reranked, StepCheck, ranker_named, steps_in
from selfloop.pictures import Library
from selfloop.recipes.m_star import m_star
from selfloop.recipes.mdpo import mdpo
from selfloop.recipes.noisyrollout import noisyrollout
from selfloop.recipes.papo import papo
from selfloop.recipes.sdft import sdft
from selfloop.recipes.sdpo import sdpo
from selfloop.recipes.vl_rethinker import vl_rethinker
from selfloop.roles import Optim, Sampling, SelfloopError, reads
from selfloop.running import run
from selfloop.store import RunFolder
from selfloop.testbeds import digits
from selfloop.types import (
    Advantage,
    Branch,
    Demonstration,
    Distill,
    Group,
    Pair,
    Rollout,
    Sample,
    Turn,
    Verdict,
)

WORDS = ("yes", "no", "left", "right")
FAST: dict[str, Any] = {"lr": 0.1, "iterations": 2, "max_new_tokens": 3}


def drawn(sample: Sample, text: str, name: str, score: float | None = None, **more: Any
          ) -> tuple[Rollout, Verdict]:
    """One scripted answer and what it scored."""
    (rollout,), _ = collect(Independent(n=1, temperature=0.5), lambda r, i: text, sample)
    return rollout.model_copy(update={"id": name}), Verdict(score=score, **more)


def group(*judged: tuple[Rollout, Verdict], sample: Sample | None = None) -> Group:
    return Group(sample=sample or asked(), rollouts=tuple(r for r, _ in judged),
                 verdicts=tuple(v for _, v in judged))


# -- token weights --------------------------------------------------------------------------------

def weighed(weights: tuple[float, ...] | None, tokens: int) -> Branch:
    turn = Turn(prompt_token_ids=(9,), token_ids=tuple(range(tokens)))
    return Branch(context=asked().context, turns=(turn,), token_weights=weights)


def test_sft_weighs_tokens_by_the_formula() -> None:
    """sum w (-log p) / sum w over both answers; the second has no weights of its own."""
    row = scored([[-1.0, -2.0, -4.0], [-0.5, -0.25, 0.0]], mask=[[1, 1, 1], [1, 1, 0]],
                 weights_BT=[[0.0, 0.5, 2.0], [1.0, 1.0, 0.0]])
    signals = [Demonstration(branches={"target": weighed((0.0, 0.5, 2.0), 3)}),
               Demonstration(branches={"target": weighed(None, 2)}, weight=3.0)]
    found = batch({"target": row}, 2, signals=signals, weight=[1.0, 3.0])
    total = 0.5 * 2 + 2 * 4 + 3 * (0.5 + 0.25)
    assert float(value(SFT(), found)) == pytest.approx(total / (2.5 + 3 * 2))
    each = (0.5 * 2 + 2 * 4) / 2.5, (0.5 + 0.25) / 2
    assert float(value(SFT(normalize="sequence"), found)) == pytest.approx(
        (each[0] + 3 * each[1]) / 4)
    assert float(value(SFT(normalize="sum"), found)) == pytest.approx(total / 4)


@pytest.mark.parametrize("normalize", [True, False])
def test_dpo_under_token_weights_by_the_formula(normalize: bool) -> None:
    rng = torch.Generator().manual_seed(3)
    found = pairs(rng, 4)
    weights = {n: torch.rand(4, 5, generator=rng, dtype=torch.float64) for n in found.branches}
    given = replace(found, branches={n: replace(s, weights_BT=weights[n])
                                     for n, s in found.branches.items()})

    def h(name: str) -> Any:
        s, w = found.branches[name], weights[name] * found.branches[name].mask_BT
        gap = ((s.logp_BT - s.ref_BT) * w).sum(-1)
        return gap / w.sum(-1) if normalize else gap

    expected = -torch.nn.functional.logsigmoid(0.7 * (h("chosen") - h("rejected"))).mean()
    same(value(weighed_dpo(0.7, normalize), given), expected, leaves(given))
    plain = -torch.nn.functional.logsigmoid(0.7 * (
        found.branches["chosen"].ratio_B - found.branches["rejected"].ratio_B)).mean()
    same(value(weighed_dpo(0.7, False), found), plain, leaves(found))


def test_token_weights_survive_views_pictures_and_json() -> None:
    (rollout, verdict) = drawn(asked(), "ab", "r", 1.0, token_scores=(1.0, 0.5, 0.0))
    maker = TokenWeights(Demonstrate())
    for outer in (Views(maker), Beside(maker, "blind", "target")):
        (signal,) = outer([group((rollout, verdict))], "k")
        assert {b.token_weights for b in signal.branches.values()} == {(1.0, 0.5, 0.0)}
        assert type(signal).from_json(signal.to_json()) == signal
    (plain,) = Demonstrate()([group((rollout, verdict))], "k")
    assert "token_weights" not in plain.to_json(), "runs without weights are stored as before"


def test_token_weights_of_pairs_follow_the_rollouts() -> None:
    best = drawn(asked(), "a", "best", 1.0, token_scores=(0.25, 1.0))
    worst = drawn(asked(), "bc", "worst", 0.0, token_scores=(2.0, 0.0, 1.0))
    from selfloop.organize.signals import BestWorst
    (pair,) = TokenWeights(BestWorst(), ("chosen", "rejected"))([group(best, worst)], "k")
    assert [pair.branches[n].token_weights for n in ("chosen", "rejected")] == [
        (0.25, 1.0), (2.0, 0.0, 1.0)]
    (unsaid,) = TokenWeights(Demonstrate())([group(drawn(asked(), "a", "r", 1.0))], "k")
    assert unsaid.branches["target"].token_weights is None


@pytest.mark.parametrize(("scores", "how", "said"), [
    ((1.0,), "score", "1 token scores for 2 trained tokens"),
    ((-0.5, 1.0), "score", "least -0.5"), ((1.0, 1.0), "log", "expected one of score, exp")])
def test_wrong_token_scores_are_named(scores: tuple[float, ...], how: str, said: str) -> None:
    one = drawn(asked(), "a", "r", 1.0, token_scores=scores)
    with pytest.raises(SelfloopError, match=said):
        TokenWeights(Demonstrate(), how=how)([group(one)], "k")


def test_wrong_counts_are_refused_by_the_learner_and_negative_ones_at_once() -> None:
    engine = ToyEngine(WORDS)
    branch = Branch(context=asked().context, text="yes no", token_weights=(1.0,))
    with pytest.raises(SelfloopError, match="'target' has 1 token_weights for 3 trained tokens"):
        engine.forward_backward([Demonstration(branches={"target": branch}, sample="s")], SFT(), {})
    with pytest.raises(ValueError, match="0 or more"):
        Branch(context=asked().context, text="a", token_weights=(-1.0,))


def test_a_masked_token_gets_no_gradient() -> None:
    """Weight 0 is the same as not being there: gradients on the toy engine, to the last bit."""
    def gradient(text: str, weights: tuple[float, ...] | None) -> dict[str, torch.Tensor]:
        engine = ToyEngine(WORDS, seed=1)
        branch = Branch(context=asked().context, text=text, token_weights=weights)
        engine.forward_backward([Demonstration(branches={"target": branch})], SFT(), {})
        return {n: p.grad.clone() for n, p in engine.learner.policy.trainable().items()}

    every, first, none = (gradient("yes no", w) for w in (None, (1.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert all(torch.equal(every[n], none[n]) for n in every)
    assert any(not torch.equal(every[n], first[n]) for n in every)
    alone = gradient("yes", (1.0, 0.0))
    assert all(torch.allclose(first[n], alone[n], atol=1e-7) for n in first)


def test_token_advantages_and_token_weights_are_one_gradient() -> None:
    """One number a token, as the advantages of a signal or as the weights of its branch."""
    def gradient(signal: Any, loss: Any) -> dict[str, torch.Tensor]:
        engine = ToyEngine(WORDS, seed=1)
        engine.forward_backward([type(signal).from_json(signal.to_json())], loss, {})
        return {n: p.grad.clone() for n, p in engine.learner.policy.trainable().items()}

    weights = (0.25, 2.0, 0.0)
    plain = Branch(context=asked().context, text="yes no")
    weighed_by_branch = plain.model_copy(update={"token_weights": weights})
    one = gradient(Advantage(branches={"answer": plain}, advantage=weights), WeightedTokens())
    two = gradient(Demonstration(branches={"target": weighed_by_branch}), SFT())
    assert all(torch.allclose(one[n], two[n], atol=1e-7) for n in one)
    assert any(float(g.abs().sum()) > 0 for g in one.values())


def test_likely_tokens_count_more_through_a_whole_loop(tmp_path: Path) -> None:
    """Dynamic fine-tuning from parts: exp of the sampler's own log-probs as weights."""
    loop = Loop(
        name="dft", sampler=Independent(**toyland.SHORT), samples=8, iterations=2, gate=None,
        verifier=Reranked(toyland.paid, SelfLikelihood(), only_right=True),
        learn={"solver": Learn(organizer=Chain(maker=TokenWeights(Demonstrate(), how="exp")),
                               loss=SFT(), optim=Optim(lr=0.1, updates=2, batch=16))},
        evaluation=Evaluation(metric=exact, sampling=Sampling(temperature=0.0, max_new_tokens=4)))
    folder = played(loop, tmp_path)
    rollouts = {r.id: r for g in folder.groups(1) for r in g.rollouts}
    made = folder.signals(1, "solver")
    assert made
    for signal in made:
        (turn,) = rollouts[signal.rollouts[0]].turns
        assert signal.branches["target"].token_weights == pytest.approx(
            [math.exp(p) for p in turn.logprobs or ()])


# -- perception -----------------------------------------------------------------------------------

@pytest.mark.parametrize(("updates", "factor"), [(0, 1.0), (4, 1.0), (6, 0.5), (8, 0.0), (99, 0.0)])
def test_gamma_fades_between_two_updates(updates: int, factor: float) -> None:
    loss = Perception(0.02, fade=(4, 8))
    state: dict[str, float] = {}
    for _ in range(updates):
        state = loss.adapt(state, {}, {})
    rng = torch.Generator().manual_seed(1)
    seen, unseen = random(rng, 3, entropy_BT=True), random(rng, 3, entropy_BT=True)
    signals = [Advantage(branches={"answer": X, "masked": X}, advantage=1.0)] * 3
    found = batch({"answer": seen, "masked": unseen}, 3, signals=signals, state=state)
    assert loss(found)["perception"][0] == pytest.approx(-0.02 * factor)
    assert loss(found)["seen"][0] == 0.03, "the entropies stay"
    assert Perception(0.02).adapt({}, {}, {}) == {}


def test_wrong_answers_weigh_less_and_wrong_options_are_refused() -> None:
    rng = torch.Generator().manual_seed(1)
    found = answers(rng, 2, advantage=[1.0, -1.0])
    unseen = replace(random(rng, 2), mask_BT=found.branches["answer"].mask_BT)
    signals = [Advantage(branches={"answer": X, "masked": X}, advantage=a) for a in (1.0, -1.0)]
    both = replace(found, branches={**found.branches, "masked": unseen}, signals=tuple(signals))
    seen = both.branches["answer"]
    d = unseen.logp_BT - seen.logp_BT
    k = ((d.exp() - d - 1) * seen.mask_BT).sum(-1)
    expected = -0.5 * (k[0] + 0.1 * k[1]) / seen.mask_BT.sum()
    same(value(Perception(0.5, 0.0, wrong=0.1), both), expected, [seen.logp_BT, unseen.logp_BT])
    for fade in ((4, 4), (-1, 3)):
        with pytest.raises(SelfloopError, match="0 <= first < last"):
            Perception(fade=fade)


def test_problems_without_a_picture_are_reinforced_all_the_same() -> None:
    shown, bare = asked(), asked("2 + 2 ?", n_pictures=0)
    groups = [group(drawn(s, "a", f"{i}a", 1.0), drawn(s, "b", f"{i}b", 0.0), sample=s)
              for i, s in enumerate((shown, bare))]
    kept = Beside(GroupAdvantage(), "masked", "answer", "mask", 0.6, keep=True)(groups, "k")
    assert ["masked" in s.branches for s in kept] == [True, True, False, False]
    mixed = Mix(((1.0, GRPO()), (1.0, Perception())))
    assert all(mixed.accepts(s) for s in kept)
    units = mixed.units(kept, {"answer": [3, 3, 4, 4], "masked": [3, 3, 0, 0]})
    assert (units["0.policy"], units["1.perception"]) == (14, 6)


# -- mDPO's monitor -------------------------------------------------------------------------------

def test_image_accuracy_is_a_count() -> None:
    better = scored([[-1.0], [-1.0], [-1.0]], ref_BT=[[-2.0], [-2.0], [-2.0]])
    cropped = scored([[-1.0], [-3.0], [-1.0]], ref_BT=[[-3.0], [-3.0], [-2.0]])
    found = batch({"chosen": better, "rejected": better, "corrupted": cropped})
    assert MDPO().watch(found) == {"image_accuracy": (1.0, 3.0)}, "a tie is no hit"


# -- peers and demonstrations ---------------------------------------------------------------------

def peers(**options: Any) -> list[Any]:
    """Two right answers, one wrong, one cut, one that nobody could judge."""
    sample = asked()
    first, second = drawn(sample, "cat one", "r0", 1.0), drawn(sample, "cat two", "r1", 1.0)
    wrong, unjudged = drawn(sample, "dog", "r2", 0.0, rationale="no cat"), drawn(sample, "?", "r3")
    return FromPeers(**options)([group(first, second, wrong, unjudged)], "k")


def test_each_answer_is_taught_by_a_peers_right_one() -> None:
    made = {s.rollouts[0]: s for s in peers()}
    shown = {name: s.branches["teacher"].context.text for name, s in made.items()}
    assert {n: "cat one" in t for n, t in shown.items()} == {
        "r0": False, "r1": True, "r2": True, "r3": True}
    assert "cat two" in shown["r0"], "never its own solution"
    assert len({s.branches["teacher"].context.identity for s in made.values()}) == 2, (
        "two prompts a group at most, which its answers share")
    for signal in made.values():
        student, teacher = signal.branches["student"], signal.branches["teacher"]
        assert student.turns[0].token_ids == teacher.turns[0].token_ids
        assert teacher.turns[0].temperature == student.turns[0].temperature == 0.5
        assert teacher.context.media == student.context.media
        assert not teacher.turns[0].prompt_token_ids and teacher.turns[0].logprobs is None
    assert not reads(FromPeers())


def test_without_a_peer_there_is_feedback_or_no_signal() -> None:
    sample = asked()
    alone = group(drawn(sample, "cat", "r0", 1.0), drawn(sample, "dog", "r1", 0.0),
                  drawn(sample, "cow", "r2", 0.0, rationale="it has {no} horns"))
    assert [s.rollouts for s in FromPeers()([alone], "k")] == [("r1",), ("r2",)]
    hopeless = group(*[(r, Verdict(score=0.0, rationale=v.rationale))
                       for r, v in zip(alone.rollouts, alone.verdicts, strict=True)])
    assert FromPeers()([hopeless], "k") == []
    (told_it,) = FromPeers(feedback=FEEDBACK)([hopeless], "k")
    assert told_it.rollouts == ("r2",) and "it has {no} horns" in \
        told_it.branches["teacher"].context.text
    assert len(FromPeers(at_least=0.0)([hopeless], "k")) == 3
    for wrong in ({"feedback": "mend it"}, {"solution": "see there"}):
        with pytest.raises(SelfloopError, match="say by"):
            FromPeers(**wrong)


def test_an_answer_to_another_question_is_no_peer() -> None:
    sample, other = asked(), asked("what else ?")
    related = group(drawn(other, "a cow", "r0", 1.0), drawn(sample, "dog", "r1", 0.0),
                    drawn(other, "a pig", "r2", 0.0))
    (made,) = FromPeers()([related], "k")
    assert made.rollouts == ("r2",)
    assert made.branches["teacher"].context.text.startswith("what else ?")
    found = FromDemonstrations()([related], "k", {sample.id: "ears"})
    assert [s.rollouts for s in found] == [("r1",)]


def test_demonstrations_are_full_labels() -> None:
    sample = asked()
    one = group(drawn(sample, "dog", "r0", 0.0))
    (signal,) = FromDemonstrations()([one], "k", {sample.id: "I see ears"})
    assert "I see ears" in signal.branches["teacher"].context.text
    assert "I see ears" not in signal.branches["student"].context.text
    assert FromDemonstrations()([one], "k", {}) == []
    assert reads(FromDemonstrations()) == {"rationales"}
    (answered,) = Privileged()([one], "k", {sample.id: "cat"})
    assert answered.branches["teacher"].turns[0].temperature == 0.5, "as hot as it was drawn"
    assert told(sample.context, "", "a", "b").text.endswith("\na\nb")


# -- replay, rethinking and ranking ---------------------------------------------------------------

def test_replay_lets_imitation_pass_by() -> None:
    judged = [drawn(asked(), t, f"r{i}", s) for i, (t, s) in
              enumerate([("a", 1.0), ("b", 0.0), ("c", 0.0), ("d", 0.0)])]
    again, verdict = drawn(asked(), "e", "again", 1.0)
    again = again.model_copy(update={"sampling": {"rethought": "r1"}})
    maker = Together((Marked(GroupAdvantage(), "rethought", True),
                      Marked(Demonstrate(), "rethought")))
    replay = SelectiveReplay(Chain(maker=maker))
    signals, state, _ = replay([group(*judged, (again, verdict))], {}, "k")
    kinds = [s.kind for s in signals]
    assert kinds == ["advantage"] * 2 + ["demonstration"], "5 judged, half of them drawn"
    assert [s.rollouts == ("again",) for s in signals] == [False, False, True]
    assert all(isinstance(s, Advantage) and strength(s) > 0 for s in signals[:-1])
    later, _, _ = replay([group(*[(r, Verdict(score=1.0)) for r, _ in judged])], state, "l")
    assert [s.kind for s in later] == ["advantage"] * 2, "replayed; imitation is not"


@pytest.mark.parametrize("whole", [True, False])
def test_a_second_thought_is_trained_whole_or_from_the_trigger_on(whole: bool) -> None:
    sampler = Rethink(n=2, share=1, triggers=("look again",), whole=whole)
    found, _ = collect(sampler, lambda r, i: " yes")
    again = [r for r in found if "rethought" in r.sampling]
    assert len(again) == 2
    for rollout in again:
        (turn,) = rollout.turns
        assert sum(turn.mask) == (len(turn.token_ids) if whole else len(" yes") + 1)
        assert (turn.logprobs is None) == whole


def test_a_first_answer_that_cannot_be_forced_stays_and_a_trigger_is_an_error() -> None:
    class Picky(Scripted):
        def generate(self, requests: Any, version: int) -> Any:
            if any("odd" in r.sampling.prefix for r in requests):
                raise Unsayable("odd")
            return super().generate(requests, version)

    def says(request: Any, i: int) -> str:
        return " again" if request.sampling.prefix else ("odd" if i else "even")

    found, _ = collect(Rethink(n=2, share=1, triggers=("but",)), Picky(says))
    assert [r.text for r in found] == ["even", "odd", "even but again"]
    with pytest.raises(Unsayable):
        collect(Rethink(n=2, share=1, triggers=("odd",)), Picky(says))


def judged_by(verifier: Any, text: str, says: Any) -> tuple[Verdict, Scripted]:
    rollouts, _ = collect(Independent(n=1), lambda r, i: text)
    engine = Scripted(says)
    (found,) = judge(verifier, [Group(sample=asked(), rollouts=tuple(rollouts))],
                     Doors({"judge": engine}, 0, "s")).groups
    return found.verdicts[0], engine


@pytest.mark.parametrize(("text", "found"), [
    ("I see 3.5 dots. So it is odd.", ["I see 3.5 dots.", "So it is odd."]),
    ("one\n\n two \nthree", ["one", " two ", "three"]), ("", []), ("  \n ", []), ("so", ["so"]),
    ("a = 2 so b", ["a = 2 so b"])])
def test_steps_of_a_chain(text: str, found: list[str]) -> None:
    assert [text[a:b] for a, b in steps_in(text)] == found


@pytest.mark.parametrize(("how", "score"), [("min", 0.5), ("prod", 0.375), ("last", 0.75),
                                            ("mean", 0.625)])
def test_steps_are_asked_one_by_one(how: str, score: float) -> None:
    def says(request: Any, i: int) -> str:
        yes = 2 if "It has ears." in request.context.text.split("judge:")[1] else 3
        return "yes" if i < yes else "no"

    verdict, engine = judged_by(StepCheck(n=4, how=how), "It has ears. So it is a cat.", says)
    assert verdict.score == pytest.approx(score)
    assert [s for _, _, s in verdict.spans] == [0.5, 0.75]
    assert all(r.context.media for r in engine.asked) and len(engine.asked) == 2
    assert "(none)" in engine.asked[0].context.text
    assert "It has ears." in engine.asked[1].context.text
    assert "So it is a cat." not in engine.asked[0].context.text, "no step sees what comes later"
    unread, _ = judged_by(StepCheck(), "It has ears. So it is a cat.", lambda r, i: "well")
    assert unread.score is None, "unknown is not zero"
    assert judged_by(StepCheck(), "", says)[0].score is None


def test_reranking_keeps_the_check_and_adds_a_rank() -> None:
    verifier = Reranked(exact, StepCheck())
    right, _ = judged_by(verifier, "I see ears. <answer>a cat</answer>", lambda r, i: "no")
    assert (right.score, right.parts["rank"]) == (1.0, 0.0) and reads(verifier) == {"answer"}
    wrong, _ = judged_by(verifier, "a dog", lambda r, i: "yes")
    assert (wrong.score, wrong.parts["rank"]) == (0.0, 1.0), "Reward-Pass@K ranks wrong ones too"
    unknown, _ = judged_by(verifier, "a cat", lambda r, i: "?")
    assert unknown.score == 1.0 and "rank" not in unknown.parts
    only = Reranked(exact, StepCheck(), only_right=True)
    unasked, engine = judged_by(only, "a dog", lambda r, i: "yes")
    assert unasked.score == 0.0 and not engine.asked
    likely, _ = judged_by(Reranked(exact, SelfLikelihood()), "a cat", lambda r, i: "")
    assert likely.parts["rank"] < 0 and len(likely.token_scores or ()) == 6
    assert ranker_named("selfloop.organize.verify.likelihood:SelfLikelihood") == SelfLikelihood()
    assert ranker_named("some/folder") == StepReward("some/folder")
    with pytest.raises(SelfloopError, match="cannot be called"):
        ranker_named("selfloop.organize.privileged:AGAIN")


# -- two steps on the toy -------------------------------------------------------------------------

def played(loop: Loop, folder: Path, words: Sequence[str] = WORDS, gold: bool = True) -> RunFolder:
    """Every stage, gate included; the folder of the run."""
    train, dev = (toyland.samples(folder / "data", 10, first=f) for f in (0, 10))
    done = run(loop, train, ToyEngine(tuple(words), contexts=512, seed=1), folder / "run",
               dev=dev[:4], library=Library(folder / "run" / "images"))
    found = RunFolder(folder / "run")
    assert len(done) == loop.iterations == 2 and (done[0].labels_answer_only > 0) == gold
    for step in range(2 * loop.steps):
        assert found.manifest(step)["counts"]["signals_solver"] > 0  # type: ignore[index]
        assert learned(found, step)["grad_norm"] > 0
    assert {i.decision.action for i in done} <= {"promote", "hold", "roll back"} or not loop.gate
    return found


def learned(folder: RunFolder, step: int) -> dict[str, float]:
    return folder.json("steps", f"{step:06d}", "learned.json")["solver"]  # type: ignore[index]


def verdicts(folder: RunFolder, step: int) -> dict[str, Verdict]:
    return {r.id: v for g in folder.groups(step)
            for r, v in zip(g.rollouts, g.verdicts, strict=True)}


@pytest.mark.parametrize("gold", [False, True])
def test_mdpo_on_the_toy(tmp_path: Path, gold: bool) -> None:
    loop = mdpo(toyland.paid, n=6, updates=3, samples=8, gold=gold, **FAST)
    folder = played(loop, tmp_path)
    said = verdicts(folder, 0)
    for pair in folder.signals(0, "solver"):
        assert isinstance(pair, Pair)
        (op,) = pair.branches["corrupted"].context.media[0].ops
        assert (op.name, op.severity) == ("crop", 1.0)
        same_tokens = ("chosen", "corrupted")
        assert len({pair.branches[n].text for n in same_tokens}) == 1
        if not gold:
            assert said[pair.rollouts[0]].right and not said[pair.rollouts[1]].right
    first = learned(folder, 0)
    assert {"dpo", "image", "anchor", "image_accuracy", "accuracy"} <= first.keys()
    optim = mdpo(exact).learn["solver"].optim
    assert (optim.lr, optim.batch, MDPO().beta, MDPO().delta) == (1e-5, 32, 0.1, 0.0)


def test_papo_on_the_toy(tmp_path: Path) -> None:
    loop = papo(toyland.paid, n=6, steps=2, samples=6, fade=(1, 3), **FAST)
    folder = played(loop, tmp_path)
    for signal in folder.signals(0, "solver"):
        (op,) = signal.branches["masked"].context.media[0].ops
        assert (op.name, op.severity) == ("mask", 0.6) and op.key
        assert signal.branches["masked"].turns[0].token_ids \
            == signal.branches["answer"].turns[0].token_ids
    assert {"0.policy", "0.kl", "1.perception", "1.seen", "1.unseen"} <= learned(folder, 1).keys()
    assert learned(folder, 0)["1.perception"] <= 0
    assert learned(folder, 3)["1.perception"] == 0, "three updates on, gamma has faded"
    parts: Any = papo(exact).learn["solver"].loss
    assert parts.parts[0][1].kl == 0.01 and parts.parts[1][1] == Perception(0.01, 0.03)


def test_noisyrollout_on_the_toy(tmp_path: Path) -> None:
    loop = noisyrollout(toyland.paid, n=4, steps=3, samples=6, **FAST)
    folder = played(loop, tmp_path)
    strengths = []
    for step in range(6):
        group = next(g for g in folder.groups(step) if len(g.rollouts) == 8)
        noisy = [r for r in group.rollouts if "severity" in r.sampling]
        assert len(noisy) in (0, 4) and {r.context.identity for r in group.rollouts} == {
            group.sample.context.identity}, "all are trained under the clean picture"
        strengths.append(float(noisy[0].sampling["severity"]) if noisy else 0.0)  # type: ignore[arg-type]
    expected = [0.5 / (1 + math.exp(30 * (t / 6 - 2 / 3))) for t in range(6)]
    assert strengths == pytest.approx(expected, abs=1e-6)
    assert strengths[0] == pytest.approx(0.5) and strengths[5] < 0.01
    assert all(not m.ops for s in folder.signals(0, "solver")
               for m in s.branches["answer"].context.media)


def test_m_star_on_the_toy(tmp_path: Path) -> None:
    loop = m_star(toyland.paid, ranker="selfloop.organize.verify.likelihood:SelfLikelihood", n=6,
                  keep=1, grid=(0.5, 1.5), share=0.5, samples=8, updates=3, **FAST)
    folder = played(loop, tmp_path)
    sliced = [g for g in folder.groups(0) if len(g.rollouts) == 12]
    assert 0 < len(sliced) < 8
    guided = folder.manifest(0)["guidance"]  # type: ignore[index]
    assert guided["temperature"] in (0.5, 1.5) and set(guided["reward_pass"]) == {"0.5", "1.5"}
    later = {t.temperature for g in folder.groups(1) for r in g.rollouts for t in r.turns
             if "grid" not in r.sampling}
    assert later == {guided["temperature"]}
    said = verdicts(folder, 0)
    for group in folder.groups(0):
        ranks = {r.id: said[r.id].parts["rank"] for r in group.rollouts
                 if said[r.id].right and "rank" in said[r.id].parts}
        mine = [s.rollouts[0] for s in folder.signals(0, "solver") if s.sample == group.sample.id]
        assert [ranks[i] for i in mine] == sorted(ranks.values())[-1:][:len(mine)]
    optim = loop.learn["solver"].optim
    assert (optim.start, optim.reset, optim.schedule) == ("previous", False, "constant")


def test_m_stars_judge_is_asked_step_by_step(tmp_path: Path) -> None:
    loop = m_star(toyland.paid, n=4, votes=2, share=0.0, samples=4, updates=2, **FAST)
    train = toyland.samples(tmp_path / "data", 8)
    engines = {"solver": ToyEngine(WORDS, seed=1), "judge": ToyEngine(("yes", "no"), seed=2)}
    run(replace(loop, gate=None, evaluation=None), train, engines, tmp_path / "run",
        library=Library(tmp_path / "run" / "images"))
    said = verdicts(RunFolder(tmp_path / "run"), 0).values()
    ranked = [v for v in said if "rank" in v.parts]
    assert ranked and all(v.parts["rank"] in (0.0, 0.5, 1.0) and v.spans for v in ranked)


def test_vl_rethinker_on_the_toy(tmp_path: Path) -> None:
    loop = vl_rethinker(last_word, n=6, share=0.5, triggers=("left",), steps=2, samples=8, **FAST)
    folder = played(loop, tmp_path)
    imitated = []
    for step in range(4):
        drawn_now = {r.id: r for g in folder.groups(step) for r in g.rollouts}
        said = verdicts(folder, step)
        signals = folder.signals(step, "solver")
        assert all(isinstance(s, Demonstration) or strength(s) > 0 for s in signals)
        imitated += [drawn_now[s.rollouts[0]] for s in signals if isinstance(s, Demonstration)]
        assert all(said[s.rollouts[0]].right for s in signals if isinstance(s, Demonstration))
        reinforced = [drawn_now[s.rollouts[0]] for s in signals
                      if isinstance(s, Advantage) and s.rollouts[0] in drawn_now]
        assert not any("rethought" in r.sampling for r in reinforced)
    assert imitated and all("left" in r.text.split() and r.turns[0].loss_mask is None
                            for r in imitated)
    state = folder.manifest(3)["state"]["solver"]  # type: ignore[index]
    assert state["replay"]
    parts: Any = vl_rethinker(exact).learn["solver"].loss
    assert [w for w, _ in parts.parts] == [1.0, 0.05] and parts.parts[0][1].kl == 0


def last_word(rollout: Rollout, answer: Any) -> bool:
    return rollout.text.split()[-1:] == [answer]


@pytest.mark.parametrize("k", [0, 3])
def test_sdpo_on_the_toy(tmp_path: Path, k: int) -> None:
    loop = sdpo(toyland.paid, n=6, k=k, steps=2, samples=8, **FAST)
    folder = played(loop, tmp_path)
    said = verdicts(folder, 0)
    for signal in folder.signals(0, "solver"):
        peer = signal.why.removeprefix("peer ")
        assert said[peer].right and (peer,) != signal.rollouts
    loss: Any = sdpo(exact).learn["solver"].loss
    assert (loss.k, loss.teacher, loss.ema, loss.rest, loss.divergence.beta) == (
        100, "ema", 0.95, True, 0.5)
    assert loop.labels_read.keys() == {"verifier"}


@pytest.mark.parametrize("labels", ["answer", "rationale"])
def test_sdft_on_the_toy(tmp_path: Path, labels: str) -> None:
    loop = sdft(toyland.paid, labels=labels, n=4, updates=3, samples=8, **FAST)
    folder = played(loop, tmp_path, gold=labels == "answer")
    (done, _) = folder.iterations()
    assert (done.labels_full, done.labels_answer_only) == ((8, 0) if labels == "rationale"
                                                           else (0, 8))


def stored(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for part in ("steps", "checkpoints")
            for p in sorted((folder / part).rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["papo", "vl_rethinker", "sdpo"])
def test_what_a_recipe_carries_is_stored(tmp_path: Path, name: str) -> None:
    """Faded gamma, replay queues and averaged teachers: two rounds in one go or in two."""
    short: dict[str, Any] = {"steps": 1, "samples": 6, "max_new_tokens": 3, "lr": 0.1}
    train, found = toyland.samples(tmp_path / "data", 8), []
    for folder, rounds in (("whole", (2,)), ("parts", (1, 2))):
        for iterations in rounds:
            loop = {"papo": papo(toyland.paid, n=4, fade=(0, 3), iterations=iterations, **short),
                    "vl_rethinker": vl_rethinker(last_word, n=4, share=0.5, triggers=("left",),
                                                 iterations=iterations, **short),
                    "sdpo": sdpo(toyland.paid, n=4, k=3, iterations=iterations, **short)}[name]
            run(replace(loop, gate=None, evaluation=None), train, ToyEngine(WORDS, seed=1),
                tmp_path / folder, library=Library(tmp_path / folder / "images"))
        found.append(stored(tmp_path / folder))
    assert found[0] == found[1] and any("checkpoints" in name for name in found[0])


@pytest.mark.parametrize(("loop", "draws"), [
    (noisyrollout(exact, n=6), 12), (vl_rethinker(exact, n=8, share=0.25), 10),
    (m_star(exact, n=10, grid=(0.5, 1.0, 1.5), share=0.1), 12), (papo(exact, n=5), 5)])
def test_plans_count_every_draw(loop: Loop, draws: int) -> None:
    assert draws_of(loop) == draws


# -- from run.yaml --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def plain_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clidata import with_splits

    path = with_splits(tmp_path_factory.mktemp("yaml"))
    path.write_text(path.read_text().replace(
        "n: 2, max_new_tokens: 12, updates: 2, batch: 4, ", ""))
    return path


@pytest.mark.parametrize(("method", "options", "said"), [
    ("mdpo", ["options.corruption=blur", "options.delta=0.1"], ["'blur'", "delta=0.1"]),
    ("papo", ["options.gamma=0.02", "options.fade=[10, 20]"], ["gamma=0.02", "fade=(10, 20)"]),
    ("noisyrollout", ["options.anneal=linear", "options.steps=4"], ["'linear'", "steps=4"]),
    ("m_star", ["options.grid=[0.4, 1.2]", "options.votes=2"], ["grid=(0.4, 1.2)", "StepCheck"]),
    ("vl_rethinker", ["options.triggers=[wait]", "options.imitate=0.1"], ["'wait'", "0.1, SFT"]),
    ("sdpo", ["options.k=7", "options.feedback=Said {feedback}"], ["k=7", "Said {feedback}"]),
    ("sdft", ["options.labels=answer", "options.k=5"], ["Privileged", "k=5"]),
])
def test_reachable_from_run_yaml(plain_yaml: Path, method: str, options: list[str],
                                 said: list[str]) -> None:
    printed = repr(build_loop(load_config(plain_yaml, [f"method={method}", *options])))
    assert all(part in " ".join(printed.split()) for part in said), printed
    with pytest.raises(SelfloopError, match=r"options\.nonsense"):
        build_loop(load_config(plain_yaml, [f"method={method}", "options.nonsense=1"]))


# -- on the embedded model ------------------------------------------------------------------------

SEED = Path(digits.__file__).parent / "seed"


def embedded_loops() -> dict[str, Loop]:
    """Every recipe, short, on digits; draws are hot, or the seed's groups are all alike."""
    short: dict[str, Any] = {"lr": 1e-5, "max_new_tokens": 12, "iterations": 1}
    hot = {**short, "temperature": 1.5}
    few = {**hot, "samples": 12, "steps": 2}
    plain = {**short, "samples": 12, "steps": 2}
    once = {**hot, "samples": 16, "updates": 2, "batch": 16}
    return {
        "mdpo": mdpo(exact, n=6, **once), "papo": papo(exact, n=5, **few),
        "noisyrollout": noisyrollout(exact, n=4, **plain),
        "m_star": m_star(exact, ranker="selfloop.organize.verify.likelihood:SelfLikelihood", n=4,
                         grid=(0.7, 1.5), share=0.3, **once),
        "m_star, reward model": m_star(exact, ranker=str(SEED), n=4, grid=(0.7, 1.5), share=0.3,
                                       **once),
        "vl_rethinker": vl_rethinker(exact, n=6, share=0.5, triggers=("or",), **plain),
        "sdpo": sdpo(exact, n=6, k=20, **few), "sdft": sdft(exact, **once),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", embedded_loops())
def test_on_the_digits_seed(tmp_path: Path, name: str) -> None:
    """Collect, organize, optimize and gate, unchanged, on real pictures and a real model."""
    loop = embedded_loops()[name]
    digits.write(tmp_path / "data", "train", 40, seed=0)
    samples = list(load(tmp_path / "data" / "train.jsonl"))
    (done,) = run(loop, samples[:32], HFEngine(str(SEED), threads=1), tmp_path / "run",
                  dev=samples[32:])
    folder = RunFolder(tmp_path / "run")
    assert done.decision.action in {"promote", "hold", "roll back"} and "greedy" in done.dev
    signals = [s for step in range(loop.steps) for s in folder.signals(step, "solver")]
    assert signals and {type(s) for s in signals} >= {
        "mdpo": {Pair}, "papo": {Advantage}, "noisyrollout": {Advantage}, "sdpo": {Distill},
        "m_star": {Demonstration}, "m_star, reward model": {Demonstration},
        "vl_rethinker": {Advantage}, "sdft": {Distill}}[name]
    met = [learned(folder, step) for step in range(loop.steps)]
    assert all(m["updates"] > 0 and m["grad_norm"] > 0 for m in met if m["updates"])
    assert any(m["updates"] for m in met)
