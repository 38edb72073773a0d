"""A Ctrl-C that cannot get lost.

Python drops a KeyboardInterrupt that falls into a destructor or a weak reference's callback (it
prints "Exception ignored" and goes on), and of a long run nobody sees that it did not stop. Here
the key is remembered and raised again at the run's next event.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """Remembers SIGINT while it is entered; outside the main thread it changes nothing."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            found = signal.getsignal(signal.SIGINT)
            if found is signal.default_int_handler:  # nobody else has plans for it
                self._before = signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def check(self) -> None:
        """Raise KeyboardInterrupt if one was asked for and has not ended the run."""
        if self.asked:
            self.asked = False
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt
