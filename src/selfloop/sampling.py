"""How an answer is decoded: heat and cuts, and draws that lean on another context on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, expm1, isfinite
from numbers import Integral, Real
from typing import Any

from selfloop import keys
from selfloop.calling import SelfloopError, wrapped
from selfloop.types import Context

_LARGEST = 60.0
"""e to this, times a logit, is far inside float32."""
_HOTTEST = 1e6
SENTENCE_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f")
"""What ends a sentence, in Latin and in Chinese and Japanese writing."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Decode the same answer from two contexts at once, mixing their logits before temperature.

    l_t = (1 - h_t) * l_t(asked) + h_t * l_t(context), with h_t = weight + 1 - exp(rate * t) at the
    t-th drawn token, from 0. h in (0, 1] leans to the other context: without the picture, answers
    drift to what language alone makes likely (judge-free, Deng et al., arXiv 2411.17760). h < 0
    pushes away from it: weight = -1 and floor = 0.1 with a noisy picture is VCD (Leng et al.,
    arXiv 2311.16922); weight = 0 and rate = 0.02 without a picture grows with the text as M3ID
    does (Favero et al., arXiv 2403.14003). h = 0 everywhere is plain decoding.
    """

    context: Context
    weight: float = 0.0
    rate: float = 0.0
    floor: float = 0.0
    """Tokens less likely than this share of the likeliest one, as asked, are never drawn (VCD's
    adaptive plausibility); 0 = none."""

    def __post_init__(self) -> None:
        if not (isfinite(self.weight) and 0 <= self.rate <= 1 and 0 <= self.floor < 1):
            raise SelfloopError(
                f"Contrast(weight={self.weight}, rate={self.rate}, floor={self.floor}): weight "
                "must be finite, rate in [0, 1] and floor in [0, 1)")

    def at(self, step: int) -> float:
        """h of the drawn token number `step`, from 0; never so large that logits overflow."""
        return self.weight - expm1(min(self.rate * step, _LARGEST))

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return not (self.weight or self.rate or self.floor)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to decode. Log-probs are reported after temperature, before top-k/top-p/min-p.

    There are none (`Turn.logprobs` is None) for what `contrast` or `hidden` drew: it does not
    follow the policy that is trained.
    """

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    prefix: str = ""
    """Text forced at the start of the answer; its tokens get loss_mask 0."""
    contrast: Contrast | None = None
    """A second context whose logits are mixed in; the engine must support "contrast"."""
    hidden: float = 0.0
    """Share of the pictures' tokens that no text may attend to, neither the prompt's nor the
    answer's; the engine must support "masked_attention"."""
    diversity: float = 0.0
    """Draw i of a request loses this much, in nats, on a token for every earlier draw that took it
    at the same place (Vijayakumar et al., arXiv 1610.02424: groups of one beam, Hamming distance,
    greedy at temperature 0). Log-probs are those before the loss; needs "diversity"."""

    def __post_init__(self) -> None:
        _typed(self)
        if not 0 <= self.hidden <= 1 or not 0 <= self.diversity <= _HOTTEST:
            raise SelfloopError(f"Sampling(hidden={self.hidden}, diversity={self.diversity}): "
                                "hidden must be in [0, 1] and diversity in [0, 1e6]")
        for name, fits, expected in (
            ("temperature", not 0 < self.temperature < 1e-6,
             "so low a temperature divides by nothing; 0 is greedy"),
            ("temperature", 0 <= self.temperature <= _HOTTEST,
             "temperature must be in [0, 1e6] (0 = greedy)"),
            ("top_p", 0 < self.top_p <= 1, "top_p must be in (0, 1]"),
            ("min_p", 0 <= self.min_p < 1, "min_p must be in [0, 1)"),
            ("max_new_tokens", self.max_new_tokens >= 1, "max_new_tokens must be >= 1"),
            ("top_k", self.top_k >= 0, "top_k must be >= 0 (0 = all)"),
        ):
            if not fits:
                raise SelfloopError(f"Sampling({name}={getattr(self, name)}): {expected}")

    @property
    def is_plain(self) -> bool:
        """Whether what is drawn follows the reported log-probs exactly."""
        return (self.temperature > 0 and self.top_p == 1 and not self.top_k and not self.min_p
                and not self.guides and not self.diversity)

    @property
    def guides(self) -> bool:
        """Whether draws follow another distribution than the policy's, and have no log-probs."""
        return self.hidden > 0 or (self.contrast is not None and not self.contrast.idle)

    @property
    def asks(self) -> frozenset[str]:
        """What an engine has to support for it."""
        wanted = {"contrast": self.contrast is not None and not self.contrast.idle,
                  "masked_attention": self.hidden > 0, "diversity": self.diversity > 0}
        return frozenset(name for name, asked in wanted.items() if asked)

    def hides(self, places: Sequence[int], key: str) -> tuple[int, ...]:
        """Which of the pictures' token places are hidden: a share of them, drawn by the key."""
        count = ceil(self.hidden * len(places) - 1e-9)
        order = keys.shuffled(len(places), f"{key}/hidden")[:count] if count else []
        return tuple(places[i] for i in sorted(order))


def _typed(asked: Sampling) -> None:
    """Numbers are numbers, and `stop` is a tuple of texts: a text would be its letters."""
    for name in ("temperature", "top_p", "min_p", "hidden", "diversity", "top_k",
                 "max_new_tokens"):
        value, whole = getattr(asked, name), name in ("top_k", "max_new_tokens")
        if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
            raise SelfloopError(f"Sampling({name}={value!r}): expected a "
                                f"{'whole ' if whole else ''}number")
    stop: Any = asked.stop
    if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
        raise SelfloopError(f"Sampling(stop={stop!r}): expected a list of texts, none empty")
    object.__setattr__(asked, "stop", tuple(stop))


def check_decoding(component: Any) -> None:
    """Raises SelfloopError for a sampler whose own temperature, cuts or length `Sampling` refuses:
    when the loop is built, not when it first draws. What the sampler wraps is checked, too."""
    told: dict[str, Any] = {
        name: value for name in ("temperature", "top_p", "top_k", "min_p", "max_new_tokens")
        if isinstance(value := getattr(component, name, None), int | float)}
    if isinstance(stop := getattr(component, "stop", ()), str | list | tuple):
        told["stop"] = stop
    try:
        Sampling(**told)
    except SelfloopError as error:
        raise SelfloopError(str(error).replace("Sampling", type(component).__name__, 1)) from None
    for part in wrapped(component):
        check_decoding(part)
