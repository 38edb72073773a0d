"""A Ctrl-C that Python drops still ends the run."""

import os
import signal
import sys

import pytest

from selfloop.interrupting import Interruption
from selfloop.progress import Shown


class Dying:
    """Its destructor is where the signal falls."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


class Failing:
    """Its destructor fails for a reason of its own."""

    def __del__(self):
        raise ValueError("mine")


def test_an_interruption_that_falls_into_a_destructor_is_raised_at_the_next_event(monkeypatch):
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: dropped.append(what.exc_type))
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with Shown() as shown:
        Dying()  # Python drops the interruption and goes on
        Failing()
        assert dropped == [ValueError], "no traceback of what is raised again, of others there is"
        with pytest.raises(KeyboardInterrupt):
            shown("opened", {"loop": "x", "samples": 1, "dev": 1, "iterations": 1, "steps": 1})
        shown("spent", {})  # raised once: what is told while the run ends is told
    assert signal.getsignal(signal.SIGINT) is before and sys.unraisablehook is hook


def test_an_ordinary_one_is_raised_where_it_falls_and_others_handlers_stay():
    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked
    mine = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            interruption.check()
    finally:
        signal.signal(signal.SIGINT, mine)
