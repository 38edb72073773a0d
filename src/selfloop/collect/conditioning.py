"""What a rollout is trained under, when that is not what it was drawn under; and its notes."""

from __future__ import annotations

from typing import Any

from selfloop.roles import SelfloopError
from selfloop.types import Context, Rollout


def at_least_one(owner: object, *names: str) -> None:
    """Raise SelfloopError, when `owner` is built, for a count of which none would be drawn."""
    for name in names:
        count = getattr(owner, name)
        if count < 1:
            raise SelfloopError(f"{type(owner).__name__}({name}={count}): must be at least 1")


def noted(rollout: Rollout, **notes: Any) -> Rollout:
    """The rollout with `notes` (JSON-able) added to `sampling`."""
    return rollout.model_copy(update={"sampling": {**rollout.sampling, **notes}})


def put_under(context: Context, rollout: Rollout, **notes: Any) -> Rollout:
    """The same drawn tokens under another context: what a guided prompt gave, without the guide.

    Log-probs are dropped, because they are those of the other context (see `Branch.under`). What
    it was really drawn under is kept in `sampling["drawn_under"]`, so that it can be drawn again.
    Raises SelfloopError for a rollout of several turns: what was said in between would be lost.
    """
    if len(rollout.turns) > 1:
        raise SelfloopError(
            f"rollout {rollout.id} has {len(rollout.turns)} turns and cannot be put under another "
            "context; train it as it was drawn")
    drawn_under = rollout.context.model_dump(mode="json", exclude_defaults=True)
    return noted(rollout.model_copy(update={
        "context": context, "turns": tuple(turn.detached() for turn in rollout.turns),
    }), drawn_under=drawn_under, **notes)


def wholly_own(rollout: Rollout) -> Rollout:
    """The rollout with its forced tokens counted as drawn, and so without log-probs.

    Right only where what was forced is the model's own earlier text (a path through a tree, an
    answer that is continued), or where it shall be trained all the same (a made-up negative).
    """
    turns = tuple(turn.model_copy(update={"loss_mask": None, "logprobs": None})
                  for turn in rollout.turns)
    return rollout.model_copy(update={"turns": turns})
