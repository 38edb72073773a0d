"""The negative factory: answers that are worse on purpose, each by a named cause.

`Negatives` draws good answers and, for every cause, bad ones to set against them. That a negative
is really worse, no longer than the good ones, and worse because of the picture is not taken on
trust: `auditing.audit` counts it from the judged groups. Every cause has a severity in [0, 1]
(0 changes nothing) and depends on nothing but its key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfloop import keys
from selfloop.collect.conditioning import noted, put_under, wholly_own
from selfloop.collect.lexicon import ENGLISH, Lexicon
from selfloop.collect.mentions import SWAPS
from selfloop.collect.swapped_pictures import Pool, any_other, near_other, reordered
from selfloop.collect.text_negatives import checked, eliciting, injecting, swapped, truncated
from selfloop.collect.unsayable import if_sayable
from selfloop.corruptions import OPERATIONS
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Context, Group, Media, Rollout, Sample

WORSE_SEEN: dict[str, str] = {
    "diffusion": "diffusion", "gaussian": "noise", "lowres": "lowres", "jitter": "jitter",
    "crop": "crop", "mask": "mask", "blur": "blur", "pixelate": "pixelate", "rotate": "rotate",
    "blank": "blank",
}
"""Causes that make the pictures worse -> their operation in `corruptions`."""
EXCHANGED = ("swapped", "near", "shuffle")
"""Causes that show other pictures, or the same in another order."""
REWRITTEN = (*SWAPS, "truncated")
"""Causes that rewrite a good answer by rule."""
NEGATIVES = (*WORSE_SEEN, *EXCHANGED, "eliciting", *REWRITTEN, "injected")
"""Every cause by name."""
BLIND = "no picture"
"""The mark of the answers drawn without pictures, which only `audit` reads."""


def can_worsen(media: Sequence[Media], cause: str) -> bool:
    """Whether there is a picture that an image-side cause could change; a shuffle needs two."""
    return sum(m.kind == "image" for m in media) > (cause == "shuffle")


def worse_media(media: tuple[Media, ...], cause: str, severity: float, key: str,
                pool: Pool | None = None) -> tuple[Media, ...]:
    """The pictures as an image-side cause shows them: one of `WORSE_SEEN` or `EXCHANGED`.

    Raises SelfloopError for another name, a severity outside [0, 1], and for `swapped` and `near`
    without a pool.
    """
    if checked(severity) == 0:
        return media
    if any(m.kind != "image" for m in media):  # sounds stay, in their places
        pictures = tuple(m for m in media if m.kind == "image")
        worse = iter(worse_media(pictures, cause, severity, key, pool))
        return tuple(next(worse) if m.kind == "image" else m for m in media)
    if cause in WORSE_SEEN:
        name = WORSE_SEEN[cause]
        assert name in OPERATIONS
        return tuple(m.with_op(name, severity, f"{key}/{i}") for i, m in enumerate(media))
    if cause == "shuffle":
        return reordered(media, severity, key)
    if cause not in EXCHANGED:
        raise SelfloopError(f"no image negative {cause!r}; there are: "
                            f"{', '.join((*WORSE_SEEN, *EXCHANGED))}")
    if pool is None:
        raise SelfloopError(f"the negative {cause!r} needs pool=: pool_of(media, library)")
    return (any_other(media, pool, severity, key) if cause == "swapped"
            else near_other(media, pool, severity))


def worse_text(text: str, cause: str, severity: float, key: str,
               vocabulary: frozenset[str] = frozenset(), lexicon: Lexicon = ENGLISH) -> str:
    """The text as a cause of `REWRITTEN` makes it; `truncated` leaves the first word at least.

    Raises SelfloopError for another name.
    """
    if cause == "truncated":
        return truncated(text, severity) or text[:len(text) - len(text.lstrip())] + "".join(
            text.split()[:1])
    return swapped(text, cause, severity, key, vocabulary, lexicon)


@dataclass(frozen=True)
class Negatives:
    """`n` good answers to each problem and, for every cause, one bad answer to each good one.

    Bad answers have `sampling["negative"]` (the cause), `"severity"` and, when rewritten from a
    good answer, `"of"`, its id. All are put under the plain context, where preference losses
    compare them. `blind` draws as many answers without pictures, at least two, for `audit` alone:
    take them out before signals are made (`without_blind`, an organizer step). A cause that cannot
    change anything (no pictures, nothing named in the text), or whose text the model cannot be made
    to say, gives no answer: the good one has it in `sampling["skipped"]`, which `audit` counts.

    With `guide` the good answers are drawn under a guiding prompt, and put under the plain context
    as well. With `pick_one` each good answer has one cause only, drawn by key: a cause that is
    named twice comes twice as often (STIC, arXiv 2405.19716).
    """

    causes: tuple[str, ...] = ("diffusion", "eliciting", "entity")
    severity: float = 0.5
    n: int = 2
    pool: Pool | None = None
    blind: bool = False
    vocabulary: tuple[str, ...] = ()
    """The words that swaps may bring in, for a model with a closed vocabulary; () = any."""
    lexicon: Lexicon | None = None
    """What swaps know; None: `collect.lexicon.ENGLISH`."""
    guide: Callable[[Context], Context] | None = None
    pick_one: bool = False
    temperature: float = 1.0
    max_new_tokens: int = 128

    @property
    def asks(self) -> frozenset[str]:
        """What it needs of an engine: texts that a rule rewrote are put in by force."""
        return frozenset({"forced_prefix"} if set(REWRITTEN) & set(self.causes) else ())

    @property
    def per_problem(self) -> float:
        """Draws a problem, for cost estimates."""
        bad = 1 if self.pick_one else len(self.causes)
        return self.n * (1 + bad) + (max(2, self.n) if self.blind else 0)

    def __post_init__(self) -> None:
        checked(self.severity)
        unknown = [c for c in self.causes if c not in NEGATIVES]
        if unknown:
            raise SelfloopError(
                f"no negative {unknown[0]!r}; there are: {', '.join(NEGATIVES)}")
        if self.pool is None and {"swapped", "near"} & set(self.causes):
            raise SelfloopError("the negatives 'swapped' and 'near' need pool=: "
                                "pool_of(media, library)")

    async def __call__(self, generate: Generate, sample: Sample, key: str) -> list[Rollout]:
        """The good answers, then the bad ones cause by cause, then the blind ones."""
        good = await self._good(generate, sample)
        causes = self._causes(len(good), key)
        found: list[Rollout] = []
        lacking: list[list[str]] = [[] for _ in good]
        for cause, of, under in causes:
            bad = await self._bad(generate, sample, [good[i] for i in of], cause, under)
            found += [one for one in bad if one is not None]
            for i, one in zip(of, bad, strict=True):
                if one is None:
                    lacking[i].append(cause)
        found = [*(noted(r, skipped=why) if why else r
                   for r, why in zip(good, lacking, strict=True)), *found]
        if self.blind:
            drawn = await generate(sample.context.without_media(), n=max(2, self.n),
                                   sampling=self._sampling(), label="blind")
            found += [noted(r, negative=BLIND) for r in drawn]
        return found

    def _causes(self, n: int, key: str) -> list[tuple[str, list[int], str]]:
        """(cause, the good answers that it is for, the key of its draws), in order."""
        if not self.severity or not self.causes:
            return []
        if not self.pick_one:
            return [(cause, list(range(n)), key) for cause in self.causes]
        picks = [float(keys.uniforms(f"{key}/cause{i}", 1)[0]) for i in range(n)]
        return [(self.causes[int(u * len(self.causes))], [i], f"{key}/{i}")
                for i, u in enumerate(picks)]

    def _sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)

    async def _good(self, generate: Generate, sample: Sample) -> list[Rollout]:
        asked = sample.context if self.guide is None else self.guide(sample.context)
        drawn = await generate(asked, n=self.n, sampling=self._sampling(), label="good")
        return drawn if self.guide is None else [put_under(sample.context, r) for r in drawn]

    async def _bad(self, generate: Generate, sample: Sample, good: list[Rollout], cause: str,
                   key: str) -> list[Rollout | None]:
        """For each good answer one made worse by the cause and marked with it; None: skipped."""
        if cause in REWRITTEN or cause == "injected":
            drawn = [await self._from_good(generate, sample, one, cause, f"{key}/{i}", str(i))
                     for i, one in enumerate(good)]
        else:
            drawn = await self._from_scratch(generate, sample, cause, len(good), key)
        return [r if r is None else noted(r, negative=cause, severity=self.severity)
                for r in drawn]

    async def _from_scratch(self, generate: Generate, sample: Sample, cause: str, n: int, key: str
                            ) -> list[Rollout | None]:
        """New answers, drawn where the cause leads the model astray."""
        if cause == "eliciting":
            astray = eliciting(sample.context, self.severity, key)
        elif not can_worsen(sample.media, cause):
            return [None] * n
        else:
            astray = sample.context.seen_as(worse_media(
                sample.media, cause, self.severity, f"{key}/{cause}", self.pool))
        if astray == sample.context:
            return [None] * n
        drawn = await generate(astray, n=n, sampling=self._sampling(), label=cause)
        return [put_under(sample.context, r) for r in drawn]

    async def _from_good(self, generate: Generate, sample: Sample, one: Rollout, cause: str,
                         key: str, place: str) -> Rollout | None:
        """A good answer made worse, by rule or by the model itself; None where nothing changed."""
        label = f"{cause}{place}"
        if cause == "injected":
            asked = injecting(sample.context, one.text, self.severity)
            (drawn,) = await generate(asked, sampling=self._sampling(), label=label)
            made: Rollout | None = put_under(sample.context, drawn)
        else:
            text = worse_text(one.text, cause, self.severity, key, frozenset(self.vocabulary),
                              self.lexicon or ENGLISH)
            made = None if text in (one.text, "") else await as_if_drawn(
                generate, sample, text, label)
        return None if made is None or made.text == one.text else noted(made, of=one.id)


async def as_if_drawn(generate: Generate, sample: Sample, text: str, label: str
                      ) -> Rollout | None:
    """A given text as an answer: forced, one token more drawn, and that kept only if it ends it.

    None where the engine cannot be made to say it: an <unk> that it drew itself, a word that a
    swap brought in. A text that a rule made is no reason to stop a run.

    All its tokens count as the model's, so that a preference loss can push them down; there are
    no log-probs, since it was never drawn.
    """
    found = await if_sayable(generate(sample, label=label, sampling=Sampling(
        temperature=0, max_new_tokens=1, prefix=text)))
    if not found:
        return None
    (forced,) = found
    (turn,) = forced.turns
    given = sum(1 for drawn in turn.mask if not drawn)
    ended = turn.finish_reason == "stop"
    kept = turn.model_copy(update={
        "token_ids": turn.token_ids if ended else turn.token_ids[:given],
        "loss_mask": turn.mask if ended else turn.mask[:given],
        "logprobs": None, "finish_reason": "stop", "temperature": 1.0,
    })
    part = forced.output[0].model_copy(update={"text": text})
    return wholly_own(forced.model_copy(update={"turns": (kept,), "output": (part,)}))


def without_blind(groups: Sequence[Group]) -> list[Group]:
    """Organizer step: the groups without the answers that were drawn for `audit` alone."""
    found = []
    for group in groups:
        keep = [r.sampling.get("negative") != BLIND for r in group.rollouts]
        found.append(group.model_copy(update={
            "rollouts": tuple(r for r, k in zip(group.rollouts, keep, strict=True) if k),
            "verdicts": tuple(v for v, k in zip(group.verdicts, keep, strict=False) if k),
        }))
    return found
