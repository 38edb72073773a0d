"""Decoder layers cut over the processes (FSDP2), for models that one device does not hold.

Weights, gradients, moments and kept versions of every decoder layer are split; before a layer runs
all processes gather it, afterwards they let go of it (Zhao et al., arXiv 2304.11277;
`torch.distributed.fsdp.fully_shard`). Vision tower, embeddings, head and adapters are whole on
each. Processes still share out the rows, so their forward passes differ in number: `Steps` keeps
them in step, and who has nothing left to run walks along with an empty token.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from selfloop.optimize.memory import out_of_memory
from selfloop.optimize.processes import Elsewhere, Lost
from selfloop.roles import SelfloopError

T = TypeVar("T")


def cut(net: Any, mesh: Any, device: str) -> Steps:
    """Cuts the decoder's layers over the mesh, moves the rest to the device. Raises SelfloopError
    for a model whose decoder has no list of layers, or whose weights are not floating point."""
    from torch.distributed.fsdp import fully_shard

    decoder: Any = net.get_decoder() if hasattr(net, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise SelfloopError(f"shard: {type(net).__name__} has no list of decoder layers to cut; "
                            "leave `shard` out")
    odd = next((n for n, p in layers.named_parameters() if not p.is_floating_point()), None)
    if odd is not None:
        raise SelfloopError(f"shard: {odd} is quantised, which cannot be cut; leave one out")
    inside = set()
    for layer in layers:
        whole = {p for n, p in layer.named_parameters() if "lora_" in n}
        cut_layer: Any = fully_shard(layer, mesh=mesh, reshard_after_forward=True,
                                     ignored_params=whole)
        cut_layer.set_gradient_divide_factor(1.0)  # gradients are added up, not averaged
        cut_layer.set_force_sum_reduction_for_comms(True)
        inside |= set(layer.parameters())
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - inside)
    net.to(device)
    return Steps(decoder, mesh)


def is_cut(tensor: Any) -> bool:
    """Whether each process holds only a piece of it."""
    return hasattr(tensor, "to_local")


class Steps:
    """Keeps the decoder's forward passes, and their backward passes, in step."""

    def __init__(self, decoder: Any, mesh: Any) -> None:
        self.decoder, self.mesh = decoder, mesh
        self.size, self.rank = mesh.size(), mesh.get_local_rank()
        self.words: Any = None
        """The gloo group; set when the processes know of each other."""
        self._met = False
        """Whether calls are announced: not while all make the same ones, or walk along."""
        self._inside = False
        self._ties: list[Any] = []
        """A zero from each call with gradients: every layer of every call is in the graph."""
        decoder.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
        decoder.register_forward_hook(self._after)

    # -- around the decoder -----------------------------------------------------------------------

    def _before(self, module: Any, args: Any, named: dict[str, Any]) -> Any:
        if self._met:
            self._meet(1)
        self._inside = True
        embeds = named.get("inputs_embeds")
        if embeds is None:
            raise SelfloopError("shard: this decoder is not given embeddings, so its passes cannot "
                                "be kept in step; leave `shard` out")
        if torch.is_grad_enabled() and not embeds.requires_grad:
            # Alike on all processes, whatever learns in front of the decoder: else layers would
            # hand in their gradients at other moments here than there.
            named = {**named, "inputs_embeds": embeds.detach().requires_grad_()}
        return args, named

    def _after(self, module: Any, args: Any, found: Any) -> None:
        self._inside = False
        if torch.is_grad_enabled():
            hidden = found[0]
            self._ties.append(hidden[:, :1, :1].sum() * 0)

    def _meet(self, going: int, failed: int = 0) -> bool:
        """Tells and hears who makes another call; whether anybody does."""
        flags = torch.tensor([going, failed])
        dist.all_reduce(flags, group=self.words)
        if int(flags[1]) and not failed:
            self._met = False
            raise Elsewhere("another process has failed")
        return bool(flags[0])

    def _walk(self, gradients: bool) -> None:
        """One pass with an empty token, beside the others' real ones."""
        head = next(p for p in self.decoder.parameters())
        width = self.decoder.config.hidden_size
        nothing = torch.zeros(1, 1, width, dtype=head.dtype, device=head.device)
        try:
            with torch.set_grad_enabled(gradients):
                self.decoder(inputs_embeds=nothing, use_cache=False)
        except Exception as error:
            self.failed(error)
            raise

    # -- stretches of work ------------------------------------------------------------------------

    def looking(self, work: Callable[[], T]) -> T:
        """work() without gradients, with as many passes as whoever makes most."""
        with torch.no_grad():
            found = self._announced(work)
            while self._meet(0):
                self._walk(False)
        return found

    def differentiate(self, work: Callable[[], Any]) -> None:
        """The backward pass of a loss, through as many passes as whoever made most."""
        total = self._scalar(work)
        self._inside = True
        try:
            total.backward()
        except Exception as error:
            self.failed(error)
            raise
        self._inside = False

    def _scalar(self, work: Callable[[], Any]) -> Any:
        self._ties = []
        total = self._announced(work)
        while self._meet(0):
            self._walk(True)
        counts = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(self._ties)]), group=self.words)
        most, least = max(map(int, counts)), min(map(int, counts))
        for _ in range(most - least):
            self._walk(len(self._ties) < most)
        ties, self._ties = self._ties, []
        total = sum(ties, total)
        return total if isinstance(total, torch.Tensor) and total.requires_grad \
            else torch.zeros((), requires_grad=True)

    def _announced(self, work: Callable[[], T]) -> T:
        self._met = True
        try:
            return work()
        except Elsewhere:
            raise
        except Exception as error:
            self.failed(error)
            self._meet(0, failed=1)
            raise
        finally:
            self._met = False

    def failed(self, error: Exception) -> None:
        """In the middle of a pass nobody else can be told: this process ends, and with it all."""
        if not self._inside or isinstance(error, Elsewhere):
            return
        line = " ".join(str(error).split())[:300]
        hint = "; with `shard` a micro-batch cannot be halved once it runs: lower " \
            "max_batch_tokens, or set checkpointing: true" if out_of_memory(error) else ""
        if self.rank:
            print(f"{type(error).__name__}: {line}{hint}", file=sys.stderr, flush=True)
            os._exit(1)
        raise Lost(f"{line}{hint}") from error


