"""From pictures and labels to everything a run needs: people have pictures, not questions.

`prepare` opens every picture, finds look-alikes, splits without leaking them, works out what kind
of answers the labels are, writes train, dev and test sets, and says how small a gain they can show.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfloop.answer_types import AnswerType, as_text, hint, infer
from selfloop.data import Problem, save
from selfloop.gathering import clusters, gather, open_all
from selfloop.pictures import LIMITS, Limits, write_whole
from selfloop.roles import SelfloopError
from selfloop.splitting import SPLITS, split_groups
from selfloop.types import Message, Part, Sample


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found and wrote."""

    train: Path
    dev: Path
    test: Path
    counts: dict[str, int]
    """Samples in train, dev and test, and `unlabelled` (all of them in train)."""
    answers: AnswerType
    clusters: int
    """Groups of look-alike pictures, over all sets."""
    smallest_gain: float
    """The smallest gain (a fraction) that the dev set can show; inf if none."""
    seed: int
    bad: tuple[Problem, ...] = ()
    """Rows and pictures that were left out, each with the reason."""
    notes: tuple[str, ...] = ()

    @property
    def verifier(self) -> str:
        """module:name of the rule that suits the labels, or "" without labels."""
        return self.answers.verifier

    def summary(self) -> str:
        """A few plain lines for the terminal: every file left out is named."""
        sizes = ", ".join(f"{name} {n}" for name, n in self.counts.items())
        gain = "no gain at all" if math.isinf(self.smallest_gain) else (
            f"a gain of {100 * self.smallest_gain:.1f} points or more")
        return "\n".join([
            f"{sizes}; {self.clusters} groups of look-alikes",
            f"answers: {self.answers.kind} ({self.answers.why}); checked by {self.verifier}",
            f"the dev set can show {gain}",
            *(f"note: {note}" for note in self.notes),
            *(f"left out: {problem}" for problem in self.bad),
        ])


def prepare(
    images: Any, labels: str | Path | None = None, *, task: str | None = None,
    out: str | Path = ".", seed: int = 0, shares: tuple[float, float, float] = (0.7, 0.15, 0.15),
    frames: int = 8, limits: Limits = LIMITS,
) -> Prepared:
    """Write out/data/{train,dev,test}.jsonl from pictures and labels, ready for a run.

    `images` is a folder of pictures, or anything that `load` reads. `labels` is a table whose rows
    name a file (file, image, images, file_name or path) and give a label or answer, and optionally
    a question; `task` is the question where a row has none. Pictures without a label go to train;
    broken ones are left out and listed in `.bad`. Raises SelfloopError when too little is left.
    """
    samples, problems = gather(images, labels, task, limits, frames)
    opened, hashes, broken = open_all(samples, limits)
    if not opened:
        first = str((problems + broken)[0]) if problems or broken else "there are none"
        raise SelfloopError(f"no usable picture in {images}: {first}")
    answers = infer([s.answer for s in opened])
    if not answers.verifier:
        raise SelfloopError(
            f"none of the {len(opened)} samples has a label: without labels no gain can be shown; "
            "label some (a few dozen at least) and give them as labels="
        )
    notes = list(samples.notes)
    if samples.merged:
        notes.append(f"{samples.merged} rows repeat an earlier one and were merged")
    groups = clusters(opened, hashes, notes)
    asked = [_finished(s, answers, f"look-alikes-{g}") for s, g in zip(opened, groups, strict=True)]
    splits = split_groups(groups, [_stratum(s, answers) for s in asked], shares=shares, seed=seed)
    sets: dict[str, list[Sample]] = {name: [] for name in SPLITS}
    leaking = 0
    for sample, split in zip(asked, splits, strict=True):
        if split != "train" and sample.answer is None:
            leaking += 1
        else:
            sets[split].append(sample)
    if leaking:
        notes.append(f"{leaking} unlabelled pictures were left out: they look like dev or test "
                     "pictures, and would leak them into train")
    folder = Path(out).absolute() / "data"
    paths = {name: save(kept, folder / f"{name}.jsonl") for name, kept in sets.items()}
    return Prepared(
        **paths, answers=answers, clusters=len(set(groups)), seed=seed,
        counts={**{name: len(kept) for name, kept in sets.items()},
                "unlabelled": sum(s.answer is None for s in sets["train"])},
        smallest_gain=smallest_gain(len(sets["dev"]), len({s.cluster for s in sets["dev"]})),
        bad=(*problems, *broken), notes=tuple(notes),
    )


