"""What one request, one connection and the whole server may cost."""

from __future__ import annotations

from dataclasses import dataclass, fields
from threading import Lock

from selfloop.roles import SelfloopError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every bound of the server, all of them checked before the model is asked."""

    body_bytes: int = 32 * 2**20
    """Of one request."""
    held_bytes: int = 256 * 2**20
    """Of the bodies of all requests that are read or answered at one time."""
    characters: int = 200_000
    """Of text in one request: to tokenise more would keep the others waiting."""
    pictures: int = 16
    """In one request."""
    pixels: int = 20_000_000
    """Of one picture: width times height."""
    tokens: int = 2048
    """Longest answer; also the answer's bound where a request names none."""
    answers: int = 16
    """`n` of one request."""
    queue: int = 256
    """Requests that wait for the model; one more is refused with 429."""
    batch: int = 64
    """Requests that are answered in one call of the engine."""
    window: float = 0.01
    """Seconds that the first request of a batch waits for others."""
    seconds: float = 300.0
    """For one request, waiting included; and for a body to arrive."""
    connections: int = 512
    """Open at one time."""
    idle: float = 60.0
    """Seconds that a silent connection is kept."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name != "window"):
                raise SelfloopError(f"Limits.{field.name}={value}: it must be more than 0")


class Budget:
    """A bounded quantity that threads take from and give back to."""

    def __init__(self, size: int) -> None:
        self.left, self._lock = size, Lock()

    def take(self, amount: int) -> bool:
        """Whether there was as much left; it is then taken."""
        with self._lock:
            if amount > self.left:
                return False
            self.left -= amount
            return True

    def give(self, amount: int) -> None:
        """Back what was taken."""
        with self._lock:
            self.left += amount
