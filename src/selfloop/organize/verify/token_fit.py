"""How well each word of an answer fits the picture: a reward a token (primitives V9)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from PIL import Image

from selfloop.organize.verify.similarity import DualEncoder, Encoder, open_one
from selfloop.roles import SelfloopError
from selfloop.types import Rollout, Sample, Verdict

Decode = Callable[[Sequence[int], str], str]
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class TokenFit:
    """What each word of an answer, and so its tokens, earns by how well it fits the picture.

    FiSAO (Cui et al., arXiv 2410.14148) scores tokens by the model's own vision encoder and rewards
    those beyond a margin from what right and hallucinated tokens score on the mean: with s the
    encoder's similarity of the word and the picture, a word earns s - right where s >= right +
    margin, s - wrong where s <= wrong - margin, and 0 between (as we read it; there is no code to
    compare with). `right` and `wrong` are measured by `baselines`, on words whose truth is known.

    `words` are those that are scored, in lower case (objects, say); empty = every word of
    `shortest` letters or more. The score is the mean over them; it abstains where there are none,
    and without a picture. What the encoder cannot see it cannot reward: `selfloop audit` it first.
    """

    right: float
    wrong: float
    margin: float = 0.0
    encoder: Encoder = DualEncoder()
    words: tuple[str, ...] = ()
    shortest: int = 3
    images: str = ""
    """Where pictures without a path lie: a run's images folder."""

    def __post_init__(self) -> None:
        numbers = (self.right, self.wrong, self.margin)
        if not all(map(math.isfinite, numbers)) or self.right < self.wrong or self.margin < 0:
            raise SelfloopError(f"TokenFit: right {self.right:g}, wrong {self.wrong:g}, margin "
                                f"{self.margin:g}: expected finite numbers, right at least wrong, "
                                "margin at least 0; measure them with token_fit.baselines")

    def __call__(self, rollout: Rollout, sample: Sample, decode: Decode | None = None) -> Verdict:
        """Reads no label. `spans`: each scored word's place and reward; `token_scores`: one a drawn
        token, that of the word that it is part of, else 0 (None for several turns)."""
        picture = open_one(sample, self.images)
        found = [m for m in _WORD.finditer(rollout.text) if self._counts(m[0].lower())]
        if picture is None or not found:
            return Verdict(rationale="no word to score" if picture is not None else "no picture")
        said = sorted({m[0].lower() for m in found})
        fit = dict(zip(said, map(float, self.encoder(picture, said)), strict=True))
        spans = tuple((*m.span(), self.reward(fit[m[0].lower()])) for m in found)
        earned = [reward for _, _, reward in spans]
        return Verdict(score=fmean(earned), spans=spans, parts={
            "words": float(len(earned)), "fit": fmean(fit[m[0].lower()] for m in found)},
            token_scores=_of_tokens(rollout, spans, decode))

    def reward(self, fit: float) -> float:
        """What a word earns whose similarity is `fit`."""
        if fit >= self.right + self.margin:
            return fit - self.right
        return fit - self.wrong if fit <= self.wrong - self.margin else 0.0

    def _counts(self, word: str) -> bool:
        return word in self.words if self.words else len(word) >= self.shortest


def baselines(encoder: Encoder, known: Iterable[tuple[Image.Image, str, bool]]
              ) -> tuple[float, float]:
    """(right, wrong): mean similarity of words that are true of their picture, and of those that
    are not. Raises SelfloopError without at least one of each."""
    means: dict[bool, list[float]] = {True: [], False: []}
    for picture, word, true in known:
        means[bool(true)].append(float(encoder(picture, [word])[0]))
    if not all(means.values()):
        raise SelfloopError("baselines: expected words that are true of their picture and words "
                            f"that are not; got {len(means[True])} and {len(means[False])}")
    return fmean(means[True]), fmean(means[False])


def _of_tokens(rollout: Rollout, spans: Sequence[tuple[int, int, float]], decode: Decode | None
               ) -> tuple[float, ...] | None:
    if decode is None or len(rollout.turns) != 1:
        return None
    (turn,) = rollout.turns
    ends = [len(decode(turn.token_ids[:i + 1], rollout.role))
            for i in range(len(turn.token_ids))]
    if not ends or ends[-1] != len(rollout.text):  # the text was changed after it was drawn
        return None
    return tuple(
        next((reward for a, b, reward in spans if start < b and end > a and start < end), 0.0)
        for start, end, drawn in zip([0, *ends], ends, turn.mask, strict=False) if drawn)
