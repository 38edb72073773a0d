"""The training rows that a run.yaml means: those that no evaluation set of its own knows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from selfloop.data import Samples, load
from selfloop.organize.refine.clean_data import Cleaned, unknown_to

if TYPE_CHECKING:
    from selfloop.config import RunConfig


def clean_train(config: RunConfig) -> tuple[Cleaned, Samples | None]:
    """(training rows and notes on them and on what was left out, dev rows), by
    `data.decontaminate`.

    Whatever trains or is shown while training starts here, stand-in pictures for negatives too: a
    test picture is no less seen when it stands in for another. Raises SelfloopError naming file,
    row and field of what is bad.
    """
    data = config.data
    train = load(data.train, frames=data.frames)
    dev = load(data.dev, frames=data.frames) if data.dev else None
    test = data.test if data.test and data.test.exists() else None
    suites = () if isinstance(config.suites, str) else [s.path for s in config.suites]
    found = unknown_to(train, dev, test, data.decontaminate, suites)
    return replace(found, notes=(*train.notes, *found.notes)), dev
