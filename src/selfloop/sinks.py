"""Figures of a run to TensorBoard, Trackio or Weights & Biases: one interface, all optional."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfloop.roles import SelfloopError
from selfloop.running import Watch

Log = Callable[[Mapping[str, float], int], None]
SINKS = ("tensorboard", "trackio", "wandb")


def sink(name: str, folder: str | Path = ".", run: str = "selfloop",
         config: Mapping[str, Any] | None = None) -> Watch:
    """A Watch that writes every figure of a run to the tracker `name`, one of SINKS.

    `folder` is the run folder (TensorBoard writes to its `tensorboard/`), `run` the run's name.
    Raises SelfloopError, with the pip extra to install, when the tracker is not there.
    """
    if name not in SINKS:
        from selfloop.calling import closest

        raise SelfloopError(f"sink {name!r} is unknown{closest(name, SINKS)}")
    open_one = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}[name]
    log, close = open_one(Path(folder), run, dict(config or {}))

    def watch(event: str, facts: Mapping[str, Any]) -> None:
        found = numbers(event, facts)
        if found is not None:
            log(*found)
        if event in ("finished", "stopped"):
            close()

    return watch


def numbers(event: str, facts: Mapping[str, Any]) -> tuple[dict[str, float], int] | None:
    """(figures by name, step) of an event; None for events that hold none."""
    if event == "gathered":
        found = _flat("collect", {**facts["counts"], **facts["monitors"],
                                  "seconds": facts["seconds"]})
    elif event == "learned":
        found = {"learn/seconds": float(facts["seconds"])}
        for role, metrics in facts["metrics"].items():
            found |= _flat(f"learn/{role}", metrics)
    elif event in ("decided", "evaluated"):
        found = _flat("dev", {k: v for k, v in facts.items() if k not in ("iteration", "version")})
        return found, int(facts.get("iteration", -1)) + 1
    else:
        return None
    return found, int(facts["step"])


def _flat(prefix: str, facts: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}/{name}": float(value) for name, value in facts.items()
            if isinstance(value, int | float) and not isinstance(value, bool)}


def _module(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SelfloopError(f"sink {extra} is not installed: pip install 'selfloop[{extra}]'"
                            ) from None


def _tensorboard(folder: Path, run: str, config: Mapping[str, Any]
                 ) -> tuple[Log, Callable[[], None]]:
    _module("tensorboard", "tensorboard")
    writer = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter(
        str(folder / "tensorboard"))

    def log(found: Mapping[str, float], step: int) -> None:
        for name, value in found.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def _trackio(folder: Path, run: str, config: Mapping[str, Any]) -> tuple[Log, Callable[[], None]]:
    return _logger(_module("trackio", "trackio"), run, config)


def _wandb(folder: Path, run: str, config: Mapping[str, Any]) -> tuple[Log, Callable[[], None]]:
    return _logger(_module("wandb", "wandb"), run, config)


def _logger(module: Any, run: str, config: Mapping[str, Any]) -> tuple[Log, Callable[[], None]]:
    """Trackio speaks W&B's interface: init, log, finish."""
    module.init(project="selfloop", name=run, config=dict(config))

    def log(found: Mapping[str, float], step: int) -> None:
        # Steps and iterations have counters of their own; a tracker wants one that never falls.
        module.log({**found, "at": step})

    return log, lambda: module.finish()
