"""Attention of a decoding step as four matrix products and one softmax.

A fused kernel keeps no scores, and has a cost of its own at each call. A step asks two of them
(the prompt's keys, the answers' own) and merges what they give, which for few rows costs more than
the attention does. Where all scores fit a core's cache, one softmax over both is exact and takes
three quarters of the time (a CPU's two threads, 8 rows on a prompt of 600: 0.29 against 0.37 ms).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

MOST = 2**17
"""Scores (rows, heads, keys) up to which products are faster: half a MiB in float32."""


def suits(q_NHD: Any, counts: Sequence[int], keys: int, v_NKD: Any) -> bool:
    """Whether a step is run so: on a CPU, in full precision, as many answers to each prompt."""
    return (q_NHD.device.type == "cpu" and q_NHD.dtype == v_NKD.dtype
            and q_NHD.dtype in (torch.float32, torch.float64) and len(set(counts)) == 1
            and q_NHD.shape[0] * q_NHD.shape[1] * keys <= MOST)


def attend(q_NHD: Any, own: tuple[Any, Any], lent: tuple[Any, Any], scale: float) -> Any:
    """[N, H, D] for one token an answer: to its prompt's keys and to its own, all of them.

    `own`: keys and values [N, K, S, D]. `lent`: those of C prompts [C, K, P, D], to which the N
    answers belong in order, G = N / C to each; H = K J.
    """
    (n, h, d), (c, k, p, _) = q_NHD.shape, lent[0].shape
    g, j = n // c, h // k
    k_XSD, v_XSD = (x.flatten(0, 1) for x in own)  # X = N K
    k_YPD, v_YPD = (x.flatten(0, 1) for x in lent)  # Y = C K
    q_NHD = (q_NHD * scale).contiguous()  # it may come with heads and tokens transposed
    near_XJS = torch.bmm(q_NHD.view(n * k, j, d), k_XSD.transpose(1, 2))
    q_YQD = q_NHD.view(c, g, k, j * d).transpose(1, 2).reshape(c * k, g * j, d)  # Q = G J
    far_YQP = torch.bmm(q_YQD, k_YPD.transpose(1, 2))
    weights = torch.cat([far_YQP.view(c, k, g, j, p),
                         near_XJS.view(c, g, k, j, -1).transpose(1, 2)], -1).softmax(-1)
    far_YQD = torch.bmm(weights[..., :p].view(c * k, g * j, p), v_YPD)
    near_XJD = torch.bmm(weights[..., p:].transpose(1, 2).reshape(n * k, j, -1), v_XSD)
    far_NHD = far_YQD.view(c, k, g, -1).transpose(1, 2).reshape(n, h, -1)
    return near_XJD.view(n, h, -1).add_(far_NHD)
