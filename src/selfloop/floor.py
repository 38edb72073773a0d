"""The physical floor: the least time that a stage of a run can take on a machine, by arithmetic.

FLOPs and bytes follow from a model's shape and the tokens alone. A multiplication with an addition
is two FLOPs, so a weight costs two a token (Kaplan et al. 2020, arXiv 2001.08361, table 1); the
terms that grow with the square of the length are attention's scores and sums (Hoffmann et al.
2022, arXiv 2203.15556, appendix F, here causal: half of them). Time is the larger of FLOPs over
the peak rate and bytes over the bandwidth (the roofline of Williams et al. 2009, CACM 52(4)).
Nothing here is measured, and what is not known is said in words, never counted as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Machine:
    """What a processor can do at most."""

    flops: float
    """FLOP/s of dense matrix products at the precision that the model computes in."""
    bandwidth: float
    """Bytes/s to and from its memory."""
    name: str = "this machine"
    price_per_hour: float | None = None
    """In whatever money it was given in."""
    source: str = ""
    """Where the figures are from: a data sheet, or a measurement."""

    def seconds(self, flops: float, moved: float) -> float:
        """At least so long for so many FLOPs and bytes."""
        return max(flops / self.flops, moved / self.bandwidth)

    def price(self, seconds: float) -> float | None:
        """What so many seconds cost; None without a price."""
        return None if self.price_per_hour is None else self.price_per_hour * seconds / 3600


@dataclass(frozen=True)
class Shape:
    """The sizes of a vision-language model that decide its cost. None: not known."""

    parameters: float
    """N: weights of the language model that a token is multiplied with. The output head is in it,
    the input embeddings are not; of a mixture's experts, those that one token is sent to."""
    bytes: float = 4.0
    """b: a number's bytes."""
    head: float = 0.0
    """The output head's part of N; prompts do without it but for their last token."""
    layers: float | None = None
    """L: layers with attention to everything before."""
    query: float | None = None
    """H: query heads x their width."""
    kv: float | None = None
    """n_kv d: key heads x their width."""
    window_layers: float = 0.0
    window: float = 0.0
    """Layers whose attention reaches back `window` tokens at most."""
    other_layers: float = 0.0
    """Layers that keep a state in the place of keys, or a window of unknown width."""
    idle: float = 0.0
    """Weights of the experts that a token is not sent to."""
    experts: float = 1.0
    used: float = 1.0
    """Experts a layer, and how many of them one token is sent to."""
    resident: float = 0.0
    """All parameters that are held in memory."""
    trained: float = 0.0
    """Parameters that learn."""
    trained_share: float = 1.0
    """Share of the language model's weights that learn: 1 = full weights, about 0 = adapters."""
    recompute: bool = False
    """Gradient checkpointing: the forward pass is run again for the backward pass."""
    width: float | None = None
    inner: float | None = None
    """Channels, and those of the feed-forward layers."""
    vocabulary: float = 0.0
    vision: float | None = None
    """N_v: weights of the vision tower, by which every patch is multiplied."""
    vision_layers: float | None = None
    vision_width: float | None = None
    """L_v and H_v of the tower."""
    vision_trained: bool = False
    projector: float | None = None
    """Weights between the tower and the language model, by which picture tokens are multiplied."""
    patches: float | None = None
    """Patches a picture."""
    span: float | None = None
    """Patches that attend to one another: those of one picture or tile."""
    picture_tokens: float | None = None
    """Tokens that the language model reads a picture as."""

    def unknown(self) -> list[str]:
        """What an estimate leaves out because this shape does not say it, in words."""
        found = []
        if self.layers is None or self.query is None:
            found.append("attention (layers or heads are not known)")
        if self.kv is None:
            found.append("reading keys and values (heads are not known)")
        if self.other_layers:
            found.append(f"what {self.other_layers:.0f} layers without plain attention keep")
        if self.vision is None or self.patches is None:
            found.append("the vision tower (its weights or its patches are not known)")
        elif self.vision_layers is None or self.vision_width is None or self.span is None:
            found.append("the vision tower's attention (its layers or width are not known)")
        return found

    def numbers(self) -> dict[str, float]:
        """The fields that are known, as numbers."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> Shape:
        """The inverse of `numbers`; names that are no fields are passed over."""
        flags = ("recompute", "vision_trained")
        own = {f.name: numbers[f.name] for f in fields(cls) if numbers.get(f.name) is not None}
        typed: dict[str, Any] = {k: bool(v) if k in flags else float(v) for k, v in own.items()}
        return cls(**typed)


@dataclass(frozen=True)
class Work:
    """FLOPs, and the least seconds that they take. Works add up."""

    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.seconds + other.seconds)


# -- one pass -------------------------------------------------------------------------------------

def attention_flops(shape: Shape, start: float, end: float) -> float:
    """FLOPs of the attention of tokens start..end: 4 L H t for each one at place t.

    Scores and weighted sums are 2 H a pair each, over pairs sum(t) = (end^2 - start^2) / 2; hence
    2 L H P^2 for a prompt. Layers with a window of W count min(t, W). 0 where `unknown` says so.
    """
    if shape.layers is None or shape.query is None:
        return 0.0
    low, high = (_pairs(n, shape.window) for n in (start, end))
    return 4 * shape.query * (shape.layers * (end**2 - start**2) / 2
                              + shape.window_layers * (high - low))


def _pairs(n: float, window: float) -> float:
    """sum of min(t, window) for t up to n."""
    return n * n / 2 if n <= window else window * window / 2 + window * (n - window)


def prefill_flops(shape: Shape, tokens: float, scored: float | None = None, start: float = 0.0
                  ) -> float:
    """FLOPs of reading `tokens` after `start` earlier ones: 2 N P + 2 L H P^2 where start = 0.

    `scored` of them go on to the output head; None = all.
    """
    scored = tokens if scored is None else scored
    weights = (shape.parameters - shape.head) * tokens + shape.head * scored
    return 2 * weights + attention_flops(shape, start, start + tokens)


def decode_flops(shape: Shape, context: float) -> float:
    """FLOPs of drawing one token at context t: 2 N + 4 L H t."""
    windowed = shape.window_layers * min(context, shape.window)
    attended = 0.0 if shape.layers is None or shape.query is None \
        else 4 * shape.query * (shape.layers * context + windowed)
    return 2 * shape.parameters + attended


def kv_bytes(shape: Shape, tokens: float) -> float:
    """Bytes of the keys and values of `tokens`: 2 L n_kv d b each (0 where not known)."""
    if shape.layers is None or shape.kv is None:
        return 0.0
    kept = shape.layers * tokens + shape.window_layers * min(tokens, shape.window)
    return 2 * shape.kv * shape.bytes * kept


def weight_bytes(shape: Shape, batch: float = 1.0) -> float:
    """Bytes of weights that one pass over `batch` tokens reads: N b, once for all of them.

    Of a mixture's E experts each token picks k; spread evenly, 1 - (1 - k/E)^batch are read.
    """
    if not shape.idle or shape.used >= shape.experts:
        return shape.parameters * shape.bytes
    share = shape.used / shape.experts
    every = shape.idle / (1 - share)
    own = shape.parameters - every * share
    return (own + every * (1 - math.pow(1 - share, max(1.0, batch)))) * shape.bytes


def step_seconds(machine: Machine, shape: Shape, batch: float, group: float, prompt: float,
                 drawn: float) -> float:
    """Floor of one decode step of `batch` answers, `group` to a prompt, each `drawn` tokens long.

    FLOPs: B (2N + 4 L H t). Bytes: the weights once, the prompts' keys once a group, the answers'
    own: N b + (B/G) kv(P) + B kv(r).
    """
    moved = weight_bytes(shape, batch) + batch / group * kv_bytes(shape, prompt) \
        + batch * kv_bytes(shape, drawn)
    return machine.seconds(batch * decode_flops(shape, prompt + drawn), moved)


def vision_flops(shape: Shape, pictures: float = 1.0) -> float:
    """FLOPs of the tower on pictures: 2 N_v a patch + 4 L_v H_v span a patch, and the projector
    on the tokens that come out of it (0 where `unknown` says so)."""
    if shape.vision is None or shape.patches is None:
        return 0.0
    attended = 0.0
    if shape.vision_layers is not None and shape.vision_width is not None \
            and shape.span is not None:
        attended = 4 * shape.vision_layers * shape.vision_width * shape.span
    projected = 2 * (shape.projector or 0.0) * (shape.picture_tokens or 0.0)
    return pictures * (shape.patches * (2 * shape.vision + attended) + projected)


def equivalents(trained_share: float, recompute: bool = False) -> float:
    """Forward passes that one training pass costs.

    One forward, one to carry gradients back, and one for the gradients of the weights that learn:
    3 with full weights, 2 with adapters on a frozen base; recomputing adds a forward pass (4, 3).
    """
    return 2.0 + trained_share + recompute


def saving(group: float, prompt: float, answer: float) -> float:
    """S = G (P + R) / (P + G R): tokens without and with a shared prefix. G when P >> R."""
    run = prompt + group * answer
    return group * (prompt + answer) / run if run else 1.0


# -- stages ---------------------------------------------------------------------------------------

def rollouts(machine: Machine, shape: Shape, *, prompts: float, group: float, prompt: float,
             answer: float, batch: float) -> Work:
    """Drawing `group` answers of `answer` tokens to each of `prompts` prompts of `prompt` tokens.

    One prefill a prompt; decode steps of `batch` answers at a time, as many steps as the mean
    answer has tokens (the longest decides, so this is a lower bound).
    """
    if not prompts or not group:
        return Work()
    answers = prompts * group
    batch = max(1.0, min(batch, answers))
    batches = math.ceil(answers / batch - 1e-9)
    batch = answers / batches
    read = prompts * prefill_flops(shape, prompt, scored=1)
    steps, mean = max(0.0, answer - 1), answer / 2
    drawn = batches * steps * batch * decode_flops(shape, prompt + mean)
    seconds = machine.seconds(read, batches * weight_bytes(shape, prompts * prompt / batches)) \
        + batches * steps * step_seconds(machine, shape, batch, group, prompt, mean)
    return Work(read + drawn, seconds)


def forward(machine: Machine, shape: Shape, *, prompts: float, group: float, prompt: float,
            answer: float, passes: float = 1.0) -> Work:
    """Scoring `group` answers to each prompt, the prompt run once: one forward pass over P + G R.

    `passes`: how often all weights are read.
    """
    if not prompts:
        return Work()
    each = prefill_flops(shape, prompt, scored=1) \
        + group * prefill_flops(shape, max(0.0, answer - 1), start=prompt)
    tokens = prompts * (prompt + group * answer)
    moved = passes * weight_bytes(shape, tokens / max(1.0, passes))
    return Work(prompts * each, machine.seconds(prompts * each, moved))


def training(machine: Machine, shape: Shape, *, prompts: float, group: float, prompt: float,
             answer: float, updates: float) -> Work:
    """Forward and backward over P + G R a prompt, `equivalents` forward passes, and AdamW's steps.

    A step of AdamW reads weights, gradients and two moments and writes all but the gradients: 7
    numbers a parameter that learns.
    """
    if not prompts:
        return Work()
    passes = equivalents(shape.trained_share, shape.recompute)
    flops = forward(machine, shape, prompts=prompts, group=group, prompt=prompt, answer=answer
                    ).flops * passes
    tokens = prompts * (prompt + group * answer) / max(1.0, updates)
    moved = updates * (passes * weight_bytes(shape, tokens)
                       + 7 * shape.trained * shape.bytes)
    return Work(flops, machine.seconds(flops, moved))


def seeing(machine: Machine, shape: Shape, pictures: float, passes: float = 1.0) -> Work | None:
    """The vision tower on so many pictures, its weights read `passes` times; None = not known."""
    if shape.vision is None or shape.patches is None:
        return None
    flops = vision_flops(shape, pictures)
    moved = min(passes, pictures) * (shape.vision + (shape.projector or 0.0)) * shape.bytes
    return Work(flops, machine.seconds(flops, moved))
