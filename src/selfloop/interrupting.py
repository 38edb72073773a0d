"""A Ctrl-C that cannot get lost.

Python drops a KeyboardInterrupt that falls into a destructor or a weak reference's callback (it
prints "Exception ignored" with a traceback and goes on), and of a long run nobody sees that it did
not stop. Here the key is remembered and raised again at the run's next event, and nothing printed.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any


class Interruption:
    """Remembers SIGINT while it is entered; outside the main thread it changes nothing."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._hook: Any = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            found = signal.getsignal(signal.SIGINT)
            if found is signal.default_int_handler:  # nobody else has plans for it
                self._before = signal.signal(signal.SIGINT, self._remember)
                self._hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            sys.unraisablehook, self._before = self._hook, None

    def check(self) -> None:
        """Raise KeyboardInterrupt if one was asked for and has not ended the run."""
        if self.asked:
            self.asked = False
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt

    def _dropped(self, what: Any) -> None:
        """Python is about to drop an exception: not a word of one that will be raised again."""
        if not (self.asked and issubclass(what.exc_type, KeyboardInterrupt)):
            self._hook(what)
