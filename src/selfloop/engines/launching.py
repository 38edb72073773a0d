"""Whether accelerate launch or torchrun has started this process among others. Imports nothing
heavy: every command asks."""

from __future__ import annotations

import os

LEADER = "SELFLOOP_LEADER"
"""Port of the leader's store: in the environment of processes that an engine has started itself."""
_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launched() -> int:
    """How many processes a launcher has started, this one among them; 1 without a launcher."""
    if LEADER in os.environ or any(name not in os.environ for name in _LAUNCHED):
        return 1
    return int(os.environ["WORLD_SIZE"])


def follows() -> bool:
    """Whether this process was launched to follow another."""
    return launched() > 1 and int(os.environ["RANK"]) > 0
