"""What a probe found: its figures, how they come from the answers, and where they are kept."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from selfloop.collect.guided import STRUCTURES
from selfloop.config import RunConfig
from selfloop.evaluate.answers import Answer, expected_calibration_error, pass_at_k
from selfloop.evaluate.calibration import VotePrecision, vote_precision
from selfloop.evaluate.statistics import wilson
from selfloop.optimize.parts import frozen_parts
from selfloop.organize.verify.rules import as_number
from selfloop.roles import Verifier, name_of
from selfloop.types import digest

TOKENS = 64
"""Longest answer when options.max_new_tokens says nothing: the recipes' own default."""
AS_GIVEN = "as given"
"""The question as the run will ask it: as it is, or with the prompt of run.yaml."""


@dataclass(frozen=True)
class Share:
    """k of n, with Wilson's 95 % interval: twenty questions leave much open."""

    k: int
    n: int

    @property
    def value(self) -> float:
        """k / n; NaN for none."""
        return self.k / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson, 95 %."""
        return wilson(self.k, self.n)

    def __str__(self) -> str:
        if not self.n:
            return "unknown (no labels)"
        low, high = self.interval
        return f"{100 * self.value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


@dataclass(frozen=True)
class Probed:
    """What twenty questions show. Shares are `Share`s; rates are per second on this machine."""

    identity: str
    """Of model, data, verifier and length: another config needs another probe."""
    questions: int
    draws: int
    labelled: float
    """Share of the train samples that have an answer."""
    train: int
    dev: int
    accuracy: Share
    """Greedy answers."""
    pass_at_draws: Share
    """Questions that at least one draw gets right."""
    vote: Share
    """Questions that the majority of draws gets right."""
    calibration_error: float | None
    """Mean gap between the vote's share and how often it is right; None without labels."""
    vote_share: float
    """Mean share of the draws that the winner has."""
    parsed: Share
    """Greedy answers that the verifier can read at all."""
    truncated: Share
    """Draws that were cut at max_new_tokens."""
    no_image: Share
    zero_variance: Share
    """Questions whose draws are all right or all wrong: a group reward teaches nothing there."""
    related: bool
    """Whether the samples carry related questions."""
    structures: dict[str, Share]
    """Greedy accuracy by prompt; "as given" is the question as the run will ask it."""
    machine: dict[str, float]
    """Rates, token counts and sizes: see `_measured`."""
    answers: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def best_structure(self) -> str:
        """The prompt with the most right answers; "as given" unless another has more."""
        return max(self.structures, key=lambda name: (self.structures[name].k,
                                                      name == AS_GIVEN))

    @property
    def pseudo_labels(self) -> VotePrecision | None:
        """How often the draws' majority is right, by its share; None without stored draws."""
        return vote_precision(Answer(cluster="", **row) for row in self.answers
                              if row["arm"] == "draws")

    def to_json(self) -> dict[str, Any]:
        """Plain data; every share with its interval."""
        found: dict[str, Any] = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        precision = self.pseudo_labels
        return {**found, "best_structure": self.best_structure,
                "pseudo_labels": None if precision is None else asdict(precision)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Probed:
        """The inverse of `to_json`."""
        own = {f.name: _shares(data[f.name]) for f in fields(cls)}
        return cls(**own)


def _plain(value: Any) -> Any:
    if isinstance(value, Share):
        return {"k": value.k, "n": value.n, "share": value.value if value.n else None,
                "interval": list(value.interval)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _shares(value: Any) -> Any:
    if isinstance(value, dict) and {"k", "n", "share"} <= value.keys():
        return Share(value["k"], value["n"])
    return {k: _shares(v) for k, v in value.items()} if isinstance(value, dict) else value


# -- the stored probe ----------------------------------------------------------------------------

def place(config: RunConfig) -> Path:
    """probe.json, beside run.yaml."""
    return config.home / "probe.json"


def identity(config: RunConfig) -> str:
    """Of what a probe measures: the model, the data files, the verifier, the length."""
    stamps = []
    for path in (config.data.train, config.data.dev):
        if path is not None and path.exists():
            stamps.append([str(path), path.stat().st_size, path.stat().st_mtime_ns])
    about = [config.model_path, stamps, config.verifier, length_of(config), config.dtype,
             config.prompt, config.lora.model_dump() if config.lora else None]
    # How much learns, where and how fast decides what the plan makes of it.
    usual = {"compute": None, "device": "auto", "threads": None, "processes": 1, "shard": False}
    how = {n: value for n, common in usual.items() if (value := getattr(config, n)) != common}
    frozen = frozen_parts(config.freeze, config.learn)
    return digest(about + ([how, *frozen] if how or frozen else []))


def stored(config: RunConfig) -> Probed | None:
    """The probe beside run.yaml, if it is one of this model, data and verifier."""
    try:
        found = Probed.from_json(json.loads(place(config).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.identity == identity(config) else None


def length_of(config: RunConfig) -> int:
    """The longest answer in tokens, as the run will have it."""
    length = config.options.get("max_new_tokens", TOKENS)
    return int(length) if isinstance(length, int | float | str) else TOKENS


def as_dict(probed: Probed) -> dict[str, Any]:
    """For `--json`: everything but the single answers."""
    return {name: value for name, value in probed.to_json().items() if name != "answers"}


# -- figures ------------------------------------------------------------------------------------

def readable(verifier: Verifier, found: Answer) -> bool:
    """Whether the answer has the form that the verifier looks for."""
    if found.parsed is None:
        return False
    rule = name_of(verifier).rpartition(":")[2]
    if rule == "number":
        return as_number(found.parsed) is not None
    words = found.parsed.lower().strip(" .()").split()
    if rule == "yes_no":
        return bool({"yes", "no"} & {w.strip(".,!") for w in words})
    if rule == "choice":
        return bool(words) and len(words[0].strip(".,:)(")) == 1
    return True


def _right(answers: Sequence[Answer]) -> Share:
    judged = [a.right for a in answers if a.right is not None]
    return Share(sum(judged), len(judged))


def figures(found: Sequence[Answer], metric: Verifier, draws: int, length: int
            ) -> dict[str, Any]:
    """The fields of a `Probed` that its answers decide."""
    arms: dict[str, list[Answer]] = {}
    for one in found:
        arms.setdefault(one.arm, []).append(one)
    groups: dict[str, list[Answer]] = {}
    for one in arms["draws"]:
        groups.setdefault(one.sample, []).append(one)
    drawn = list(groups.values())
    judged = [[a for a in group if a.right is not None] for group in drawn]
    judged = [group for group in judged if group]
    votes = [_vote(group) for group in drawn]
    known = [(share, right) for share, right in votes if right is not None]
    solved = [pass_at_k(len(g), sum(bool(a.right) for a in g), min(draws, len(g)))
              for g in judged]
    return {
        "accuracy": _right(arms["greedy"]),
        "pass_at_draws": Share(sum(p > 0.5 for p in solved), len(solved)),
        "vote": Share(sum(right for _, right in known), len(known)),
        "calibration_error": expected_calibration_error(
            [s for s, _ in known], [r for _, r in known]) if known else None,
        "vote_share": sum(s for s, _ in votes) / max(1, len(votes)),
        "parsed": Share(sum(readable(metric, a) for a in arms["greedy"]), len(arms["greedy"])),
        "truncated": Share(sum(a.tokens >= length for a in arms["draws"]), len(arms["draws"])),
        "no_image": _right(arms["no_image"]),
        "zero_variance": Share(sum(len({a.right for a in g}) == 1 for g in judged), len(judged)),
        "structures": {AS_GIVEN: _right(arms["greedy"]),
                       **{name: _right(arms[name]) for name in STRUCTURES}},
    }


def _vote(group: Sequence[Answer]) -> tuple[float, bool | None]:
    """(share of the winner, whether it is right; None when nothing could be judged)."""
    counts = Counter(said for a in group if (said := a.vote) is not None)
    if all(a.right is None for a in group):
        right: bool | None = None
    else:
        right = False
    if not counts:
        return 0.0, right
    winner, count = counts.most_common(1)[0]
    verdict = next((a.right for a in group if a.vote == winner and a.right is not None), right)
    return count / len(group), verdict
