"""Imitation, mixtures, and what every loss reads. Families have files of their own beside this."""

from __future__ import annotations

import pytest
import torch

from loss_rows import X, batch, mask, pairs, scored, total, value
from selfloop.optimize.batch import Others, Scored
from selfloop.optimize.losses.distill import ReverseKL, TopK
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.preference import DPO, MDPO
from selfloop.optimize.losses.ranked import OwnNegative
from selfloop.optimize.losses.reward import BradleyTerry
from selfloop.optimize.losses.rl import GRPO
from selfloop.optimize.losses.sft import SFT, WeightedTokens
from selfloop.optimize.losses.surrogates import Adaptive
from selfloop.optimize.losses.unpaired import BCO
from selfloop.roles import SelfloopError
from selfloop.types import Advantage, Demonstration, Distill, Pair


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_sft_is_torchs_cross_entropy(rng):
    logits = torch.randn(3, 4, 9, generator=rng, dtype=torch.float64)
    tokens = torch.randint(9, (3, 4), generator=rng)
    here = mask(rng, 3, 4)
    logp = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    signals = [Demonstration(branches={"target": X})] * 3
    found = value(SFT(), batch({"target": Scored(logp, here)}, 3, signals=signals))
    ignored = tokens.masked_fill(here == 0, -100)
    assert float(found) == pytest.approx(float(torch.nn.functional.cross_entropy(
        logits.reshape(-1, 9), ignored.reshape(-1))))


@pytest.mark.parametrize(("normalize", "expected"), [
    ("token", (2 * 3.0 + 4.0) / (2 * 2 + 1)), ("sequence", (2 * 1.5 + 4.0) / 3),
    ("sum", (2 * 3.0 + 4.0) / 3)])
def test_weighted_imitation_and_its_normalisers(normalize, expected):
    signals = [Demonstration(branches={"target": X}, weight=w) for w in (2.0, 1.0)]
    found = batch({"target": scored([[-1.0, -2.0], [-4.0, 0.0]], mask=[[1, 1], [1, 0]])},
                  weight=[2.0, 1.0], signals=signals)
    assert float(value(SFT(normalize=normalize), found)) == pytest.approx(expected)
    with pytest.raises(SelfloopError, match="expected one of token, sequence, sum"):
        SFT(normalize="mean")


def test_imitation_with_a_weight_a_token():
    signals = [Advantage(branches={"answer": X}, advantage=(1.0, 0.0, 0.5)),
               Advantage(branches={"answer": X}, advantage=2.0, weight=3.0)]
    found = batch({"answer": scored([[-1.0, -7.0, -4.0], [-2.0, -1.0, 0.0]],
                                    mask=[[1, 1, 1], [1, 1, 0]])},
                  weight=[1.0, 3.0], advantage=[[1.0, 0.0, 0.5], [2.0, 2.0, 0.0]], signals=signals)
    expected = (1.0 + 0.5 * 4 + 3 * 2 * 3.0) / (1.5 + 3 * 2 * 2)
    assert float(value(WeightedTokens(), found)) == pytest.approx(expected)
    assert not WeightedTokens().accepts(Advantage(branches={"answer": X}, advantage=(1.0, -0.1)))


def test_branches_of_one_answer_have_weights_of_their_own():
    """The question beside the answer (SQ-LLaVA), a critic's turn beside the solver's."""
    both = Mix(((1.0, SFT()), (0.25, SFT("question"))))
    signals = [Demonstration(branches={"target": X, "question": X})]
    found = batch({"target": scored([[-2.0, -4.0]]), "question": scored([[-8.0]])},
                  signals=signals)
    assert float(value(both, found)) == pytest.approx(3.0 + 0.25 * 8.0)


# -- mixtures -----------------------------------------------------------------------------------

