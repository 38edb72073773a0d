"""Tiny random models of many families, each with a reader of made pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch

from families import grids, newer, squares, tiles
from families.making import BANNED, EOS, TEXT, VOCAB, Family, MadeReader

__all__ = ["BANNED", "EOS", "FAMILIES", "TEXT", "VOCAB", "Family", "MadeReader"]

FAMILIES: dict[str, Callable[[torch.dtype], Family]] = {
    make.__name__: make for make in (
        squares.llava, squares.internvl, squares.gemma3, squares.paligemma, squares.llama4,
        squares.aya_vision, squares.cohere2_vision, squares.deepseek_vl, squares.idefics2,
        grids.qwen2_vl, grids.qwen2_5_vl, grids.qwen3_vl, grids.qwen3_vl_moe, grids.qwen3_5,
        grids.qwen3_5_moe, grids.glm4v, grids.qwen2_5_omni,
        tiles.llava_next, tiles.llava_onevision, tiles.idefics3, tiles.smolvlm, tiles.mistral3,
        tiles.lfm2_vl, tiles.gemma4, tiles.ovis2, tiles.kimi_k25, tiles.mllama,
        newer.qwen4_exp, newer.lfm3_vl, newer.gemma4_unified,
    )}
