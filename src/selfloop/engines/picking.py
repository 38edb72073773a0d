"""Drawing one token a row: the inverse CDF at a given uniform, so that randomness has a key."""

from __future__ import annotations

import torch

from selfloop.roles import Sampling

_BELOW_ONE = 1 - 2.0**-52
"""Times any float64, this rounds to one that is smaller."""


def pick(logits_NV: torch.Tensor, uniform_N: torch.Tensor, sampling: Sampling,
         banned_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row, by inverse CDF in float64 (the likeliest when greedy), and its log-prob.

    The log-prob is after temperature (1 when greedy) and without the banned tokens (`banned_B`,
    by number), before top-k, top-p and min-p.
    """
    wide_NV = _allowed(logits_NV, banned_B)
    if sampling.temperature == 0:
        token_N = wide_NV.argmax(-1)
        return token_N, wide_NV.gather(1, token_N[:, None])[:, 0] - torch.logsumexp(wide_NV, -1)
    if sampling.temperature != 1:
        wide_NV = wide_NV / sampling.temperature
    logp_NV = torch.log_softmax(wide_NV, -1)
    p_NV = filtered(logp_NV.to(torch.float64, copy=True).exp_(), sampling)
    cdf_NV = p_NV.cumsum_(-1)  # tables of the vocabulary's width: as few as can be
    total_N1 = cdf_NV[:, -1:]
    # Strictly below the total, so that the token found always has probability of its own.
    point_N1 = uniform_N.clamp(max=_BELOW_ONE)[:, None] * total_N1
    # Where there are no numbers none is found: then the log-prob is none either, and told of.
    token_N = torch.searchsorted(cdf_NV, point_N1, right=True)[:, 0].clamp_(
        max=cdf_NV.shape[1] - 1)
    return token_N, logp_NV.gather(1, token_N[:, None])[:, 0]


def pick_apart(logits_NV: torch.Tensor, uniform_N: torch.Tensor, sampling: Sampling,
               banned_B: torch.Tensor, group_N2: torch.Tensor, open_N: torch.Tensor
               ) -> tuple[torch.Tensor, torch.Tensor]:
    """As `pick`, where draw i of a job avoids what its draws before i have picked in this step.

    `group_N2` is each row's (job, draw); rows that are not open have ended and are avoided by
    none. A token loses `sampling.diversity` times the number of
    those draws that picked it from its log-prob after temperature (Vijayakumar et al. 2016, arXiv
    1610.02424, eq. 4 with Hamming distance); the log-prob that is given is the one before.
    """
    wide_NV = _allowed(logits_NV, banned_B)
    heat = sampling.temperature or 1.0
    logp_NV = torch.log_softmax(wide_NV / heat, -1)
    job_N = torch.unique(group_N2[:, 0], return_inverse=True)[1]
    taken_JV = torch.zeros(int(job_N.max()) + 1, logits_NV.shape[1], dtype=logp_NV.dtype,
                           device=logits_NV.device)
    token_N = torch.zeros_like(job_N)
    for draw in range(int(group_N2[:, 1].max()) + 1):
        mine_M = (group_N2[:, 1] == draw).nonzero()[:, 0]
        lowered_MV = logp_NV[mine_M] - sampling.diversity * taken_JV[job_N[mine_M]]
        token_N[mine_M] = pick(lowered_MV * heat, uniform_N[mine_M], sampling, banned_B)[0]
        taken_JV[job_N[mine_M], token_N[mine_M]] += open_N[mine_M].to(taken_JV.dtype)
    return token_N, logp_NV.gather(1, token_N[:, None])[:, 0]


def _allowed(logits_NV: torch.Tensor, banned_B: torch.Tensor) -> torch.Tensor:
    """A copy, in float32 or wider, in which banned tokens are at minus infinity."""
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return logits_NV.to(wide, copy=True).index_fill_(1, banned_B, -torch.inf)


def filtered(p_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities with those outside min-p, top-k and top-p at zero (not renormalised)."""
    if sampling.min_p > 0:
        p_NV = p_NV.masked_fill(p_NV < sampling.min_p * p_NV.amax(-1, keepdim=True), 0.0)
    if not sampling.top_k and sampling.top_p >= 1:
        return p_NV
    sorted_NV, order_NV = p_NV.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        sorted_NV[:, sampling.top_k:] = 0.0
    if sampling.top_p < 1:
        # The smallest set that reaches top_p of the mass: drop where the mass before is enough.
        before_NV = sorted_NV.cumsum(-1) - sorted_NV
        enough_NV = before_NV >= sampling.top_p * sorted_NV.sum(-1, keepdim=True)
        sorted_NV = sorted_NV.masked_fill(enough_NV, 0.0)
    return torch.zeros_like(p_NV).scatter(1, order_NV, sorted_NV)
