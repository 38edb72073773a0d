"""From a model's last hidden states to log-probs: only where they are asked for, in chunks.

The output head is taken off the model's forward pass by a hook, so that no logits are computed on
prompts, pictures or padding, and never more than `CHUNK` of them at a time. What a model does to
its logits after the head (a soft cap, a scale) is measured at first use, not looked up by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from selfloop.optimize.wide import Asked, columns

CHUNK = 2**26
"""Logits held at a time (256 MiB in float32); more are recomputed in the backward pass."""


_FAR = 1e6
"""A logit beyond every soft cap."""


class Head:
    """One model's way from hidden states [M, D] to log-probs of given tokens [M]."""

    def __init__(self, model: Any, banned_V: torch.Tensor, chunk: int = CHUNK) -> None:
        self.model, self.banned_V, self.chunk = model, banned_V, chunk
        self.scale, self.cap = 1.0, 0.0
        self.separate: bool | None = None
        """Whether the head can be run by itself; False = its logits are taken as they come."""

    def hidden(self, inputs: dict[str, Any], keep_K: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, K, D] at the places `keep_K` of each row, by one forward pass.

        (Logits [B, K, V] from models whose head cannot be separated.)
        """
        if self.separate is False:
            return self._kept(self._run(inputs, keep_K).logits, keep_K)
        if self.separate is None:
            self._measure(inputs, keep_K)
            return self.hidden(inputs, keep_K)
        caught: list[torch.Tensor] = []

        def catch(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            caught.append(args[0])
            return (args[0][:, :0], *args[1:])

        with self.model.get_output_embeddings().register_forward_pre_hook(catch):
            self._run(inputs, keep_K)
        return self._kept(caught[0], keep_K)

    def _run(self, inputs: dict[str, Any], keep_K: torch.Tensor) -> Any:
        return self.model(**inputs, logits_to_keep=keep_K)

    def _kept(self, found_BKx: torch.Tensor, keep_K: torch.Tensor) -> torch.Tensor:
        # Some models ignore logits_to_keep and give every place.
        return found_BKx if found_BKx.shape[1] == len(keep_K) else found_BKx[:, keep_K]

    @torch.no_grad()
    def _measure(self, inputs: dict[str, Any], keep_K: torch.Tensor) -> None:
        """Find the scale or cap between the head's output and the model's logits.

        Numbers of ours take the place of the head's output, so that what is found depends neither
        on the batch nor on the weights: a cap is far from the logits of a young model.
        """
        self.separate = False
        head = self.model.get_output_embeddings()
        put: list[torch.Tensor] = []

        def replace(module: Any, args: tuple[Any, ...], raw_BKV: torch.Tensor) -> torch.Tensor:
            exact = torch.float32 if raw_BKV.device.type == "mps" else torch.float64
            probe_V = torch.linspace(-60, 60, raw_BKV.shape[-1], dtype=exact, device=raw_BKV.device)
            probe_V[0], probe_V[-1] = 1.0, _FAR
            put.append(probe_V.expand(raw_BKV.shape))
            return put[-1]

        if head is None:
            return
        alone = {k: x for k, x in inputs.items() if k not in ("past_key_values", "use_cache")}
        with head.register_forward_hook(replace):  # a cache would keep what has no gradients
            given = self._run({**alone, "use_cache": False}, keep_K).logits
        if len(put) != 1 or given.shape != put[0].shape:
            return
        raw_V, given_V = put[0][0, 0].double(), given[0, 0].double()
        near = 1e-5 if given.dtype in (torch.float32, torch.float64) else 2e-2
        for scale, limit in ((1.0, 0.0), (1.0, float(given_V[-1])), (float(given_V[0]), 0.0)):
            found_V = scale * raw_V if limit <= 0 else limit * torch.tanh(raw_V / limit)
            if torch.allclose(found_V, given_V, rtol=near, atol=near):
                self.separate, self.scale = True, self._configured(scale, near)
                self.cap = self._configured(limit, near) if limit > 0 else 0.0
                return

    def _configured(self, value: float, near: float) -> float:
        """The number of the model's configuration, or its inverse, that a measured one is."""
        text = self.model.config.get_text_config(decoder=True)
        known = [float(x) for x in vars(text).values()
                 if isinstance(x, int | float) and not isinstance(x, bool) and x]
        for x in [1.0, *known, *(1 / x for x in known)]:
            if abs(x - value) <= near * abs(x):
                return x
        return value

    def logps(self, hidden_MD: torch.Tensor, ids_M: torch.Tensor, temperature_M: torch.Tensor,
              entropy: bool = False, ask: Asked | None = None
              ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probs of `ids_M` (nats) and, if asked, entropies, in float32 or wider.

        With `ask` a matrix of them, see `rows.Wide`.
        """
        rows = max(1, self.chunk // len(self.banned_V))
        parts = []
        for at in range(0, len(hidden_MD), rows):
            part = (hidden_MD[at:at + rows], ids_M[at:at + rows], temperature_M[at:at + rows],
                    entropy, ask and ask.rows(slice(at, at + rows)))
            again = len(hidden_MD) > rows and torch.is_grad_enabled()
            parts.append(checkpoint(self._chunk, *part, use_reentrant=False,
                                    preserve_rng_state=False) if again else self._chunk(*part))
        if not parts:
            parts = [self._chunk(hidden_MD, ids_M, temperature_M, entropy, ask)]
        return (torch.cat([p[0] for p in parts]),
                torch.cat([p[1] for p in parts]) if entropy else None)

    def _chunk(self, hidden_MD: Any, ids_M: Any, temperature_M: Any, entropy: bool,
               ask: Asked | None) -> Any:
        logits_MV = hidden_MD
        if self.separate:
            logits_MV = logits_of(self.model.get_output_embeddings(), hidden_MD)
            if self.cap:
                logits_MV = self.cap * torch.tanh(logits_MV / self.cap)
            elif self.scale != 1.0:
                logits_MV = logits_MV * self.scale
        if ask is not None:
            return wide_logps(logits_MV, ids_M, temperature_M, self.banned_V, entropy, ask)
        # A plain linear layer keeps its input, not its output, which is then nobody else's.
        head = self.model.get_output_embeddings()
        spent = bool(self.separate) and not self.cap and _bare(head)
        return token_logps(logits_MV, ids_M, temperature_M, self.banned_V, entropy, spent=spent)


def logits_of(head: Any, hidden_MD: torch.Tensor) -> torch.Tensor:
    """What the head makes of hidden states; a plain one without a copy of its gradient."""
    if _bare(head) and head.bias is None \
            and not torch.is_autocast_enabled(hidden_MD.device.type):
        return _Plain.apply(hidden_MD, head.weight)  # type: ignore[no-any-return]
    found: torch.Tensor = head(hidden_MD)
    return found


def _bare(head: Any) -> bool:
    """Whether calling the head is its product and nothing else: no hook of anybody reads, keeps or
    changes what goes in and comes out, and no forward was put in place of the layer's own."""
    return type(head) is torch.nn.Linear and "forward" not in vars(head) and not (
        head._forward_hooks or head._forward_pre_hooks
        or head._backward_hooks or head._backward_pre_hooks)


def token_logps(
    logits_NV: torch.Tensor, ids_N: torch.Tensor, temperature_N: torch.Tensor,
    banned_V: torch.Tensor, entropy: bool, *, spent: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs of given tokens (nats), and the distribution's entropies, in float32 or wider.

    After temperature, with suppressed tokens out of the normaliser: exactly as they are sampled.
    `spent` allows to overwrite the logits, in both passes: nobody else may read them.
    """
    logp_N, entropy_N = _TokenLogps.apply(
        logits_NV, ids_N, temperature_N, banned_V, entropy, spent)
    return logp_N, entropy_N if entropy else None


def wide_logps(logits_NV: torch.Tensor, ids_N: torch.Tensor, temperature_N: torch.Tensor,
               banned_V: torch.Tensor, entropy: bool, ask: Asked
               ) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `token_logps`, but the matrix that rows.Wide describes; keeps the whole distribution."""
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    z_NV = logits_NV.to(wide) / temperature_N[:, None].to(wide)
    banned_B = numbers(banned_V)
    logp_NV = torch.log_softmax(z_NV.index_fill(1, banned_B, -torch.inf), -1)
    found_NC = columns(logp_NV, ids_N, ask)
    if not entropy:
        return found_NC, None
    return found_NC, -(logp_NV.exp() * logp_NV.index_fill(1, banned_B, 0.0)).sum(-1)


def numbers(banned_V: torch.Tensor) -> torch.Tensor:
    """[B]: suppressed tokens by number. Filling a few columns takes a tenth of what filling by a
    mask as wide as the vocabulary does."""
    return banned_V.nonzero()[:, 0]


_BLOCK = 2**21
"""Numbers worked on at a time (8 MiB in float32): what stays in cache and in the allocator."""
_Function: Any = torch.autograd.Function


class _Plain(_Function):  # type: ignore[misc]
    """x @ w.T, bit for bit as torch has it, but w's gradient is its own tensor and no view. What
    comes after it is then added in place: the chunks that follow, and the embedding's gradient
    where both are tied. As torch has it a third tensor of [V, D] holds every such sum."""

    @staticmethod
    def forward(ctx: Any, x_MD: torch.Tensor, w_VD: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_MD, w_VD)
        return x_MD @ w_VD.T

    @staticmethod
    def backward(ctx: Any, grad_MV: Any) -> Any:
        x_MD, w_VD = ctx.saved_tensors
        return (grad_MV @ w_VD if ctx.needs_input_grad[0] else None,
                grad_MV.T @ x_MD if ctx.needs_input_grad[1] else None)


class _TokenLogps(_Function):  # type: ignore[misc]
    """log p(id) = z[id] - logsumexp(z); the softmax is made again in the backward pass, so that
    one buffer of logits is kept instead of four, and with `spent` becomes their gradient."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Any, ids_N: Any, temperature_N: Any, banned_V: Any,
                entropy: bool, spent: bool) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        ctx.spent = spent and logits_NV.dtype == wide
        banned_B = numbers(banned_V)
        lse_N, logp_N, entropy_N = (
            torch.zeros(len(ids_N), dtype=wide, device=logits_NV.device) for _ in range(3))
        for rows in _blocks(logits_NV):
            z_MV = _scaled(logits_NV[rows], temperature_N[rows], banned_B, ctx.spent)
            lse_N[rows] = torch.logsumexp(z_MV, -1)
            logp_N[rows] = z_MV.gather(1, ids_N[rows, None])[:, 0] - lse_N[rows]
            if entropy:  # H = lse - sum p z, suppressed tokens (p = 0, z = -inf) left out
                p_MV = torch.exp(z_MV - lse_N[rows, None])
                entropy_N[rows] = lse_N[rows] - (p_MV * z_MV.index_fill(1, banned_B, 0.0)).sum(-1)
        ctx.save_for_backward(logits_NV, ids_N, temperature_N, banned_B, lse_N, entropy_N)
        ctx.entropy = entropy
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Any, grad_entropy_N: Any) -> Any:
        logits_NV, ids_N, temperature_N, banned_B, lse_N, entropy_N = ctx.saved_tensors
        found_NV = logits_NV if ctx.spent else torch.empty_like(logits_NV)
        for rows in _blocks(logits_NV):
            z_MV = logits_NV[rows] if ctx.spent else _scaled(
                logits_NV[rows], temperature_N[rows], banned_B, False)
            logp_MV = z_MV.sub_(lse_N[rows, None])
            if ctx.entropy:
                p_MV = logp_MV.exp()
                # dH/dz = -p (log p + H)
                logp_MV.index_fill_(1, banned_B, 0.0).add_(entropy_N[rows, None])
                logp_MV.mul_(-grad_entropy_N[rows, None]).sub_(grad_N[rows, None]).mul_(p_MV)
            else:
                logp_MV.exp_().mul_(-grad_N[rows, None])
            logp_MV.scatter_add_(1, ids_N[rows, None], grad_N[rows, None])
            if not _all_one(temperature_N[rows]):
                logp_MV.div_(temperature_N[rows, None].to(logp_MV.dtype))
            if not ctx.spent:
                found_NV[rows] = logp_MV
        return found_NV, None, None, None, None, None


def _blocks(logits_NV: Any) -> list[slice]:
    rows = max(1, _BLOCK // max(1, logits_NV.shape[1]))
    return [slice(at, at + rows) for at in range(0, len(logits_NV), rows)]


def _all_one(temperature_M: Any) -> bool:
    return bool((temperature_M == 1).all())


def _scaled(logits_MV: Any, temperature_M: Any, banned_B: Any, spent: bool) -> Any:
    """Logits over temperature, suppressed tokens at minus infinity; in place if `spent`."""
    z_MV = logits_MV if spent else logits_MV.to(
        torch.promote_types(logits_MV.dtype, torch.float32), copy=True)
    if not _all_one(temperature_M):
        z_MV.div_(temperature_M[:, None].to(z_MV.dtype))
    return z_MV.index_fill_(1, banned_B, -torch.inf)