# -- tensors that may be cut ----------------------------------------------------------------------

def whole(tensor: Any) -> Any:
    """A tensor with all of its pieces; None on all processes but the first where it is cut. All
    processes call this together."""
    if not is_cut(tensor):
        return tensor
    # Plain calls, which end before they return: `full_tensor` goes through asynchronous ones, under
    # which a thread of gloo has crashed.
    mesh, mine = tensor.device_mesh, tensor.to_local().detach()
    rows = -(-len(tensor) // mesh.size())  # of a piece, as FSDP2 cuts them; the last have fewer
    padded = mine.new_zeros(rows, *tensor.shape[1:])
    padded[:len(mine)] = mine
    leads = mesh.get_local_rank() == 0
    full = padded.new_empty(rows * mesh.size(), *tensor.shape[1:]) if leads else None
    dist.gather(padded, list(full.chunk(mesh.size())) if full is not None else None,
                group=mesh.get_group(), group_dst=0)
    return None if full is None else full[:len(tensor)]


def like(tensor: torch.Tensor, parameter: Any) -> Any:
    """A whole tensor on the parameter's device; cut as that is, if their shapes agree."""
    moved = tensor.to(parameter.device)
    if not is_cut(parameter) or tensor.shape != parameter.shape:
        return moved
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(moved, parameter.device_mesh, parameter.placements,
                             src_data_rank=None)


def all_like(tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, Any]
             ) -> dict[str, Any]:
    """`like`, name by name."""
    return {name: like(tensor, parameters[name]) for name, tensor in tensors.items()}


def groups(parameters: Iterable[Any]) -> list[dict[str, Any]]:
    """Parameters for an optimizer, whose fused steps take cut and whole ones apart."""
    kinds: dict[bool, list[Any]] = {False: [], True: []}
    for parameter in parameters:
        kinds[is_cut(parameter)].append(parameter)
    return [{"params": mine} for mine in kinds.values() if mine]


def norms(gradients: Sequence[Any]) -> torch.Tensor:
    """The norm of each of them [N]. Where some are cut, all processes call this together."""
    if not gradients:
        return torch.zeros(0)
    each: Sequence[Any] = torch._foreach_norm(
        [g.to_local() if is_cut(g) else g for g in gradients])
    found_N = torch.stack(list(each))
    cut_N = [is_cut(g) for g in gradients]
    if any(cut_N):
        square_M = found_N[cut_N].double() ** 2
        mesh = gradients[cut_N.index(True)].device_mesh
        dist.all_reduce(square_M, group=mesh.get_group())
        found_N[cut_N] = square_M.sqrt().to(found_N.dtype)
    return found_N


def clip(parameters: Sequence[Any], most: float, total: torch.Tensor) -> torch.Tensor | None:
    """Gradients, whose norm is `total`, down to a norm of `most`: what fused AdamW is to divide
    them by as it reads them, which spares a pass over all of them. None: nothing, or it was done
    here, as where some are cut, whose divisor would have to be cut as well."""
    over = ((total + 1e-6) / most).float()
    if over <= 1:
        return None
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not any(map(is_cut, gradients)):
        return over
    torch._foreach_mul_([g.to_local() if is_cut(g) else g for g in gradients], 1 / over)
    return None