def smallest_gain(n_dev: int, n_clusters: int | None = None, *, discordant: float = 0.25) -> float:
    """The smallest gain (a fraction) that `n_dev` questions show with 80 % power at alpha = .05.

    One-sided paired (McNemar) test, assuming that a share `discordant` of the questions changes
    from right to wrong or back: n = (z_a sqrt(d) + z_b sqrt(d - gain^2))^2 / gain^2 (Connor 1987).
    Questions about look-alike pictures count as one (the worst case). inf when none can be shown.
    """
    from selfloop.evaluate.statistics import smallest_detectable_gain

    if n_dev < 1:
        return math.inf
    effect = n_dev / n_clusters if n_clusters else 1.0
    return smallest_detectable_gain(n_dev, discordant=discordant, design_effect=effect)


def write_run_yaml(
    prepared: Prepared, path: str | Path, *, model: str, iterations: int = 3,
    budget: str = "2h",
) -> Path:
    """Write the run's settings, under 30 lines with a plain comment each. Paths are relative."""
    path = Path(path).absolute()

    def near(file: Path) -> str:
        return _quoted(Path(os.path.relpath(file, path.parent)).as_posix())

    gain = "none" if math.isinf(prepared.smallest_gain) else (
        f"{100 * prepared.smallest_gain:.1f} points")
    text = f"""\
# The model to improve: a Hugging Face name or a folder.
model: {_quoted(model)}

data:
  # What it learns from ({prepared.counts["train"]} samples, \
{prepared.counts["unlabelled"]} without a label).
  train: {near(prepared.train)}
  # What decides whether a new version is kept ({prepared.counts["dev"]} samples).
  # The smallest gain these can show: {gain}.
  dev: {near(prepared.dev)}
  # Opened once, at the very end ({prepared.counts["test"]} samples).
  test: {near(prepared.test)}

# How answers are checked. The labels look like: {prepared.answers.kind}.
verifier: {_quoted(prepared.verifier)}
# auto picks a method that suits the data; or name a recipe.
method: auto
# How many times to collect, learn and test. More can be added later.
iterations: {iterations}
# The same seed gives the same run.
seed: {prepared.seed}
# Stop after this much time.
budget: {_quoted(budget)}
"""
    write_whole(path, text.encode())
    return path


def _quoted(text: str) -> str:
    """A YAML double-quoted string; JSON's are the same."""
    return json.dumps(text, ensure_ascii=False)


def _finished(sample: Sample, answers: AnswerType, cluster: str) -> Sample:
    """The sample with its answer as text, the possible answers in its prompt, and its cluster."""
    prompt, extra = list(sample.prompt), hint(answers)
    if extra and extra.lower() not in sample.context.text.lower():
        last = max(i for i, m in enumerate(prompt) if m.role == "user")
        parts = list(prompt[last].content)
        at = max((i for i, p in enumerate(parts) if p.type == "text"), default=None)
        if at is None:
            parts.append(Part(text=extra))
        else:
            parts[at] = Part(text=f"{parts[at].text}\n{extra}")
        prompt[last] = Message(role="user", content=tuple(parts))
    answer = sample.answer
    if answer is not None and answers.kind != "accepted":
        answer = as_text(answer)
    return Sample(prompt=tuple(prompt), media=sample.media, answer=answer,
                  rationale=sample.rationale, meta={"cluster": cluster, **sample.meta},
                  parent=sample.parent)


def _stratum(sample: Sample, answers: AnswerType) -> str | None:
    """What the split balances: the label where labels repeat, else only that there is one."""
    if sample.answer is None:
        return None
    if answers.kind in ("yes_no", "choice", "class", "number"):
        return as_text(sample.answer).lower()
    return ""
