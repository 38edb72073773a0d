"""How a branch becomes one number a signal: what the two sides of a preference are compared by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

Measure = Callable[[Any, str], Any]
"""(batch, branch) -> [B]. Its `needs` are added to the loss's; `beside(branch)` names further
branches that it reads."""


@dataclass(frozen=True)
class LogRatio:
    """log pi(y|x) - log pi_ref(y|x), summed over tokens or, with `mean`, averaged.

    The sum is DPO's implicit reward over beta (arXiv 2305.18290, eq. 5); the mean is what IPO's
    authors and length-normalised DPO (arXiv 2411.15124) use.
    """

    mean: bool = False
    needs: frozenset[str] = field(default=frozenset({"reference"}), init=False)

    def __call__(self, batch: Any, name: str) -> Any:
        """[B]."""
        scored = batch.branches[name]
        return scored.ratio_B / scored.count_B if self.mean else scored.ratio_B


@dataclass(frozen=True)
class LogProb:
    """log pi(y|x), averaged over tokens (SimPO, arXiv 2405.14734, eq. 4) or summed (CPO)."""

    mean: bool = True
    needs: frozenset[str] = field(default=frozenset(), init=False)

    def __call__(self, batch: Any, name: str) -> Any:
        """[B]."""
        scored = batch.branches[name]
        return scored.sum_B / scored.count_B if self.mean else scored.sum_B


@dataclass(frozen=True)
class LogOdds:
    """log p / (1 - p), where log p is the mean over tokens (ORPO, arXiv 2403.07691, eq. 4)."""

    needs: frozenset[str] = field(default=frozenset(), init=False)

    def __call__(self, batch: Any, name: str) -> Any:
        """[B]. A token that is certain has no odds, hence the bound just below log p = 0."""
        import torch

        scored = batch.branches[name]
        logp_B = (scored.sum_B / scored.count_B).clamp(max=-1e-7)
        return logp_B - torch.log(-torch.expm1(logp_B))


@dataclass(frozen=True)
class Changed:
    """The log-ratio with tokens that differ between the two answers weighed `gamma`, others 1.

    DDPO (RLHF-V, arXiv 2312.00849): human corrections change segments, and these carry the
    preference. `normalize` divides by the sum of the weights, as there; the released code has it
    as an option. What differs is found by aligning the two token sequences.
    """

    gamma: float = 5.0
    normalize: bool = True
    against: tuple[str, str] = ("chosen", "rejected")
    needs: frozenset[str] = field(default=frozenset({"reference"}), init=False)

    def __call__(self, batch: Any, name: str) -> Any:
        """[B]."""
        scored = batch.branches[name]
        other = batch.branches[self.against[1 - self.against.index(name)]]
        weight_BT = scored.mask_BT.clone()
        for row_T, mine_T, theirs_T in zip(weight_BT, scored.ids_BT.tolist(),
                                           other.ids_BT.tolist(), strict=True):
            row_T[changed(mine_T, theirs_T)] *= self.gamma
        found_B = ((scored.logp_BT - scored.reference_BT) * weight_BT).sum(-1)
        return found_B / weight_BT.sum(-1).clamp(min=1) if self.normalize else found_B


@dataclass(frozen=True)
class OwnWeights:
    """The log-ratio under the tokens' own weights w (`Branch.token_weights`; 1 where none are).

    sum_t w_t (log pi - log pi_ref), divided by sum_t w_t with `normalize`: DDPO's formula (RLHF-V,
    arXiv 2312.00849) where the maker of the pair, and not an alignment, knows what counts.
    """

    normalize: bool = True
    needs: frozenset[str] = field(default=frozenset({"reference"}), init=False)

    def __call__(self, batch: Any, name: str) -> Any:
        """[B]."""
        scored = batch.branches[name]
        found_B = ((scored.logp_BT - scored.reference_BT) * scored.share_BT).sum(-1)
        return found_B / scored.share_BT.sum(-1).clamp(min=1e-12) if self.normalize else found_B


def changed(mine: list[int], theirs: list[int]) -> list[int]:
    """Places of `mine` that no common block of the two sequences covers (-1 is padding)."""
    a, b = ([t for t in row if t >= 0] for row in (mine, theirs))
    same = {i for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
            for i in range(block.a, block.a + block.size)}
    return [i for i in range(len(a)) if i not in same]


@dataclass(frozen=True)
class Guided:
    """The log-ratio of gamma log pi(y|x) - (gamma - 1) stop[log pi(y|x')], x' without the picture.

    V-DPO (arXiv 2411.02712, released code). The branch `<name>_blind` is the same answer under a
    blank or missing picture; gamma = 1 is DPO. The released script's gamma = 0 leaves only the
    picture-free term, without gradient, and is refused.
    """

    gamma: float = 1.5
    needs: frozenset[str] = field(default=frozenset({"reference"}), init=False)

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            from selfloop.roles import SelfloopError

            raise SelfloopError(f"Guided(gamma={self.gamma}): must be above 0; 1 is plain DPO")

    def beside(self, name: str) -> tuple[str, ...]:
        """The branch without the picture."""
        return (f"{name}_blind",)

    def __call__(self, batch: Any, name: str) -> Any:
        """[B]."""
        seen, blind = (batch.branches[n] for n in (name, *self.beside(name)))
        return self.gamma * seen.ratio_B - (self.gamma - 1) * blind.ratio_B.detach()
