"""Answers drawn with help and trained without it: prompt distillation and rationalisation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from selfloop.collect.conditioning import at_least_one, noted, put_under
from selfloop.collect.guided import chain_of_thought, ending
from selfloop.roles import (
    Generate,
    Sampling,
    SelfloopError,
    Verifier,
    as_verdict,
    call_by_name,
    name_of,
    parameters,
)
from selfloop.types import Context, Rollout, Sample, Verdict

CHECK_OFFERED = ("rollout", "sample", "generate", "key", "answer", "rationale")
"""What a verifier within a sampler may name."""


async def judged(check: Verifier, rollout: Rollout, sample: Sample, **offered: Any) -> Verdict:
    """What a verifier of single answers says within a sampler; it gets only what it names.

    As in stage 2, one that fails has not judged: the reason is in the verdict, and the run goes on.
    """
    name = name_of(check)
    try:
        value = call_by_name(check, rollout=rollout, sample=sample, **offered)
        return as_verdict(await value if inspect.isawaitable(value) else value, name)
    except Exception as error:
        return Verdict(error=True, verifier=name,
                       rationale=f"{name} raised {type(error).__name__}: {error}")


def refuse_check(owner: object, check: Verifier) -> None:
    """Raise SelfloopError, when `owner` is built, for a check that judges no single answer."""
    for name, parameter in parameters(check).items():
        if name not in CHECK_OFFERED and parameter.default is parameter.empty \
                and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise SelfloopError(
                f"{type(owner).__name__}(check={name_of(check)}): it asks for {name!r}, but a "
                f"check judges one answer by itself; it may name: {', '.join(CHECK_OFFERED)}")


@dataclass(frozen=True)
class Distilled:
    """`n` answers under a guiding prompt, to be trained under the plain question.

    Learning them makes the guide unnecessary (context distillation, Snell et al., arXiv
    2209.15189; STIC stores its long-prompt descriptions in this way, arXiv 2405.19716).
    """

    guide: Callable[[Context], Context] = chain_of_thought
    """From the plain context to the guiding one: a function of `collect.guided`, or your own."""
    n: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        at_least_one(self, "n")

    async def __call__(self, generate: Generate, sample: Sample) -> list[Rollout]:
        """The answers, under the sample's own context; see `conditioning.put_under`."""
        drawn = await generate(self.guide(sample.context), n=self.n, sampling=Sampling(
            temperature=self.temperature, max_new_tokens=self.max_new_tokens))
        return [put_under(sample.context, r) for r in drawn]


@dataclass(frozen=True)
class Rationalise:
    """STaR's second chance (arXiv 2203.14465, section 3.2): wrong problems are tried with a hint.

    `n` plain answers; if `check` finds none right, `n` more with the gold answer as a hint, put
    under the plain question and marked `sampling["hinted"]`. Reading `answer` makes the label
    count. Still to be verified as any other: a hint is no proof of a right chain. A problem
    without a gold answer, or with an answer that `check` could not tell, gets no hint. Where the
    check failed, `sampling["check_error"]` says why.
    """

    check: Verifier
    n: int = 4
    hint: str = "The answer is {answer}. Explain, from what the picture shows, why that is so."
    temperature: float = 1.0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        at_least_one(self, "n")
        refuse_check(self, self.check)

    @property
    def per_problem(self) -> float:
        """Draws a problem at most, for cost estimates."""
        return 2 * self.n

    async def __call__(self, generate: Generate, sample: Sample, answer: Any, key: str,
                       **more: Any) -> list[Rollout]:
        """The plain answers, and the hinted ones where they were needed."""
        sampling = Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)
        plain = await generate(sample, n=self.n, sampling=sampling, label="plain")
        if answer is None:
            return plain
        verdicts = [await judged(self.check, r, sample, generate=generate, answer=answer,
                                 key=f"{key}/check{i}", **more) for i, r in enumerate(plain)]
        plain = [noted(r, check_error=v.rationale) if v.error else r
                 for r, v in zip(plain, verdicts, strict=True)]
        if any(v.right or v.score is None for v in verdicts):
            return plain
        told = ending(sample.context, self.hint.replace("{answer}", str(answer)))
        hinted = await generate(told, n=self.n, sampling=sampling, label="hinted")
        return [*plain, *(put_under(sample.context, r, hinted=True) for r in hinted)]
