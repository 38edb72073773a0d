"""Several roles on one base model: each learns an adapter of its own.

A proposer, a solver and a judge share the base's memory, its prompts and its picture features;
what each learns, publishes and saves is its own.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from selfloop.engines import hf_adapters
from selfloop.optimize.learner import Learner
from selfloop.roles import SelfloopError

if TYPE_CHECKING:
    from selfloop.engines.hf import HFEngine


def beside(engine: HFEngine, adapter: str, lora: hf_adapters.LoRA | None = None) -> HFEngine:
    """An engine on the same base model with an adapter of its own (`lora`: None = alike).

    Asked for again with the same settings, it is the same engine. Raises SelfloopError where the
    engine has no adapters, for a name that is taken, and for other bits: the base is shared.
    """
    if engine.loaded.peft is None or engine.lora is None:
        raise SelfloopError(f"{engine.name} learns its own weights, so no other role can have an "
                            "adapter beside it: give it lora")
    if engine.team.size > 1:
        raise SelfloopError(f"{adapter}: several processes play one adapter; leave `processes` "
                            "out, or give this role a model of its own")
    lora = replace(lora, bits=lora.bits or engine.lora.bits) if lora else engine.lora
    if lora.bits != engine.lora.bits:
        raise SelfloopError(f"lora.bits={lora.bits} for {adapter}, but the base that it shares is "
                            "not in so many: set bits where the base is loaded")
    known = engine.others.get(adapter)
    if known is not None and known.lora == lora:
        return known
    hf_adapters.added(engine.loaded.peft, adapter, lora)
    twin = copy.copy(engine)
    for once in ("parts", "_size", "_fingerprint"):
        twin.__dict__.pop(once, None)
    twin.lora, twin.loaded = lora, replace(engine.loaded, adapter=adapter)
    Learner.__init__(twin, twin, tokens_per_batch=engine.asked_per_batch)
    twin.team = engine.team
    engine.others[adapter] = twin
    return twin
