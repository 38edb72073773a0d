"""Preferences over two answers: one formula, with a measure, a link and a weight to choose.

    loss = weight * link(beta * (measure(better) - measure(worse)) - margin)

The papers' losses are functions and small classes that fill it in (primitives L3 to L14).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfloop.optimize.losses import counts
from selfloop.optimize.losses.links import Hinge, Linear, Link, Robust, Sigmoid, Square
from selfloop.optimize.losses.measures import (
    Changed,
    Guided,
    LogOdds,
    LogProb,
    LogRatio,
    Measure,
    OwnWeights,
)
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.sft import SFT
from selfloop.types import AnySignal


@dataclass(frozen=True)
class Prefer:
    """link(beta (m(better) - m(worse)) - pair's margin - margin), a weighted mean over signals.

    `better` and `worse` name branches, so that a picture can be preferred as well as an answer.
    A pair's own margin is 0 unless an organizer set it. With `on_policy` each pair is weighed by
    how likely its answers are under the policy (WPO, arXiv 2406.11827, eq. 2 with its sampled
    alignment): exp mean_t(log pi(y_t) - log sum_v pi(v)^2), of both answers, without gradient.
    """

    beta: float = 0.1
    link: Link = Sigmoid()
    measure: Measure = LogRatio()
    margin: float = 0.0
    better: str = "chosen"
    worse: str = "rejected"
    on_policy: bool = False
    term: str = "dpo"

    @property
    def needs(self) -> frozenset[str]:
        """What the measure needs, and the collision probability for `on_policy`."""
        found: frozenset[str] = getattr(self.measure, "needs", frozenset())
        return found | ({"collision"} if self.on_policy else set())

    @property
    def reads(self) -> frozenset[str]:
        """Both branches, and what the measure reads beside them."""
        both = (self.better, self.worse)
        beside = getattr(self.measure, "beside", None)
        return frozenset((*both, *(n for b in both for n in (beside(b) if beside else ()))))

    def accepts(self, signal: AnySignal) -> bool:
        """Signals with these branches, whatever further ones they have."""
        return self.reads <= signal.branches.keys()

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """The signals' weights."""
        return counts.weights(signals, self.term)

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{term: weighted sum over signals}."""
        gap_B = self.measure(batch, self.better) - self.measure(batch, self.worse)
        each_B = self.link(self.beta * gap_B - batch.margin_B - self.margin)
        if self.on_policy:
            each_B = each_B * likely(batch.branches[self.better]) \
                * likely(batch.branches[self.worse])
        return {self.term: (1.0, (each_B * batch.weight_B).sum())}


def likely(scored: Any) -> Any:
    """WPO's weight of one answer, [B]; 1 on average over what the policy itself would draw."""
    gap_BT = (scored.logp_BT.detach() - scored.collision_BT) * scored.mask_BT
    return (gap_BT.sum(-1) / scored.count_B).exp()


@dataclass(frozen=True)
class DPO(Prefer):
    """-log sigma(beta (h(y+) - h(y-)) - margin), h = log pi - log pi_ref (arXiv 2305.18290, eq. 7).

    Every field of `Prefer` can be set: DPO(link=Hinge()) is SLiC on DPO's rewards.
    """


@dataclass(frozen=True)
class Anchor:
    """link(beta m(branch) - delta): pulls one branch up by itself (mDPO, arXiv 2406.11839).

    With Linear() it is the penalty log pi_ref - log pi of AMP (arXiv 2405.11165).
    """

    beta: float = 0.1
    delta: float = 0.0
    link: Link = Sigmoid()
    measure: Measure = LogRatio()
    branch: str = "chosen"
    term: str = "anchor"

    @property
    def needs(self) -> frozenset[str]:
        """What the measure needs."""
        found: frozenset[str] = getattr(self.measure, "needs", frozenset())
        return found

    @property
    def reads(self) -> frozenset[str]:
        """Its branch."""
        return frozenset({self.branch})

    def accepts(self, signal: AnySignal) -> bool:
        """Signals with that branch."""
        return self.branch in signal.branches

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """The signals' weights."""
        return counts.weights(signals, self.term)

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """{term: weighted sum over signals}."""
        each_B = self.link(self.beta * self.measure(batch, self.branch) - self.delta)
        return {self.term: (1.0, (each_B * batch.weight_B).sum())}


@dataclass(frozen=True)
class MDPO:
    """mDPO (arXiv 2406.11839): DPO + image-conditional DPO + an anchor on the chosen answer.

    The branch `corrupted` is the chosen answer under a corrupted (cropped) picture:
    L = L_DPO - log sigma(beta (h(y+, x) - h(y+, x'))) - log sigma(beta h(y+) - delta).
    With the policy at the reference each term is ln 2.
    """

    beta: float = 0.1
    delta: float = 0.0

    needs = frozenset({"reference"})
    reads = frozenset({"chosen", "rejected", "corrupted"})

    def accepts(self, signal: AnySignal) -> bool:
        """Pairs with a `corrupted` branch."""
        return self.reads <= signal.branches.keys()

    def units(self, signals: Sequence[AnySignal], tokens: Mapping[str, Sequence[int]]
              ) -> dict[str, float]:
        """The pairs' weights, for each of the three terms."""
        return counts.weights(signals, "dpo", "image", "anchor")

    def __call__(self, batch: Any) -> dict[str, tuple[float, Any]]:
        """The three terms, each a weighted sum over pairs."""
        return {**DPO(self.beta)(batch), **image_dpo(self.beta)(batch),
                **Anchor(self.beta, self.delta)(batch)}

    def watch(self, batch: Any) -> dict[str, tuple[float, float]]:
        """`image_accuracy`: the share of pairs whose answer fits the whole picture better; near
        one half the preference was learnt from the texts alone."""
        seen_B, worse_B = (batch.branches[name].ratio_B for name in ("chosen", "corrupted"))
        return {"image_accuracy": (float((seen_B > worse_B).sum()), float(len(seen_B)))}


# -- the papers' losses as fillings of the formula ------------------------------------------------

def ipo(tau: float = 0.1) -> Prefer:
    """IPO (arXiv 2310.12036, eq. 17) on mean log-ratios, as its authors compute it (TRL, "ipo")."""
    return Prefer(1.0, Square(tau), LogRatio(mean=True), term="ipo")


def hinge(beta: float = 0.1) -> Prefer:
    """The hinge of SLiC-HF (arXiv 2305.10425) on DPO's implicit rewards."""
    return Prefer(beta, Hinge(), term="hinge")


def robust(beta: float = 0.1, flipped: float = 0.1) -> Prefer:
    """DPO unbiased under noisy preferences (arXiv 2403.00409)."""
    return Prefer(beta, Robust(flipped), term="robust")


def mean_dpo(beta: float = 2.0) -> Prefer:
    """Length-normalised DPO (Tulu 3, arXiv 2411.15124): log-ratios per token."""
    return Prefer(beta, measure=LogRatio(mean=True))


def wpo(beta: float = 0.1) -> Prefer:
    """WPO (arXiv 2406.11827): DPO, each pair weighed by how on-policy it is."""
    return Prefer(beta, on_policy=True, term="wpo")


def simpo(beta: float = 2.0, gamma: float = 1.0) -> Prefer:
    """SimPO (arXiv 2405.14734, eq. 6): mean log-probs, a target margin, no reference."""
    return Prefer(beta, measure=LogProb(), margin=gamma, term="simpo")


def cpo(beta: float = 0.1, alpha: float = 1.0) -> Mix:
    """CPO (arXiv 2401.08417, eq. 3): summed log-probs without a reference, and the chosen's NLL."""
    return Mix(((1.0, Prefer(beta, measure=LogProb(mean=False), term="cpo")),
                (alpha, SFT("chosen"))))


def orpo(lam: float = 0.1) -> Mix:
    """ORPO (arXiv 2403.07691, eq. 6): the chosen's NLL + lambda times the odds-ratio term."""
    return Mix(((1.0, SFT("chosen")),
                (lam, Prefer(1.0, measure=LogOdds(), term="odds"))))


def rpo(beta: float = 0.1, alpha: float = 1.0, normalize: str = "sequence") -> Mix:
    """DPO + alpha times the chosen's NLL (iterative RPO, arXiv 2404.19733, eq. 1).

    There the NLL is per token of each answer; `normalize="sum"` with alpha 1/1024 is STIC's
    (arXiv 2405.19716), "token" is TRL's ["sigmoid", "sft"].
    """
    return Mix(((1.0, DPO(beta)), (alpha, SFT("chosen", normalize))))


def ddpo(beta: float = 0.5, gamma: float = 5.0, normalize: bool = True) -> Prefer:
    """Dense DPO on corrected segments (RLHF-V, arXiv 2312.00849)."""
    return Prefer(beta, measure=Changed(gamma, normalize), term="ddpo")


def weighed_dpo(beta: float = 0.5, normalize: bool = True) -> Prefer:
    """DPO where every token weighs what its branch's `token_weights` say (see OwnWeights)."""
    return Prefer(beta, measure=OwnWeights(normalize), term="weighed")


def vision_guided(beta: float = 0.1, gamma: float = 1.5) -> Prefer:
    """V-DPO (arXiv 2411.02712): branches `chosen_blind`, `rejected_blind` beside the pair."""
    return Prefer(beta, measure=Guided(gamma), term="vdpo")


def image_dpo(beta: float = 0.1) -> Prefer:
    """Image-DPO (arXiv 2501.00569): the same answer, good picture over the `corrupted` one."""
    return Prefer(beta, worse="corrupted", term="image")


def amp_penalty(weight: float = 1.0) -> Mix:
    """AMP (arXiv 2405.11165): log pi_ref(y+) - log pi(y+), for pairs of the top level."""
    return Mix(((weight, Anchor(1.0, link=Linear(), term="penalty")),))
