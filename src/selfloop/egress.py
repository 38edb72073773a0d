"""What may leave the machine: nothing, unless run.yaml names the host.

An audit hook watches every connection that Python code of this process opens. It does not reach
into child processes or native code that opens sockets by itself; whoever must be certain runs in
a network namespace. Weights that are downloaded before a run are not covered: nothing of the
user's leaves with them.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, local
from typing import Any, Literal

from selfloop.roles import SelfloopError

Network = Literal["none"] | tuple[str, ...]
"""Hosts that may be reached; "none" is no host but this one."""


class _Watch:
    """The rule in force. Audit hooks cannot be removed, so there is one, and it can rest."""

    def __init__(self) -> None:
        self.rules: list[tuple[str, ...]] = []
        self.addresses: dict[str, frozenset[str]] = {}
        self.hooked, self.lock = False, Lock()
        self.looking = local()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.rules or not event.startswith("socket.") \
                or getattr(self.looking, "up", False):
            return
        if event == "socket.getaddrinfo":
            self.check(args[0])
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = args[1]
            if isinstance(address, tuple) and address:  # a text is a Unix socket: this machine
                self.check(address[0])

    def check(self, host: Any) -> None:
        """Raises SelfloopError for a host that no rule in force allows."""
        name = host.decode() if isinstance(host, bytes) else str(host or "")
        if is_here(name):
            return
        for rule in self.rules:
            if name not in rule and not any(self.leads_to(h, name) for h in rule):
                allowed = ", ".join(rule) or "none"
                raise SelfloopError(
                    f"a connection to {name} was stopped (network: {allowed}): nothing leaves this "
                    f"machine unless run.yaml names the host, as in `network: [{name}]`")

    def leads_to(self, host: str, address: str) -> bool:
        """Whether an allowed host has this address. Large hosts give others from time to time, so
        an address that is new is looked up again; those once given stay."""
        if not _is_address(address):
            return False
        if address not in self.addresses.get(host, ()):
            self.looking.up = True  # in this thread; the look-up itself is not watched
            try:
                found = frozenset(str(a[4][0]) for a in socket.getaddrinfo(host, None))
                self.addresses[host] = self.addresses.get(host, frozenset()) | found
            except OSError:
                pass
            finally:
                self.looking.up = False
        return address in self.addresses.get(host, ())


_WATCH = _Watch()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return False
    return True


def is_here(host: str) -> bool:
    """Whether a host is this machine."""
    if host in ("", "localhost", "0.0.0.0", "::"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


@contextmanager
def only(network: Network | Sequence[str]) -> Iterator[None]:
    """While inside, connections to other hosts raise SelfloopError. Rules of several add up."""
    rule = () if network == "none" else tuple(network)
    with _WATCH.lock:
        if not _WATCH.hooked:
            sys.addaudithook(_WATCH)
            _WATCH.hooked = True
        _WATCH.rules.append(rule)
    try:
        yield
    finally:
        with _WATCH.lock:
            _WATCH.rules.remove(rule)