def test_a_mixture_gives_each_part_its_own_units_and_only_its_signals(rng):
    mix = Mix(((0.8, DPO()), (0.2, SFT("chosen")), (0.5, SFT("target"))))
    signals = [Pair(branches={"chosen": X, "rejected": X}, weight=2.0),
               Demonstration(branches={"target": X}),
               Pair(branches={"chosen": X, "rejected": X})]
    tokens = {"chosen": [3, 0, 4], "rejected": [1, 0, 1], "target": [0, 7, 0]}
    assert mix.units(signals, tokens) == {"0.dpo": 3.0, "1.nll": 10.0, "2.nll": 7.0}
    assert mix.needs == {"reference"}
    assert mix.accepts(signals[0]) and mix.accepts(signals[1])
    assert not mix.accepts(Advantage(branches={"answer": X}, advantage=1.0))
    found = pairs(rng, 1)
    terms = mix(found)
    assert set(terms) == {"0.dpo", "1.nll"}
    assert terms["0.dpo"][0] == 0.8 and terms["1.nll"][0] == 0.2
    assert float(terms["1.nll"][1].detach()) == pytest.approx(
        -float(found.branches["chosen"].sum_B.detach()))
    with pytest.raises(SelfloopError, match="at least one"):
        Mix(())


def test_what_a_mixture_reads_is_what_its_parts_read():
    class Everything(SFT):
        reads = None

    mix = Mix(((1.0, MDPO()), (1.0, SFT("chosen"))))
    assert mix.reads == {"chosen", "rejected", "corrupted"}
    assert Mix(((1.0, DPO()), (1.0, Everything()))).reads is None
    assert Mix(((1.0, BradleyTerry()), (1.0, SFT("x")))).words == ("yes", "no")


def test_parts_carry_their_own_states_and_statistics(rng):
    found = pairs(rng, 4)
    bco, kl = BCO(0.3), GRPO(kl=Adaptive(start=0.5))
    mix = Mix(((1.0, SFT("chosen")), (0.5, bco), (1.0, kl)))
    with torch.no_grad():
        whole, alone = mix.measure(found), bco.measure(found)
    assert set(whole) == {"1.good", "1.bad"} and mix.measures_policy
    state = mix.adapt({}, {"2.kl": 0.02, "1.bco": 3.0}, whole)
    assert state == {"1.delta": bco.adapt({}, {}, alone)["delta"], "2.kl": 0.5}
    from dataclasses import replace
    apart = bco(replace(found, whole=alone, state={"delta": 1.0}))["bco"][1]
    within = mix(replace(found, whole=whole, state={"1.delta": 1.0, "2.kl": 0.5}))["1.bco"][1]
    assert float(apart.detach()) == float(within.detach())


def test_one_branch_has_one_set_of_further_tokens_and_one_teacher():
    mix = Mix(((1.0, TopK(5)), (1.0, TopK(5, rest=False)), (1.0, OwnNegative())))
    assert mix.others == (Others("student", "teacher", 5), Others("chosen", "corrupted", 1))
    with pytest.raises(SelfloopError, match="different further tokens in the branch 'student'"):
        _ = Mix(((1.0, TopK(5)), (1.0, TopK(6)))).others
    with pytest.raises(SelfloopError, match=r"teachers \['current', 'seed'\]"):
        _ = Mix(((1.0, ReverseKL()), (1.0, ReverseKL(teacher="seed")))).teacher
    averaged = Mix(((1.0, SFT()), (1.0, ReverseKL(teacher="ema", ema=0.9))))
    assert averaged.teacher == "ema" and averaged.ema == 0.9


def test_what_each_loss_reads():
    pair = Pair(branches={"chosen": X, "rejected": X})
    three = Pair(branches={"chosen": X, "rejected": X, "corrupted": X})
    shown = Demonstration(branches={"target": X})
    taught = Distill(branches={"student": X, "teacher": X})
    table = {DPO(): (pair, three), MDPO(): (three,), SFT(): (shown,), SFT("chosen"): (pair, three),
             OwnNegative(): (three,), BCO(): (pair, three), TopK(): (taught,),
             BradleyTerry(): (pair, three), ReverseKL(): (taught,)}
    for loss, reads in table.items():
        for signal in (pair, three, shown, taught):
            assert loss.accepts(signal) == (signal in reads), (loss, signal)


def test_totals_are_weighted_sums_over_units():
    found = batch({"target": scored([[-2.0]])}, signals=[Demonstration(branches={"target": X})])
    assert float(total(Mix(((0.5, SFT()),)), found, {"0.nll": 4.0})) == pytest.approx(0.25)
