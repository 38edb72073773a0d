"""`selfloop check`: everything that can be known to be wrong before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfloop.auditing.said import said_as_gold
from selfloop.casting import EngineConfig
from selfloop.config import RunConfig, build_loop
from selfloop.config_sections import LoRAConfig
from selfloop.data import Samples, load
from selfloop.doors import Doors
from selfloop.engines.model_folder import check_files, has_chat_template, local, without_weights
from selfloop.gathering import clusters
from selfloop.judging_costs import unplayed
from selfloop.methods import METHODS, open_to, verifier_named
from selfloop.organize.judging import judge
from selfloop.pictures import Library, perceptual_hash
from selfloop.roles import SelfloopError, Verifier, name_of, reads
from selfloop.types import Group, Part, Rollout, Sample, Turn

SPLITS = ("train", "dev", "test")
SHOWN = 20
"""Findings of one kind that are written out; the rest are counted."""


@dataclass(frozen=True)
class Found:
    """One thing that is wrong ("error") or doubtful ("warning"), where, and the mend."""

    level: str
    where: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.mend}" if self.mend else "")


@dataclass(frozen=True)
class Checked:
    """What `check` saw."""

    loop: str
    """The printed loop; with method auto, one that the data admit."""
    counts: dict[str, int]
    """Samples of each split, and `pictures` opened."""
    gold_checked: int
    """Gold answers that were put to the verifier."""
    found: tuple[Found, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; warnings are allowed."""
        return not any(f.level == "error" for f in self.found)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "ok": self.ok}


def check(config: RunConfig) -> Checked:
    """Build the loop, open every picture, try the verifier on gold, compare the splits.

    Loads no model. Raises SelfloopError where nothing further could be looked at: a loop that
    cannot be built, a file that is not there.
    """
    shown = open_to(config)
    loop = build_loop(shown)
    verifier = verifier_named(config.verifier, config.home)
    found = _folders(config)
    sets = {name: _loaded(name, path, config.data.frames, found) for name in SPLITS
            if (path := getattr(config.data, name)) is not None}
    library = Library()
    looks = {name: _looks(samples, library, found) for name, samples in sets.items()}
    checked = 0
    for name in ("train", "dev"):
        if name in sets:
            checked += _gold(sets[name], verifier, found)
    found += _overlaps(sets, looks)
    if shown.method in METHODS and loop.gate is not None and not len(sets.get("dev", ())):
        found.append(Found("error", "data.dev", "there are no dev samples, but the gate decides "
                           "on them", "label some: `selfloop init` splits them off"))
    if lacking := unplayed(loop, config, sets.get("train", ())):
        found.append(Found("error", "engines", lacking))
    counts = {name: len(samples) for name, samples in sets.items()}
    counts["pictures"] = sum(len(s.media) for samples in sets.values() for s in samples)
    printed = repr(loop) if config.method != "auto" else (
        f"# method: auto is chosen by `selfloop plan`; {shown.method} would be\n{loop!r}")
    return Checked(printed, counts, checked, tuple(found))


def _folders(config: RunConfig) -> list[Found]:
    """What the folders of the models lack; a hub id is not asked for."""
    models = {"model": config.model_path} | {
        f"engines.{role}": how.model for role, how in config.engines.items()
        if isinstance(how, EngineConfig) and how.base_url is None}
    found = []
    for key, model in models.items():
        try:
            if (folder := local(model)) is not None:
                check_files(folder)
                found += _contents(key, folder, config.lora if key == "model" else None)
        except SelfloopError as error:
            found.append(Found("error", key, str(error)))
    return found


def _contents(key: str, folder: Path, lora: LoRAConfig | None) -> list[Found]:
    """What can be told of a model's files without loading them."""
    found = []
    if not has_chat_template(folder):
        found.append(Found("error", key, f"{folder} has no chat template",
                           "put a chat_template.jinja there"))
    for target in without_weights(folder, (lora and lora.targets) or ()):
        found.append(Found("warning", "lora.targets", f"no weight of {folder} is named {target!r}",
                           "`selfloop doctor` lists what adapters can go on"))
    return found


def _loaded(name: str, path: Path, frames: int, found: list[Found]) -> Samples:
    if not path.exists():
        raise SelfloopError(f"data.{name}: {path}: no such file: check the path, or make it with "
                            "`selfloop init`")
    samples = load(path, frames=frames, on_bad="report")
    for problem in samples.problems:
        field = f", field {problem.field!r}" if problem.field else ""
        found.append(Found("error", f"{problem.file}, row {problem.row}{field}", problem.what,
                           problem.mend))
    found += [Found("warning", str(path), note) for note in samples.notes]
    if not len(samples):
        found.append(Found("error", str(path), "it holds no usable sample"))
    return samples


