"""What follows when a guard fires: hold, step back, learn slower, draw wilder, or stop.

An action never touches a model. It changes the `Adjustment` that is stored with the iteration and
read when the next one is collected and learned; so a killed and resumed run goes on as if it had
not been killed. Factors multiply over the run and stay until its end: a rate at which the model
collapsed once would make it collapse again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from selfloop.roles import SelfloopError
from selfloop.types import Decision, Iteration
from selfloop.words import Adjustment


class Action(Protocol):
    """Returns the adjustment after it, given the one so far."""

    def __call__(self, adjustment: Adjustment, why: str) -> Adjustment: ...


@dataclass(frozen=True)
class Hold:
    """Do not promote; train on from the current weights. The least that any guard does."""

    def __call__(self, adjustment: Adjustment, why: str) -> Adjustment:
        """Changes nothing: the decision holds by itself."""
        return adjustment


@dataclass(frozen=True)
class RollBack:
    """Do not promote, and start the next iteration from the last promoted weights."""

    def __call__(self, adjustment: Adjustment, why: str) -> Adjustment:
        """Changes nothing: the decision rolls back by itself."""
        return adjustment


@dataclass(frozen=True)
class ShrinkLearningRate:
    """Multiply every role's learning rate by `factor`, down to `least` of what the loop says."""

    factor: float = 0.5
    least: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1 or not 0 < self.least < 1:
            raise SelfloopError(f"{self}: factor and least must be in (0, 1)")

    def __call__(self, adjustment: Adjustment, why: str) -> Adjustment:
        """A smaller `lr`."""
        lr = min(adjustment.lr, max(self.least, adjustment.lr * self.factor))
        return adjustment.model_copy(update={"lr": lr})


@dataclass(frozen=True)
class RaiseTemperature:
    """Multiply the temperature of stage 1's draws by `factor`, up to `most` times the loop's."""

    factor: float = 1.2
    most: float = 1.5

    def __post_init__(self) -> None:
        if self.factor <= 1 or self.most <= 1:
            raise SelfloopError(f"{self}: factor and most must be above 1")

    def __call__(self, adjustment: Adjustment, why: str) -> Adjustment:
        """A higher `temperature`."""
        raised = max(adjustment.temperature, min(self.most, adjustment.temperature * self.factor))
        return adjustment.model_copy(update={"temperature": raised})


@dataclass(frozen=True)
class RefreshReference:
    """From here on the reference is the weights at the start of a step, not the seed's.

    Where `Optim.reference` says "previous" that is already so, and nothing changes.
    """

    def __call__(self, adjustment: Adjustment, why: str) -> Adjustment:
        """Sets `refresh`."""
        return adjustment.model_copy(update={"refresh": True})


@dataclass(frozen=True)
class Stop:
    """End the run here."""

    def __call__(self, adjustment: Adjustment, why: str) -> Adjustment:
        """Sets `stop`, the first reason staying."""
        return adjustment.model_copy(update={"stop": adjustment.stop or why})


def _default_actions() -> dict[str, tuple[Action, ...]]:
    slower = (RollBack(), ShrinkLearningRate())
    wilder = (RollBack(), RaiseTemperature())
    return {
        "EmptyAnswers": slower, "ParseRate": slower, "LengthRatio": slower, "Unjudged": slower,
        "DistinctAnswers": wilder, "AnswerEntropy": wilder, "PassAtK": wilder,
        "YesRate": slower, "Blind": slower, "Disagreement": slower,
        "RewardParting": (RollBack(), Stop()),  # a slower hack is the same hack
        "Forgetting": (Hold(),),
    }


@dataclass(frozen=True)
class Acting:
    """Which actions follow which guard, and when the run has tried often enough."""

    on: Mapping[str, tuple[Action, ...]] = field(default_factory=dict)
    """Guard name -> actions, in order; laid over the defaults. Another guard rolls back."""
    strikes: int | None = 2
    """Looks since the last promotion with a guard that fired or harm that was shown, after which
    the run stops: stepping back did not mend it. None = never."""
    patience: int | None = None
    """Looks in a row without a promotion, after which the run stops: the loop is repeated only as
    long as it helps. None = all iterations, because slow gains may take many looks to show."""

    def __post_init__(self) -> None:
        for name in ("strikes", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise SelfloopError(f"Acting({name}={value}): must be at least 1, or None")
        for guard, actions in self.on.items():
            if not isinstance(actions, tuple) or not all(callable(a) for a in actions):
                raise SelfloopError(
                    f"Acting(on={{{guard!r}: {actions!r}}}): expected a tuple of actions, such as "
                    "(RollBack(), RaiseTemperature(1.2))")

    def actions(self, guard: str) -> tuple[Action, ...]:
        """What follows when this guard fires."""
        return tuple(self.on.get(guard, _default_actions().get(guard, (RollBack(),))))

    def action(self, guards: Sequence[str]) -> str:
        """"roll back" or "hold": a fired guard never lets a candidate through."""
        found = [a for guard in guards for a in self.actions(guard)]
        return "roll back" if any(isinstance(a, RollBack) for a in found) else "hold"

    def __call__(self, decision: Decision, done: Sequence[Iteration]
                 ) -> tuple[Adjustment, list[dict[str, Any]]]:
        """The next adjustment, and one event's facts for every action taken.

        `done` are the iterations before this one. Facts: `action`, `guard`, `why`, and the
        adjustment's figures after it.
        """
        adjustment = done[-1].adjustment if done else Adjustment()
        taken: list[dict[str, Any]] = []

        def take(action: Action, guard: str, why: str) -> None:
            nonlocal adjustment
            adjustment = action(adjustment, why)
            taken.append({"action": type(action).__name__, "guard": guard, "why": why,
                          **adjustment.model_dump(exclude={"stop"})})

        asked = [(action, guard) for guard in decision.guards for action in self.actions(guard)]
        for i, (action, guard) in enumerate(asked):
            if action not in [other for other, _ in asked[:i]]:  # two guards, one smaller rate
                take(action, guard, f"guard {guard} fired"
                     if isinstance(action, Stop) else decision.why)
        if not decision.guards and decision.action == "roll back":
            take(RollBack(), "", decision.why)
        if why := self._enough(decision, [i.decision for i in done]):
            take(Stop(), "", why)
        return adjustment, taken

    def _enough(self, decision: Decision, before: Sequence[Decision]) -> str:
        """Why the run has tried often enough, or nothing."""
        looks = [*before, decision]
        last = max((i for i, look in enumerate(looks) if look.action == "promote"), default=-1)
        idle = looks[last + 1:]
        harmed = [look for look in idle if look.guards or look.action == "roll back"]
        if self.strikes is not None and len(harmed) >= self.strikes and decision in harmed:
            guards = ", ".join(dict.fromkeys(g for look in harmed for g in look.guards))
            return (f"{len(harmed)} of {len(idle)} looks since the last promotion were harmful or "
                    f"set off a guard{f' ({guards})' if guards else ''}, and stepping back did "
                    "not mend it")
        if self.patience is not None and len(idle) >= self.patience:
            return f"{len(idle)} looks in a row promoted nothing: the loop no longer helps"
        return ""


def in_words(taken: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The actions of `Acting.__call__` beside holding and rolling back, one line each."""
    said: dict[str, None] = {}
    for facts in taken:
        match facts["action"]:
            case "ShrinkLearningRate":
                said[f"learning rate x {facts['lr']:.3g}"] = None
            case "RaiseTemperature":
                said[f"temperature x {facts['temperature']:.3g}"] = None
            case "RefreshReference":
                said["reference refreshed"] = None
            case "Stop":
                said[f"stopped: {facts['why']}"] = None
            case "Hold" | "RollBack":
                pass
            case other:
                said[str(other)] = None
    return tuple(said)
