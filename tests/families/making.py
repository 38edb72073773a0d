"""What the families have in common: a small vocabulary, made pictures, a reader, live weights.

Nothing here calls a processor: a family says which tokens a picture becomes and which tensors
stand behind them, so that every model can be tried where only torch and transformers are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_models import picture
from selfloop.optimize.rows import Row
from selfloop.types import Media

VOCAB = 64
PAD, BOS, EOS, IMAGE, VIDEO, OPEN, CLOSE, AUDIO, MARK, TILE, BREAK = range(11)
"""IMAGE stands for picture features; OPEN, CLOSE, MARK, TILE and BREAK are what surrounds them."""
TEXT = 16
"""The first id that is plain text."""
BANNED = torch.zeros(VOCAB, dtype=torch.bool)
BANNED[:TEXT] = True
BANNED[EOS] = False

Pixels = dict[str, torch.Tensor]


def sizes(**more: Any) -> dict[str, Any]:
    """A language model's sizes, as most configurations call them."""
    return {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 512, "pad_token_id": PAD, "bos_token_id": BOS,
            "eos_token_id": EOS, **more}


def sight(**more: Any) -> dict[str, Any]:
    """A vision tower's sizes: pictures of 16 x 16 pixels in patches of 4 x 4."""
    return {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 4, **more}


def noise(medium: Media, *shape: int) -> torch.Tensor:
    """This picture's pixels, in float64 so that every dtype sees the same picture."""
    seed = torch.Generator().manual_seed(int(medium.sha256[:8], 16))
    return torch.randn(*shape, generator=seed, dtype=torch.float64)


def kind(medium: Media) -> int:
    """0 or 1: pictures of both shapes come up."""
    return int(medium.sha256[:2], 16) % 2


@dataclass(frozen=True)
class MadeReader:
    """Token sequences with made pictures, as a processor's reader would lay them out."""

    pixels: Callable[[Sequence[Media]], Pixels]
    """The tensors of one sequence's pictures; those of several join along the first axis."""
    dtype: torch.dtype
    types: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Per-token inputs: name -> token id -> value (0 for all others)."""
    placeholders: frozenset[int] = frozenset({IMAGE, VIDEO, AUDIO})
    more: Callable[[torch.Tensor, Sequence[Sequence[Media]]], Pixels] | None = None
    """Inputs as long as the sequences, from their ids [B, T] and pictures."""
    answers: Mapping[str, int] = field(default_factory=dict)
    """What an answer's tokens are marked with where a prompt's are not. A reader cannot know where
    an answer begins, so this is only for looking at the model without any path (`alone`)."""

    def inputs(self, sequences: Sequence[Any]) -> Pixels:
        """input_ids and attention_mask [B, T] padded right, types [B, T], pixels."""
        longest = max(len(ids) for ids, _ in sequences)
        ids_BT = torch.full((len(sequences), longest), PAD)
        mask_BT = torch.zeros_like(ids_BT)
        for b, (ids, _) in enumerate(sequences):
            ids_BT[b, :len(ids)] = torch.tensor(ids)
            mask_BT[b, :len(ids)] = 1
        found = {"input_ids": ids_BT, "attention_mask": mask_BT}
        for name, table in self.types.items():
            found[name] = torch.zeros_like(ids_BT)
            for token, value in table.items():
                found[name][(ids_BT == token) & (mask_BT == 1)] = value
        parts = [self._pixels(media) for _, media in sequences if media]
        for name in parts[0] if parts else ():
            found[name] = torch.cat([part[name] for part in parts])
        if self.more is not None:
            found |= self.more(ids_BT, [media for _, media in sequences])
        return found

    def alone(self, row: Row) -> Pixels:
        """One row as the model's authors would feed it: what both paths must amount to."""
        found = self.inputs([(row.token_ids, row.media)])
        for name, value in self.answers.items():
            found[name][:, row.prompt:] = value
        return found

    def signature(self, media: tuple[Media, ...]) -> Hashable:
        """Shapes but for the first axis."""
        return tuple(sorted((n, tuple(t.shape[1:])) for n, t in self._pixels(media).items()))

    def _pixels(self, media: Sequence[Media]) -> Pixels:
        made = self.pixels(media) if media else {}
        return {n: t.to(self.dtype) if t.is_floating_point() else t for n, t in made.items()}


@dataclass(frozen=True)
class Family:
    """One model with what is needed to ask it about pictures."""

    name: str
    model: Any
    reader: MadeReader
    span: Callable[[Media], tuple[int, ...]]
    """The tokens that stand in a prompt for one picture."""

    def prompt(self, numbers: Sequence[int], text: Sequence[int]
               ) -> tuple[tuple[int, ...], tuple[Media, ...]]:
        """Pictures of these numbers followed by text."""
        media = tuple(picture(n) for n in numbers)
        spans = [token for m in media for token in self.span(m)]
        return (BOS, *spans, *text), media

    def rows(self, numbers: Sequence[int], text: int, answers: Sequence[int]) -> list[Row]:
        """One prompt with `text` tokens of text, and an answer of each of these lengths."""
        made = [TEXT + (7 * i + 3 * text) % (VOCAB - TEXT) for i in range(text)]
        ids, media = self.prompt(numbers, made)
        rows = []
        for k, length in enumerate(answers):
            answer = tuple(TEXT + (11 * k + 5 * i * i + text) % (VOCAB - TEXT)
                           for i in range(length))
            rows.append(Row((*ids, *answer), (False,) * len(ids) + (True,) * length, media,
                            len(ids)))
        return rows


def build(name: str, kind_: Any, config: Any, dtype: torch.dtype,
          span: Callable[[Media], tuple[int, ...]],
          pixels: Callable[[Sequence[Media]], Pixels],
          types: Mapping[str, Mapping[int, int]] | None = None, **reader: Any) -> Family:
    """A model of this class with live weights, in eval mode, and its reader."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind_(config)
        awaken(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():  # complex buffers (Llama 4's rotations) stay what they are
            tensor.data = tensor.data.to(dtype)
    model.eval()
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # grouped matrix products know no float64
    return Family(name, model, MadeReader(pixels, dtype, types or {}, **reader), span)


@torch.no_grad()
def awaken(model: torch.nn.Module) -> None:
    """Weights large enough that pictures, gates and every layer move the answer.

    A fresh model is nearly blind (initial ranges of 0.02, projections of zero), and on it a wrong
    path would go unnoticed.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            fan = max(1, parameter[0].numel())
            torch.nn.init.normal_(parameter, std=fan ** -0.5)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