def _row(samples: Samples, index: int) -> str:
    """Where a sample stands; rows are those of the file unless some were merged or left out."""
    exact = not samples.merged and not samples.problems
    return f"{samples.name}, {'row' if exact else 'sample'} {index + 1}"


def _looks(samples: Samples, library: Library, found: list[Found]) -> list[list[int]]:
    """Perceptual hashes of every sample's pictures; those that do not open are named."""
    looks: list[list[int]] = []
    for index, sample in enumerate(samples):
        hashes = []
        for medium in sample.media:
            try:
                opened = library.open(medium)
                hashes += [perceptual_hash(opened)] if medium.kind == "image" else []
            except SelfloopError as error:
                found.append(Found("error", _row(samples, index), str(error),
                                   "replace the picture, or take the row out"))
        looks.append(hashes)
    return looks


# -- gold answers --------------------------------------------------------------------------------

def _gold(samples: Samples, verifier: Verifier, found: list[Found]) -> int:
    """Put every gold answer to the verifier as if a model had said it: it must be right."""
    if not reads(verifier):
        return 0
    labelled = [(i, s) for i, s in enumerate(samples) if s.answer is not None]
    groups = [Group(sample=s, rollouts=(_said(s, verifier),)) for _, s in labelled]
    judged = judge(verifier, groups, Doors({}, 0, "check")).groups
    name = name_of(verifier)
    for (index, sample), group in zip(labelled, judged, strict=True):
        verdict = group.verdicts[0]
        if verdict.right:
            continue
        gold = repr(sample.answer)[:60]
        if verdict.error:
            what, mend = verdict.rationale, "mend the verifier"
        elif verdict.score is None:
            what = f"field 'answer': {name} cannot tell whether {gold} is right" + (
                f" ({verdict.rationale})" if verdict.rationale else "")
            mend = "mend the answer, or choose a verifier that reads it"
        else:
            what = f"field 'answer': {name} calls the gold answer {gold} itself wrong"
            mend = "choose a verifier that accepts it, or mend the answer"
        found.append(Found("error", _row(samples, index), what, mend))
    return len(labelled)


def _said(sample: Sample, verifier: Verifier) -> Rollout:
    """The gold answer in the shape that a verifier reads."""
    text = next(iter(said_as_gold(sample.answer, verifier)), str(sample.answer))
    return Rollout(id=f"gold-{sample.id}", sample=sample.id, context=sample.context,
                   turns=(Turn(token_ids=()),), output=(Part(text=text),))


# -- the splits ----------------------------------------------------------------------------------

def _overlaps(sets: dict[str, Samples], looks: dict[str, list[list[int]]]) -> list[Found]:
    """Pictures that two splits share, by bytes (errors) and by looks (warnings)."""
    found: list[Found] = []
    seen: dict[str, tuple[str, int]] = {}
    for name, samples in sets.items():
        for index, sample in enumerate(samples):
            for medium in sample.media:
                first = seen.setdefault(medium.sha256, (name, index))
                if first[0] != name:
                    found.append(Found(
                        "error", _row(samples, index), f"its picture is also in {first[0]} "
                        f"({_row(sets[first[0]], first[1])})", "keep it in one split only"))
    return found + _look_alikes(sets, looks, {f.where for f in found})


def _look_alikes(sets: dict[str, Samples], looks: dict[str, list[list[int]]], known: set[str]
                 ) -> list[Found]:
    kept: list[Sample] = []
    hashes: list[list[int]] = []
    places: list[tuple[str, int]] = []
    for name, samples in sets.items():
        for index, (sample, own) in enumerate(zip(samples, looks[name], strict=True)):
            if own and len(own) == sum(m.kind == "image" for m in sample.media):
                kept.append(sample.model_copy(update={"meta": {}}))
                hashes.append(own)
                places.append((name, index))
    if not kept:
        return []
    notes: list[str] = []
    members: dict[int, list[tuple[str, int]]] = {}
    for group, where in zip(clusters(kept, hashes, notes), places, strict=True):
        members.setdefault(group, []).append(where)
    found = [Found("warning", "data", note) for note in notes]
    for group_members in members.values():
        first = group_members[0]
        for name, index in group_members[1:]:
            place = _row(sets[name], index)
            if name != first[0] and place not in known:
                found.append(Found("warning", place, f"its picture looks like one in {first[0]} "
                                   f"({_row(sets[first[0]], first[1])})",
                                   "keep look-alikes in one split: `selfloop init` does"))
    return found


def shortened(found: Sequence[Found]) -> list[str]:
    """One line a finding; long lists of one level are cut and counted."""
    lines: list[str] = []
    for level in ("error", "warning"):
        mine = [f for f in found if f.level == level]
        lines += [f"{level}: {f}" for f in mine[:SHOWN]]
        if len(mine) > SHOWN:
            lines.append(f"{level}: and {len(mine) - SHOWN} more (see --json)")
    return lines
