"""Low-rank adapters: LoRA, DoRA, rsLoRA, over a base in 4 bits if asked; one or several on a base.

Several adapters share one base model in memory; each is worn (switched on) before its own engine
runs anything, and has its own parameters, so a gradient of one cannot reach another.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfloop.optimize.parts import parts_of
from selfloop.roles import SelfloopError

FIRST = "default"
"""What PEFT calls a model's first adapter."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters on the language model (Hu et al. 2021): W + (alpha / rank) B A.

    Raises SelfloopError for a number of bits that is not 4, a rank below 1, no targets.
    """

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] | None = None
    """Last names of linear layers, such as "q_proj"; None = all of the language model's."""
    dora: bool = False
    """Learn each column's size apart from its direction (DoRA, Liu et al., arXiv 2402.09353)."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (rsLoRA, Kalajdzievski, arXiv 2312.03732)."""
    bits: int | None = None
    """4: the language model's own weights in 4-bit NormalFloat with doubly quantised constants
    (QLoRA, Dettmers et al., arXiv 2305.14314, section 3); needs bitsandbytes. None: as loaded."""

    def __post_init__(self) -> None:
        if self.bits not in (None, 4):
            raise SelfloopError(f"lora.bits={self.bits}: expected 4, or leave it out")
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise SelfloopError(f"lora.{name}={getattr(self, name)}: expected 1 or more")
        if self.targets is not None and (isinstance(self.targets, str) or not self.targets):
            raise SelfloopError(f"lora.targets={self.targets!r}: expected a list of names such as "
                                "q_proj; leave it out for all of the language model's")


def language_linears(net: Any) -> dict[str, list[str]]:
    """The language model's linear layers: last name -> full names (the output head excluded).

    Layers that are adapted already go by the names that they had before.
    """
    head = net.get_output_embeddings()
    linears = [name.removesuffix(".base_layer") for name, module in net.named_modules()
               if isinstance(module, torch.nn.Linear) and module is not head
               and ".lora_" not in name]
    found: dict[str, list[str]] = {}
    for name, part in parts_of(net, linears).items():
        if part == "language":
            found.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    return found


# -- a base in 4 bits -----------------------------------------------------------------------------

def need_four_bits() -> None:
    """Raises SelfloopError where 4-bit weights cannot be had."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SelfloopError("lora.bits=4 needs bitsandbytes: pip install 'selfloop[qlora]', or "
                            "leave bits out")


def four_bits(net: Any, dtype: torch.dtype) -> Any:
    """How `net` (which may be empty, on the meta device) is to be loaded: a BitsAndBytesConfig.

    The language model's linear layers go into 4 bits; the vision tower, the projector and the
    output head stay as they are. Sums are in `dtype`.
    """
    from transformers import BitsAndBytesConfig

    inside = {name for names in language_linears(net).values() for name in names}
    kept = [name for name, module in net.named_modules()
            if isinstance(module, torch.nn.Linear) and name not in inside]
    make: Any = BitsAndBytesConfig
    return make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=kept)


# -- adapters -------------------------------------------------------------------------------------

def adapted(net: Any, lora: LoRA) -> Any:
    """The model with its first adapter, as a PeftModel. Raises SelfloopError for a wrong target."""
    from peft import get_peft_model

    config = settings(net, lora)
    with _from_the_seed():
        return _ready(get_peft_model(net, config))


def added(peft: Any, name: str, lora: LoRA) -> None:
    """One more adapter on the same base. Raises SelfloopError for a name that is taken or odd."""
    if not re.fullmatch(r"[A-Za-z]\w*", name) or "lora_" in name:
        raise SelfloopError(f"an adapter cannot be called {name!r}: use letters, digits and _")
    if name in peft.peft_config:
        raise SelfloopError(f"there is an adapter {name!r} on this model: give each role its own")
    config = settings(peft.get_base_model(), lora)
    config.base_model_name_or_path = peft.peft_config[FIRST].base_model_name_or_path
    with _from_the_seed():
        peft.add_adapter(name, config)
    _ready(peft)


def _ready(peft: Any) -> Any:
    peft.eval()
    for module in peft.modules():
        # bitsandbytes (0.50) repacks a layer in eval mode on CPUs with AVX-512 for products that
        # have no gradient; nothing else in these layers depends on the mode.
        if type(module).__name__ == "Linear4bit" and module.weight.device.type == "cpu":
            module.train()
    return peft


def settings(net: Any, lora: LoRA) -> Any:
    """PEFT's LoraConfig for this model."""
    from peft import LoraConfig

    known = language_linears(net)
    wanted = lora.targets or tuple(sorted(known))
    if unknown := [name for name in wanted if name not in known]:
        raise SelfloopError(f"LoRA target {unknown[0]!r} is no linear layer of the language model; "
                            f"it has: {', '.join(sorted(known))}")
    names = [full for name in wanted for full in known[name]]
    # One expression over full names: PEFT's own suffix matching would also hit the vision tower.
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, bias="none",
                      target_modules=_alternation(names), use_dora=lora.dora,
                      use_rslora=lora.rslora)


def _alternation(names: Sequence[str]) -> str:
    """Full names as one expression, layer numbers folded: `...layers.\\d+.self_attn.q_proj`."""
    folded = sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(n)) for n in names})
    return "|".join(f"(?:{name})" for name in folded)


@contextmanager
def _from_the_seed() -> Iterator[None]:
    """An adapter's start is part of the seed, not of the caller."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def wear(peft: Any, name: str) -> None:
    """Switch this adapter on and all others off; only its parameters want gradients."""
    if peft.active_adapter != name:
        peft.set_adapter(name)


def plain(name: str, adapter: str) -> str:
    """A parameter's name as if its adapter were the only one: files do not depend on roles."""
    *places, last = name.split(".")
    if places and places[-1] == adapter:
        places[-1] = FIRST
    return ".".join([*places, last])


def save(peft: Any, adapter: str, folder: Path) -> None:
    """One adapter as PEFT writes a model's only one."""
    peft.save_pretrained(folder, selected_adapters=[adapter], safe_serialization=True)
    if adapter != FIRST:  # PEFT puts it into a folder of its name
        for path in (folder / adapter).iterdir():
            path.replace(folder / path.name)
        (folder / adapter).rmdir()
