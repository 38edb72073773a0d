"""Stage 1 as the loop runs it: one sampler call a sample, all through one door."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from selfloop.doors import Doors, is_async
from selfloop.roles import Generate, Sampler, SelfloopError, call_by_name, gold, name_of
from selfloop.types import Group, Media, Rollout, Sample

OFFERED = ("generate", "sample", "guidance", "key", "keep", "answer", "rationale")
"""`keep(picture) -> Media` stores a picture that the sampler made, where the run keeps its own."""


def draw(
    sampler: Sampler | None, samples: Sequence[Sample], doors: Doors, guidance: Mapping[str, Any],
) -> list[Group]:
    """One group a sample, in order. A sampler that fails stops the run, naming the sample."""
    if sampler is None:
        return [Group(sample=s, rollouts=()) for s in samples]
    drawn = doors.run([(s, "collect", _job(sampler, s, guidance, doors)) for s in samples])
    return [
        Group(sample=s, rollouts=tuple(_checked(found, s, sampler)))
        for s, found in zip(samples, drawn, strict=True)
    ]


def _job(sampler: Sampler, sample: Sample, guidance: Mapping[str, Any], doors: Doors) -> Any:
    offered = {
        "sample": sample.unlabelled(), "guidance": guidance, "key": f"{doors.scope}/{sample.id}",
        "keep": doors.keep or _nowhere, **gold(sampler, sample),
    }

    def named(error: Exception) -> SelfloopError:
        return SelfloopError(f"sampler {name_of(sampler)} failed on sample {sample.id}: "
                             f"{type(error).__name__}: {error}")

    async def job(generate: Generate) -> Any:
        try:
            result = call_by_name(sampler, generate=generate, **offered)
            return await result if inspect.isawaitable(result) else result
        except SelfloopError:
            raise
        except Exception as error:
            raise named(error) from error

    if is_async(sampler):
        return job

    def plain(generate: Any) -> Any:
        try:
            return call_by_name(sampler, generate=generate, **offered)
        except SelfloopError:
            raise
        except Exception as error:
            raise named(error) from error

    plain.blocking = True  # type: ignore[attr-defined]
    return plain


def _nowhere(picture: Any) -> Media:
    raise SelfloopError("a picture was made where none can be stored: pass keep=Library(folder)."
                        "keep to whoever draws")


def _checked(found: Any, sample: Sample, sampler: Sampler) -> list[Rollout]:
    if not isinstance(found, list | tuple) or not all(isinstance(r, Rollout) for r in found):
        raise SelfloopError(
            f"sampler {name_of(sampler)} returned {type(found).__name__} for sample {sample.id}; "
            "expected a list of Rollout"
        )
    return list(found)
