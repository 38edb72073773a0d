"""How processes come together: started here, or by accelerate launch or torchrun."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from selfloop.engines.crew import Crew, leave
from selfloop.engines.launching import LEADER, launched
from selfloop.roles import SelfloopError

TIMEOUT = 3600.0
"""Seconds that a process may be silent inside of a call. (One that ends is noticed at once.)"""
_START = 300.0
_AGES = timedelta(days=3650)
_stores: Any = dist
"""The same module: its stores are not among the names that it declares."""

_crew: Crew | None = None


def crew_of(size: int, timeout: float = TIMEOUT) -> Crew:
    """The leader's crew of so many: the one that works already, the launched one, or a new one."""
    global _crew
    found = launched()
    if found > 1 and size not in (1, found):
        raise SelfloopError(f"processes: {size}, but {found} were launched: let both agree, or "
                            "leave `processes` out")
    size = max(size, found)
    if _crew is not None and not _crew.ended and _crew.size == size \
            and (found > 1 or _crew.timeout == timeout):
        return _crew
    if _crew is not None:
        if found > 1:
            raise SelfloopError(f"{_crew.ended}: launch them again to go on")
        _crew.end("the run has ended")
    _crew = _join(timeout) if found > 1 else _start(size, timeout)
    atexit.register(_crew.end, "the run has ended")
    return _crew


def follow() -> None:
    """What every process but the first does from its start to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C goes to all; the leader decides
    warnings.simplefilter("ignore")  # the leader sees the same
    port = os.environ.get(LEADER)
    store = _stores.TCPStore("127.0.0.1", int(port), is_master=False,
                             timeout=timedelta(seconds=_START)) if port else None
    _join(TIMEOUT, store).follow()
    leave()


def _start(size: int, timeout: float) -> Crew:
    """Starts the other processes on this machine, and joins them."""
    store = _stores.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False,
                             timeout=timedelta(seconds=_START))
    code = "from selfloop.engines.starting import follow; follow()"
    loop = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform.startswith("linux") else {}
    threads = torch.get_num_threads()
    each = max(1, threads // size)
    ours = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "OMP_NUM_THREADS": str(each),
            **loop}
    started = []
    for rank in range(1, size):
        said = tempfile.TemporaryFile()  # noqa: SIM115 (read when the process has ended)
        started.append((subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=said, start_new_session=True,
            env={**os.environ, **ours, "RANK": str(rank), "LOCAL_RANK": str(rank),
                 "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
                 LEADER: str(store.port), "SELFLOOP_TIMEOUT": str(timeout)}), said))
    _await(store, started, size)
    with _environment({**ours, "RANK": "0", "LOCAL_RANK": "0"}):
        crew = _join(timeout, store)
    crew.started, crew.threads = started, threads
    torch.set_num_threads(each)  # an engine's own `threads` is a number for each process, too
    return crew


def _await(store: Any, started: Sequence[tuple[Any, Any]], size: int) -> None:
    """Waits until every process has found the leader; raises with the last words of one that
    has ended instead."""
    deadline = time.monotonic() + _START
    while not store.check([f"here/{rank}" for rank in range(1, size)]):
        gone = [p for p, _ in started if p.poll() is not None]
        if gone or time.monotonic() > deadline:
            for process, _ in started:
                process.kill()
                process.wait()
            why = Crew(0, size, 0, started=list(started)).last_words() if gone else ""
            raise SelfloopError(why or f"{size - 1} processes did not start in {_START:g} s")
        time.sleep(0.02)


def _join(timeout: float, store: Any = None) -> Crew:
    """Meets the others under the names that the environment gives."""
    from accelerate import PartialState

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = float(os.environ.get("SELFLOOP_TIMEOUT", timeout))
    given: dict[str, Any] = {}
    if store is not None:
        given = {"store": _stores.PrefixStore("selfloop", store), "rank": rank, "world_size": size}
        if rank:
            store.set(f"here/{rank}", "yes")
    PartialState._reset_state()
    # Words always go over gloo, so accelerate is asked for that; devices are ours to set.
    PartialState(cpu=True, backend="gloo", timeout=timedelta(seconds=timeout), **given)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    crew = Crew(rank, size, timeout)
    crew.words = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    crew.idle = dist.new_group(backend="gloo", timeout=_AGES)
    return crew


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*more, "MASTER_PORT")}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
