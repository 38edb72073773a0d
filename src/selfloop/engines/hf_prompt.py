"""Contexts to token ids and pixel tensors: one processor call per distinct context, never cut.

The ids that a prompt was rendered to once serve rollout and training alike; pixel tensors are kept
by picture, bounded in bytes, and made again from the picture when they were dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from selfloop.engines.chat import Chat
from selfloop.engines.hearing import heard_names, hearing
from selfloop.engines.hf_features import Features
from selfloop.roles import SelfloopError
from selfloop.sound import Sound
from selfloop.types import Context, Media, Message, Part, Turn

Rendered = tuple[tuple[int, ...], tuple[Media, ...]]
Pixels = dict[str, torch.Tensor]
Asked = tuple[str, tuple[tuple[int, int], ...], bool]


class Prompts:
    """Renders contexts and assembles model inputs (the `Reader` of optimize/score.py)."""

    def __init__(self, processor: Any, *, placeholders: frozenset[int], limit: int | None,
                 device: Any, ends: frozenset[int], dtype: Any = torch.float32,
                 cache_contexts: int = 4096, cache_bytes: int = 512 * 2**20) -> None:
        self.processor, self.placeholders, self.limit = processor, placeholders, limit
        self.device, self.dtype = device, dtype
        self.chat = Chat(processor, ends)
        self.open_media: Callable[[Media], Any] | None = None
        self.features: Features | None = None
        """Where kept picture features are told which pictures a batch holds."""
        self.calls = 0
        """Processor calls so far (a test holds that it is one per context)."""
        self._contexts: OrderedDict[str, Rendered] = OrderedDict()
        self._pixels: OrderedDict[tuple[str, ...], Pixels] = OrderedDict()
        self._cache_contexts, self._cache_bytes = cache_contexts, cache_bytes
        self._held = 0
        self._types: dict[str, dict[int, int]] = {}
        self._texts: OrderedDict[Asked, tuple[int, ...]] = OrderedDict()
        self._quick, self._proved = True, False

    # -- contexts ---------------------------------------------------------------------------

    def render(self, context: Context) -> Rendered:
        """Prompt ids with placeholders expanded, and the pictures behind them, in order."""
        known = self._contexts.get(context.identity)
        if known is None:
            text = self.chat.render(context.prompt, generate=True)
            ids = self._process(text, context.media, self.chat.adds_special(text))
            known = self._contexts[context.identity] = (ids, context.media)
            while len(self._contexts) > self._cache_contexts:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(context.identity)
        self.check_length(len(known[0]), len(context.media))
        return known

    def extend(self, context: Context, history: Sequence[Turn]) -> Rendered:
        """The prompt for the next turn: the last turn's very tokens, then what was said since.

        Falls back to rendering the whole where the template rewrites earlier messages.
        """
        last = history[-1] if history else None
        delta = self.chat.delta(context.prompt, last.token_ids) if last else None
        if last is None or delta is None or not last.prompt_token_ids:
            return self.render(context)
        text, messages = delta
        count = sum(part.type != "text" for message in messages for part in message.content)
        new = context.media[len(context.media) - count:]
        ids = self._process(text, new, False) if new else self.chat.tokens(text)
        whole = (*last.prompt_token_ids, *last.token_ids, *ids)
        media = (*last.media, *new)
        self.check_length(len(whole), len(media))
        return whole, media

    def check_length(self, tokens: int, pictures: int) -> None:
        """Raises SelfloopError at the model's limit: nothing is ever cut off a prompt."""
        if self.limit is not None and tokens >= self.limit:
            raise SelfloopError(
                f"a prompt of {tokens} tokens ({pictures} pictures included) does not fit the "
                f"model's limit of {self.limit} positions: use fewer or smaller pictures or a "
                "shorter text; prompts are never truncated")

    # -- model inputs -----------------------------------------------------------------------

    def inputs(self, sequences: Sequence[tuple[tuple[int, ...], tuple[Media, ...]]]
               ) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask [B, T] padded right, per-token types [B, T], pixels."""
        longest = max(len(ids) for ids, _ in sequences)
        pixels = [self.pixels(media) for _, media in sequences if media]
        ids_BT = torch.full((len(sequences), longest), self.chat.pad, dtype=torch.long)
        mask_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
        for b, (ids, _) in enumerate(sequences):
            ids_BT[b, :len(ids)] = torch.tensor(ids)
            mask_BT[b, :len(ids)] = 1
        found = {"input_ids": ids_BT, "attention_mask": mask_BT}
        for name, table in self._types.items():
            types_BT = torch.zeros_like(ids_BT)
            for token, value in table.items():
                types_BT[(ids_BT == token) & (mask_BT == 1)] = value
            found[name] = types_BT
        for name in pixels[0] if pixels else ():
            found[name] = torch.cat([p[name] for p in pixels])
        placed = {name: self._placed(value) for name, value in found.items()}
        seen = any(m.kind == "image" for _, media in sequences for m in media)
        if seen and self.features is not None:
            self.features.note(placed, [media for _, media in sequences if media])
        return placed

    def placed_pixels(self, media: tuple[Media, ...]) -> Pixels:
        """`pixels` on the model's device in its numbers."""
        return {name: self._placed(value) for name, value in self.pixels(media).items()}

    def _placed(self, value: torch.Tensor) -> torch.Tensor:
        if value.is_floating_point():
            return value.to(self.device, self.dtype)
        return value.to(self.device)

    def signature(self, media: tuple[Media, ...]) -> Hashable:
        """Names and shapes of the pixel tensors but for the first axis, along which they join."""
        return tuple(sorted((name, tuple(t.shape[1:])) for name, t in self.pixels(media).items()))

    def pixels(self, media: tuple[Media, ...]) -> Pixels:
        """The processor's tensors for these pictures, without text."""
        if not media:
            return {}
        key = tuple(m.identity for m in media)
        if key not in self._pixels:
            asked = Message(role="user", content=tuple(Part(type=m.kind) for m in media))
            text = self.chat.render((asked,), generate=True)
            self._process(text, media, self.chat.adds_special(text))
        self._pixels.move_to_end(key)
        return self._pixels[key]

    def _process(self, text: str, media: tuple[Media, ...], special: bool) -> tuple[int, ...]:
        """One processor call: ids returned, pixel tensors and token types remembered."""
        if self.open_media is None and media:
            raise SelfloopError("the engine was given no reader of pictures: call bind() first")
        if any(m.kind == "video" for m in media):
            raise SelfloopError("a video is shown as its frames: load() makes them of rows, and "
                                "Media of kind video are read by no model here")
        opened = [self.open_media(m) for m in media] if self.open_media else []
        heard = any(m.kind == "audio" for m in media)
        known = self._quickly(text, opened, special) if self._quick and not heard else None
        if known is not None:
            ids, pixels = known
            self._remember(torch.tensor([ids]), pixels, media)
            return ids
        out = self._whole(text, opened, special)
        ids_1P = out.pop("input_ids")
        self._remember(ids_1P, out, media)
        ids = tuple(ids_1P[0].tolist())
        if opened and not heard:
            self._texts[_asked(text, opened, special)] = ids
            while len(self._texts) > self._cache_contexts:
                self._texts.popitem(last=False)
        return ids

    def _quickly(self, text: str, opened: list[Any], special: bool
                 ) -> tuple[tuple[int, ...], Pixels] | None:
        """The prompt's ids from an earlier one of equal text and picture sizes; pixels anew.

        Most of a processor call goes into the text. What the short way gives is compared with the
        whole call once; where they differ it is not taken again.
        """
        ids = self._texts.get(_asked(text, opened, special))
        if ids is None:
            return None
        try:
            found = dict(self.processor.image_processor(images=[opened], return_tensors="pt"))
        except Exception:  # it wants what only the whole processor knows
            self._quick = False
            return None
        if self._proved:
            return ids, found
        out = self._whole(text, opened, special)
        theirs = {n: x for n, x in out.items()
                  if n not in ("input_ids", *self._types)}
        self._proved = self._quick = tuple(out["input_ids"][0].tolist()) == ids \
            and theirs.keys() == found.keys() and all(
                isinstance(x, torch.Tensor) and torch.equal(x, found[n])
                for n, x in theirs.items())
        return (ids, found) if self._quick else None

    def _whole(self, text: str, opened: list[Any], special: bool) -> dict[str, Any]:
        self.calls += 1
        sounds = [one for one in opened if isinstance(one, Sound)]
        pictures = [one for one in opened if not isinstance(one, Sound)]
        # Named for the text alone: sounds are padded as their own extractor wants it.
        given = hearing(self.processor, sounds) if sounds else {}
        plainly = {"padding": False, "truncation": False, "add_special_tokens": special}
        try:
            out = dict(self.processor(
                text=[text], images=[pictures] if pictures else None, return_tensors="pt",
                **given, **({"text_kwargs": plainly} if sounds else plainly)))
            for name in ("attention_mask", "labels"):  # made here, and only where they are wanted
                out.pop(name, None)
            return out
        except SelfloopError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error) else repr(error)
            more = f" and {len(sounds)} sounds" if sounds else ""
            raise SelfloopError(f"the processor refuses a prompt with {len(pictures)} pictures"
                                f"{more}: {reason} (prompt starts {text[:60]!r})") from error

    def _remember(self, ids_1P: torch.Tensor, out: dict[str, Any], media: tuple[Media, ...]
                  ) -> None:
        pixels: Pixels = {}
        for name, value in out.items():
            if not isinstance(value, torch.Tensor):
                raise SelfloopError(f"the processor's {name!r} is no tensor: such models "
                                    "are not supported")
            if value.shape == ids_1P.shape and not value.is_floating_point() \
                    and name not in heard_names(self.processor):
                # Types are a function of the token (1 on picture tokens), which is what lets
                # them be written for any later sequence without another processor call.
                table = self._types.setdefault(name, {})
                for token, kind in zip(ids_1P[0].tolist(), value[0].tolist(), strict=True):
                    if kind:
                        table[token] = kind
            elif value.dim() > 2 and value.shape[1] == ids_1P.shape[1] and value.shape[0] == 1 \
                    and not value.is_floating_point():
                raise SelfloopError(f"the processor's {name!r} is as long as the prompt: models "
                                    "that need it again for each answer are not supported")
            else:
                pixels[name] = value
        if media:
            key = tuple(m.identity for m in media)
            self._held -= _bytes(self._pixels.pop(key, {}))
            self._pixels[key] = pixels
            self._held += _bytes(pixels)
            while self._held > self._cache_bytes and len(self._pixels) > 1:
                self._held -= _bytes(self._pixels.popitem(last=False)[1])


def _bytes(pixels: Pixels) -> int:
    return sum(t.numel() * t.element_size() for t in pixels.values())


def _asked(text: str, opened: Sequence[Any], special: bool) -> Asked:
    """What a prompt's ids depend on: placeholders are expanded by the pictures' sizes."""
    return text, tuple(picture.size for picture in opened), special
