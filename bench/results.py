"""One measured task, and the file that keeps them so that a long run can go on where it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.grid import Point
from bench.measure import Ratio


@dataclass(frozen=True)
class Result:
    """A row of the table: ours against one peer."""

    section: str
    kind: str
    checkpointing: bool
    point: Point
    prompts: int
    peer: str
    ratio: Ratio
    seconds: dict[str, list[float]]
    memory: dict[str, int | None] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    remark: str = ""
    why_not: str = ""
    """Why it was not measured; the other fields are then empty."""

    @property
    def name(self) -> str:
        """What baselines and resumed runs know it by."""
        return " ".join([
            self.section, self.kind, "checkpointed" if self.checkpointing else "plain",
            self.point.name, f"x{self.prompts}", "vs", self.peer])

    @property
    def share(self) -> float:
        """Achieved ratio over S."""
        return self.ratio.median / self.point.bound

    @property
    def json(self) -> dict[str, Any]:
        """With what is computed, for readers of the file."""
        return {"name": self.name, **asdict(self), "S": self.point.bound, "share": self.share}

    @classmethod
    def read(cls, found: dict[str, Any]) -> Result:
        """The inverse of `json`."""
        kept = {k: v for k, v in found.items() if k not in ("name", "S", "share")}
        return cls(**{**kept, "point": Point(**kept["point"]), "ratio": Ratio(**kept["ratio"])})


class Store:
    """A JSON-lines file. `resume` keeps what is there; a line cut by a kill is left out."""

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool) -> None:
        self.path, self.settings = path, settings
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in self._lines() if line["settings"] == settings] if resume else []
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.results = [Result.read(line["result"]) for line in kept]

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def has(self, name: str) -> bool:
        """Whether a row of that name is finished (a skipped one is tried again)."""
        return any(r.name == name and not r.why_not for r in self.results)

    def add(self, result: Result) -> None:
        """Append, at once."""
        self.results = [r for r in self.results if r.name != result.name] + [result]
        with self.path.open("a") as file:
            file.write(json.dumps({"settings": self.settings, "result": result.json}) + "\n")
