"""A tree of sentences with good and bad branches kept (primitive S3)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from statistics import fmean

from selfloop.collect.conditioning import noted, wholly_own
from selfloop.collect.unsayable import if_sayable
from selfloop.roles import Generate, Sampling, SelfloopError
from selfloop.types import Rollout, Sample


@dataclass(frozen=True)
class Path:
    """An answer so far: its text, and the mean log-prob of each of its sentences."""

    text: str = ""
    steps: tuple[float, ...] = ()
    last: Rollout | None = None
    done: bool = False

    @property
    def score(self) -> float:
        """The sum over sentences (CSR's cumulative score)."""
        return sum(self.steps)


@dataclass(frozen=True)
class SentenceTree:
    """Answers grown sentence by sentence, of which the best and the worst are gone on with.

    CSR (arXiv 2405.14622, released code): of the open nodes of a level the `top` best and the
    `bottom` worst survive, by cumulative log-prob, so that both sides of a preference pair come
    from the model; where there are fewer than `width`, all do. A node's `width` children are
    independent draws, or with `diversity` draws that avoid each other's tokens: CSR's five groups
    of one beam are `temperature=0, diversity=3.0` (its code also prunes broken text within the
    tree; `shortest` drops its too short sentences, fewer than 4 characters). Equal sentences are
    made one. Scores are the policy's log-probs, where the code has them less the penalty.
    Paths carry `sampling["path"]`, the mean log-prob of each sentence, for verifiers that mix it
    with the picture's view of that sentence. All tokens of a path count as drawn, without
    log-probs, because forcing a prefix may cut it into other tokens. A path whose text cannot be
    forced is dropped; how many were is in `sampling["dropped"]` of those that remain.
    """

    width: int = 5
    top: int = 1
    bottom: int = 2
    depth: int = 8
    """Sentences at most."""
    sentence_tokens: int = 70
    stop: tuple[str, ...] = (".", "!", "?")
    temperature: float = 1.0
    diversity: float = 0.0
    """Nats that a token loses for each earlier child that took it at the same place."""
    shortest: int = 0
    """Characters that a sentence has at least, unless it ends the answer."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or (not self.temperature and not self.diversity):
            raise SelfloopError(f"{self}: temperature must be > 0, or 0 with diversity > 0 (equal "
                                "greedy draws have nothing to rank)")
        if self.width < 1 or self.top + self.bottom < 1 or self.depth < 1 or self.diversity < 0:
            raise SelfloopError(f"{self}: width, depth and top + bottom must be at least 1, and "
                                "diversity at least 0")

    @property
    def asks(self) -> frozenset[str]:
        """What it needs of an engine."""
        return frozenset({"forced_prefix", "stop", *(("diversity",) if self.diversity else ())})

    @property
    def per_problem(self) -> float:
        """Answers a problem whose sentences are drawn, for cost estimates."""
        sentences = self.width * (1 + (self.top + self.bottom) * (self.depth - 1))
        return max(1.0, sentences / self.depth)

    async def __call__(self, generate: Generate, sample: Sample) -> list[Rollout]:
        """Every path that ended, best first; those cut by `depth` have finish_reason length."""
        open_paths, ended, dropped = [Path()], list[Path](), 0
        for level in range(self.depth):
            if not open_paths:
                break
            grown = await asyncio.gather(*(
                self._children(generate, sample, path, f"level{level}.{i}")
                for i, path in enumerate(open_paths)))
            dropped += sum(family is None for family in grown)
            children = [child for family in grown for child in family or ()]
            ended += [c for c in children if c.done]
            open_paths = self._survivors([c for c in children if not c.done])
        ranked = sorted((*ended, *open_paths), key=lambda p: -p.score / len(p.steps))
        told = {"dropped": dropped} if dropped else {}
        return [noted(self._rollout(path), **told) for path in ranked]

    def _survivors(self, paths: list[Path]) -> list[Path]:
        if len(paths) < self.width or len(paths) <= self.top + self.bottom:
            return paths
        ranked = sorted(paths, key=lambda p: -p.score)
        return ranked[:self.top] + ranked[len(ranked) - self.bottom:]

    async def _children(self, generate: Generate, sample: Sample, path: Path, label: str
                        ) -> list[Path] | None:
        """The distinct next sentences; None where the path's own text cannot be forced."""
        drawn = await if_sayable(generate(sample, n=self.width, label=label, sampling=Sampling(
            temperature=self.temperature, max_new_tokens=self.sentence_tokens, stop=self.stop,
            prefix=path.text, diversity=self.diversity)))
        if not drawn:
            return None
        distinct: dict[str, Path] = {}
        for rollout in drawn:
            new = rollout.text[len(path.text):]
            score = mean_logprob(rollout)
            # A sentence that hit no stop string ended the answer, or was cut by its length.
            done = not stopped(rollout.text, path.text, self.stop)
            if not done and len(new.strip()) < self.shortest:
                continue
            if score is not None and new.strip() not in distinct:
                distinct[new.strip()] = Path(rollout.text, (*path.steps, score), rollout, done)
        return list(distinct.values())

    def _rollout(self, path: Path) -> Rollout:
        assert path.last is not None  # every path in the answer has grown at least once
        found = noted(wholly_own(path.last), path=list(path.steps))
        if path.done:
            return found
        (turn,) = found.turns
        return found.model_copy(update={
            "turns": (turn.model_copy(update={"finish_reason": "length"}),)})


def stopped(text: str, prefix: str, stop: tuple[str, ...]) -> bool:
    """Whether a stop string, and not the end of the answer or its length, ended the draw.

    It need not stand at the very end: the token that completed it may go on after it.
    """
    return any(text.find(s, max(0, len(prefix) - len(s) + 1)) >= 0 for s in stop)


def mean_logprob(rollout: Rollout) -> float | None:
    """Mean log-prob of the drawn (not the forced) tokens; None without any, or without figures."""
    known = [lp for turn in rollout.turns if turn.logprobs is not None
             for lp, drawn in zip(turn.logprobs, turn.mask, strict=True) if drawn]
    return fmean(known) if known else None
