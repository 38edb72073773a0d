"""A test split that the loop cannot read: opened only after a run is finished, and only whole.

While a loop runs, the questions are not in the process: `Sealed` holds a path and hashes. Its
pictures' hashes are compared with what the run was given, so a leaked test picture is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfloop.roles import SelfloopError
from selfloop.store import RunFolder
from selfloop.types import Sample


@dataclass(frozen=True)
class Sealed:
    """The test questions at `path`, read by `load` when every named run has finished."""

    path: Path
    load: Callable[[Path], Sequence[Sample]]

    def commitment(self) -> str:
        """sha256 of the sealed file: published before the run, checked by whoever doubts."""
        return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()

    def open(self, runs: Iterable[RunFolder], seen: Iterable[Sample]) -> Sequence[Sample]:
        """The questions. Refused while a run is unfinished, or if it saw a test picture."""
        for run in runs:
            ends = [e["event"] for e in run.events()
                    if e["event"] in ("opened", "finished", "stopped")]
            if not ends or ends[-1] == "opened":
                raise SelfloopError(
                    f"the test split {self.path} is sealed until {run.path} has finished: "
                    "a loop that can read its test questions proves nothing")
        questions = self.load(Path(self.path))
        shown = {m.sha256 for sample in seen for m in sample.media}
        leaked = [s for s in questions if any(m.sha256 in shown for m in s.media)]
        if leaked:
            raise SelfloopError(
                f"{len(leaked)} of {len(questions)} test questions in {self.path} show a picture "
                f"that the run was trained or gated on (first: sample {leaked[0].id}): split "
                "again by picture")
        return questions
