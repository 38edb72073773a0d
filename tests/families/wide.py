"""Float64 all the way: transformers' own float32 casts become float64 ones.

Norms, rotary embeddings, routers, softmaxes and linear attention compute in float32 whatever the
model's dtype, which sets a floor of about 1e-7 under every comparison. That floor is the model's
and not a path's; with it out of the way, a path that is exact shows as exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_Mode: Any = TorchFunctionMode


class Float64(_Mode):
    """Within it, whatever asks torch for float32 gets float64."""

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type],
                           args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
                           ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(_wide, args), **{k: _wide(v) for k, v in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
