"""The ways of learning that the study compares: each is data, and the same Loop runs them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfloop.optimize.losses.distill import TopK
from selfloop.optimize.losses.divergences import ForwardKL
from selfloop.optimize.losses.mix import Mix
from selfloop.optimize.losses.perception import Perception
from selfloop.optimize.losses.preference import DPO, MDPO, simpo
from selfloop.optimize.losses.rl import GRPO, dr_grpo
from selfloop.optimize.losses.sft import SFT
from selfloop.organize.beside import Beside
from selfloop.organize.clear_view import ClearView
from selfloop.organize.signals import BestWorst, Demonstrate, GroupAdvantage, Views
from selfloop.roles import Loss


@dataclass(frozen=True)
class Way:
    """What makes signals of judged answers, and the loss that reads them."""

    name: str
    """As tables call it."""
    organizer: Any
    """A maker of signals, for a Chain."""
    loss: Loss
    answers: int = 1
    """Drawn answers that a signal is made of: an update of equal size has fewer pairs."""
    whole_groups: bool = False
    """Whether a problem's signals stay in one update."""
    source: str = ""


VIEWS = 0.5
"""Share of answers drawn through a gentle view of the picture, and the views' severity."""
COPIES = 3
"""Views of each imitated or preferred answer: the learner sees few pictures twice."""


def ways(longest: int) -> Mapping[str, Way]:
    """The eight of the study, by their key. `longest`: an answer's most tokens (Dr. GRPO).

    Coefficients are the papers' or the library's defaults; only the learning rate is tuned. All see
    pictures through views: policy gradients the views that answers were drawn under, the others
    fresh ones.
    """
    policy, groups = GRPO(normalize="sequence"), GroupAdvantage()
    right = Views(Demonstrate(), severity=VIEWS, copies=COPIES)
    pairs = Views(BestWorst(per_sample=4), severity=VIEWS, copies=COPIES)
    cropped = Views(BestWorst(per_sample=4, corrupted="crop"), severity=VIEWS, copies=COPIES)
    masked = Beside(groups, "masked", "answer", "mask", 0.6)
    return {
        "sft": Way("SFT", right, SFT(), source="2312.06585"),
        "dpo": Way("DPO", pairs, DPO(0.1), 2, source="2305.18290"),
        "mdpo": Way("mDPO", cropped, MDPO(0.1), 2, source="2406.11839"),
        "simpo": Way("SimPO", pairs, simpo(), 2, source="2405.14734"),
        "grpo": Way("GRPO", groups, policy, whole_groups=True, source="2402.03300"),
        "dr_grpo": Way("Dr. GRPO", GroupAdvantage(scale=False), dr_grpo(longest),
                       whole_groups=True, source="2503.20783"),
        "papo": Way("PAPO", masked, Mix(((1.0, policy), (1.0, Perception()))), whole_groups=True,
                    source="2507.06448"),
        "self_distillation": Way("self-distillation", ClearView(), TopK(8, ForwardKL()),
                                 source="2601.19897"),
    }
