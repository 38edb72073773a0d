"""What steps read beside the verdicts: hashes, embeddings, descriptions and blind answers.

Each wraps a verifier, because a group is judged and annotated in one pass: one of rollouts or of
groups, a judge that has to be awaited, or another one of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import isawaitable
from pathlib import Path
from typing import Any, Literal

from selfloop.doors import asking
from selfloop.likeness import Look, look_of
from selfloop.organize.judging import failure
from selfloop.organize.verify.similarity import DualEncoder
from selfloop.pictures import Library
from selfloop.roles import (
    Generate,
    Sampling,
    SelfloopError,
    as_verdict,
    call_by_name,
    name_of,
    parameters,
)
from selfloop.types import Group, Media, Rollout, Verdict


@dataclass(frozen=True)
class WithHashes:
    """A verifier that also leaves `annotations["perceptual_hashes"]`, 16 hex digits a picture, and
    `annotations["picture_thumbnails"]`, 384 bytes in base64, which confirm what hashes say.

    `images` is where pictures without a path lie (a run's images folder). Video and sound are not
    hashed.
    """

    verifier: Any
    images: str = ""

    def __call__(self, group: Group, **offered: Any) -> Group | Awaitable[Group]:
        """The group judged and annotated. Gold values reach only a verifier that names them."""
        looks = [_look(m, self.images) for m in group.sample.media if m.kind == "image"]
        bits, _, thumbnails = zip(*(x.text.partition(":") for x in looks), strict=True) \
            if looks else ((), (), ())
        return _then(_judged(self.verifier, group, offered), lambda judged: _with(
            _with(judged, "perceptual_hashes", list(bits)), "picture_thumbnails", list(thumbnails)))


@dataclass(frozen=True)
class WithBlindAnswers:
    """A verifier that also leaves `annotations["no_image"]`: the scores of `n` blind answers.

    The answers are drawn for the question without its pictures and judged by the same verifier,
    which has to be one of rollouts; None where it could not tell. Where it fails on all of them,
    so do the group's verdicts: a filter that knows nothing would keep everything. Read by
    `blind.NeedsPicture`.
    """

    verifier: Any
    n: int = 4
    max_new_tokens: int = 256
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if "group" in parameters(_bare(self.verifier)):
            raise SelfloopError(
                f"WithBlindAnswers: {name_of(_bare(self.verifier))} judges the answers of a group "
                "together, and those drawn without the picture are none of them: wrap a verifier "
                "of single answers")

    async def __call__(self, group: Group, generate: Generate, **offered: Any) -> Group:
        """The group judged and annotated; samples without pictures get no annotation."""
        offered["generate"] = generate
        judged: Group = await _waited(_judged(self.verifier, group, offered))
        if not group.sample.media:
            return judged
        drawn = await generate(
            group.sample.context.without_media(), n=self.n, label="blind",
            sampling=Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens))
        verdicts = await _waited(_verdicts(_bare(self.verifier), group.sample.id, drawn, offered))
        if verdicts and all(v.error for v in verdicts):
            raise SelfloopError(f"on answers without the picture: {verdicts[0].rationale}")
        return _with(judged, "no_image", [v.score for v in verdicts])


@dataclass(frozen=True)
class WithEmbedding:
    """A verifier that also leaves `annotations["embedding"]`: one vector of length 1 a group.

    `encoder` is a CLIP- or SigLIP-shaped model's folder, or a hub id that is in the local cache
    (similarity.DualEncoder). `of`: the first picture, the question, or both, joined so that their
    cosine is the mean of the two. Groups without what is embedded get no annotation: unknown.
    Read by `duplicates.SameMeaning`.
    """

    verifier: Any
    encoder: str
    of: Literal["picture", "question", "both"] = "picture"
    images: str = ""

    def __call__(self, group: Group, **offered: Any) -> Group | Awaitable[Group]:
        """The group judged and annotated; embeddings are rounded to 6 decimals."""
        judged = _judged(self.verifier, group, offered)
        pictures = [m for m in group.sample.media if m.kind == "image"]
        text = group.sample.context.text
        if (self.of != "question" and not pictures) or (self.of != "picture" and not text.strip()):
            return judged
        medium = pictures[0].plain.to_json() if pictures else ""
        vector = _embedded(self.encoder, self.of, medium if self.of != "question" else "",
                           text if self.of != "picture" else "", self.images)
        return _then(judged, lambda found: _with(found, "embedding", list(vector)))


@dataclass(frozen=True)
class WithDescription:
    """A verifier that also leaves `annotations["description"]`: the model's own, drawn greedily.

    Samples without pictures get none, and an empty description is none. Read by
    `builders.Described`.
    """

    verifier: Any
    prompt: str = "Describe the picture in detail."
    max_new_tokens: int = 256

    async def __call__(self, group: Group, generate: Generate, **offered: Any) -> Group:
        """The group judged and annotated."""
        offered["generate"] = generate
        judged: Group = await _waited(_judged(self.verifier, group, offered))
        if not group.sample.media:
            return judged
        asked = asking(group.sample, self.prompt)
        drawn = await generate(asked, n=1, label="description", sampling=Sampling(
            temperature=0.0, max_new_tokens=self.max_new_tokens))
        said = drawn[0].text.strip()
        return _with(judged, "description", said) if said else judged


def _with(group: Group, name: str, value: Any) -> Group:
    return group.model_copy(update={"annotations": {**group.annotations, name: value}})


def _bare(verifier: Any) -> Any:
    """The verifier within those of this module."""
    while isinstance(verifier, WithHashes | WithBlindAnswers | WithEmbedding | WithDescription):
        verifier = verifier.verifier
    return verifier


def _judged(verifier: Any, group: Group, offered: Mapping[str, Any]) -> Group | Awaitable[Group]:
    """The group with its verdicts, by a verifier of groups or of rollouts; to be awaited where the
    verifier is."""
    def whole(found: Any) -> Group:
        return found if isinstance(found, Group) else group.model_copy(update={
            "verdicts": tuple(as_verdict(v, name_of(verifier)) for v in found)})

    return _then(call_by_name(verifier, group=group, **offered) if "group" in parameters(verifier)
                 else _verdicts(verifier, group.sample.id, group.rollouts, offered), whole)


def _verdicts(verifier: Any, sample: str, rollouts: Sequence[Rollout], offered: Mapping[str, Any]
              ) -> tuple[Verdict, ...] | Awaitable[tuple[Verdict, ...]]:
    """One verdict a rollout; a failure is that rollout's alone."""
    name = name_of(verifier)

    def verdict(rollout: Rollout, value: Callable[[], Any]) -> Any:
        try:
            found = value()
            return found if isawaitable(found) else as_verdict(found, name)
        except Exception as error:
            return failure(name, rollout.id, sample, error)

    async def rest(found: list[Any]) -> tuple[Verdict, ...]:
        for at, (rollout, value) in enumerate(zip(rollouts, found, strict=True)):
            if isawaitable(value):
                try:
                    found[at] = as_verdict(await value, name)
                except Exception as error:
                    found[at] = failure(name, rollout.id, sample, error)
        return tuple(found)

    found = [verdict(r, lambda r=r: call_by_name(verifier, rollout=r, **offered))  # type: ignore[misc]
             for r in rollouts]
    return rest(found) if any(map(isawaitable, found)) else tuple(found)


def _then(found: Any, finish: Callable[[Any], Group]) -> Group | Awaitable[Group]:
    """What `finish` makes of what was found: at once, or when it is there."""
    async def later() -> Group:
        return finish(await found)

    return later() if isawaitable(found) else finish(found)


async def _waited(found: Any) -> Any:
    return await found if isawaitable(found) else found


@lru_cache(maxsize=100_000)
def _look_at(medium: str, images: str) -> Look:
    library = Library(Path(images)) if images else Library()
    return look_of(library.open(Media.from_json(medium)))


def _look(medium: Media, images: str) -> Look:
    return _look_at(medium.plain.to_json(), images)


@lru_cache(maxsize=100_000)
def _embedded(encoder: str, of: str, medium: str, text: str, images: str) -> tuple[float, ...]:
    """What is shown or said as one vector of length 1; what is not asked for is blank."""
    from PIL import Image

    library = Library(Path(images)) if images else Library()
    shown = library.open(Media.from_json(medium)) if medium else Image.new("RGB", (32, 32))
    picture, question = DualEncoder(encoder).embeddings(shown, text or "blank")
    whole = {"picture": picture, "question": question,
             "both": [x / 2 ** 0.5 for x in (*picture, *question)]}[of]
    return tuple(round(x, 6) for x in whole)
