"""How well a text fits a picture, by a dual encoder of any CLIP shape (primitives V7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from selfloop.pictures import Library
from selfloop.roles import SelfloopError, component_named
from selfloop.types import Rollout, Sample, Verdict


@runtime_checkable
class Encoder(Protocol):
    """Anything that says how well texts fit a picture: in [0, 1] or as a cosine in [-1, 1]."""

    def __call__(self, picture: Image.Image, texts: Sequence[str]) -> Sequence[float]: ...


@dataclass(frozen=True)
class DualEncoder:
    """The cosine of picture and text in a CLIP- or SigLIP-shaped model (arXiv 2103.00020).

    `model` is a from_pretrained folder, or a hub id that is in the local cache already: nothing
    is fetched. Loaded at first use, kept in this process. A text beyond the model's length (77
    tokens for CLIP) is cut, so give it sentences.
    """

    model: str = "openai/clip-vit-large-patch14-336"

    def __call__(self, picture: Image.Image, texts: Sequence[str]) -> list[float]:
        """One cosine a text. Raises SelfloopError for a folder that holds no dual encoder."""
        seen, said = self._encoded(picture, texts)
        return [float(c) for c in (said @ seen[0]).tolist()]

    def embeddings(self, picture: Image.Image, text: str) -> tuple[list[float], list[float]]:
        """The picture and the text as vectors of length 1."""
        seen, said = self._encoded(picture, [text])
        return [float(x) for x in seen[0].tolist()], [float(x) for x in said[0].tolist()]

    def _encoded(self, picture: Image.Image, texts: Sequence[str]) -> tuple[Any, Any]:
        """Unit vectors [1, D] of the picture and [texts, D] of the texts."""
        import torch

        model, processor = _loaded(self.model)
        longest = getattr(model.config.text_config, "max_position_embeddings", None)
        # SigLIP was trained on texts padded to full length, and sees no mask.
        padding = "max_length" if "siglip" in model.config.model_type else True
        inputs = processor(text=list(texts), images=[picture.convert("RGB")], padding=padding,
                           truncation=True, max_length=longest, return_tensors="pt")
        with torch.no_grad():
            out = model(**inputs)
        return (torch.nn.functional.normalize(out.image_embeds.float(), dim=-1),
                torch.nn.functional.normalize(out.text_embeds.float(), dim=-1))


@lru_cache(maxsize=2)
def _loaded(name: str) -> tuple[Any, Any]:
    import transformers

    auto: Any = transformers
    try:
        model = auto.AutoModel.from_pretrained(name, local_files_only=True).eval()
        processor = auto.AutoProcessor.from_pretrained(name, local_files_only=True)
    except Exception as error:
        raise SelfloopError(
            f"dual encoder {name!r} cannot be loaded ({str(error).splitlines()[0]}): give a folder "
            "of a CLIP or SigLIP model, or fetch that model first") from error
    if not hasattr(model, "logit_scale"):
        raise SelfloopError(f"{name!r} is a {type(model).__name__}, which does not compare texts "
                            "with pictures: give a folder of a CLIP or SigLIP model")
    return model, processor


def encoder_named(name: str) -> Encoder:
    """A dual encoder's folder or hub id, or module:name of any Encoder, for run.yaml."""
    if ":" not in name:
        return DualEncoder(name)
    found = component_named(name)
    encoder: Any = found() if isinstance(found, type) else found
    if not callable(encoder):
        raise SelfloopError(f"encoder {name!r} is {type(encoder).__name__}, which cannot be called "
                            "with (picture, texts)")
    return encoder  # type: ignore[no-any-return]


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its end; a text without any end is one sentence.

    Time grows with the text alone, however much white space it holds.
    """
    lines = (line.strip() for line in text.split("\n"))
    return [s for line in lines for s in re.split(r"(?<=[.!?])\s+", line) if re.search(r"\w", s)]


def open_one(sample: Sample, images: str) -> Image.Image | None:
    """The sample's first picture as it is, opened from its path or from the folder `images`."""
    media = [m for m in sample.media if m.kind == "image"]
    if not media:
        return None
    library = Library(Path(images)) if images else Library()
    picture: Image.Image = library.open(media[0].plain)
    return picture


@dataclass(frozen=True)
class ImageText:
    """The mean over an answer's sentences of how well each fits the picture.

    As in CLIP-DPO and judge-free pairing (arXiv 2411.17760), which compare whole texts; sentences
    do not hit the encoder's length. Abstains without a picture and on empty text. The scale is the
    encoder's own: compare answers to one problem, and use no threshold that you did not calibrate.
    """

    encoder: Encoder = DualEncoder()
    images: str = ""
    """Where pictures without a path lie: a run's images folder."""

    def __call__(self, rollout: Rollout, sample: Sample) -> Verdict:
        """Reads no label. `parts`: the lowest sentence's score."""
        picture, said = open_one(sample, self.images), sentences(rollout.text)
        if picture is None or not said:
            return Verdict(rationale="no text" if picture is not None else "no picture")
        found = [float(s) for s in self.encoder(picture, said)]
        return Verdict(score=sum(found) / len(found), parts={"lowest": min(found)})
