"""`serve(engine)`: the server as a context manager, in the thread of its own that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from selfloop.roles import Engine, SelfloopError
from selfloop.serving.desk import Desk
from selfloop.serving.handling import Http, is_loopback
from selfloop.serving.limits import Limits

__all__ = ["Limits", "Server", "check_host", "serve"]


class Server:
    """A running server: where it listens, and its desk."""

    def __init__(self, http: Http) -> None:
        self._http, self.desk = http, http.desk
        host, port = str(http.server_address[0]), int(http.server_address[1])
        self.port = port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        """The base URL that an OpenAI client is given."""

    def wait(self) -> None:
        """Until interrupted, or until the engine's thread ends."""
        while self.desk.batcher.alive:
            self.desk.batcher.join(timeout=1.0)


def check_host(host: str, allow_remote: bool) -> None:
    """Raises SelfloopError for a host that others can reach, unless that is meant."""
    if not is_loopback(host) and not allow_remote:
        raise SelfloopError(f"--host {host} can be reached from other machines: give "
                            "--allow-remote if that is meant, and a --token")


@contextmanager
def serve(engine: Engine, *, host: str = "127.0.0.1", port: int = 0, name: str | None = None,
          token: str | None = None, limits: Limits | None = None, allow_remote: bool = False
          ) -> Iterator[Server]:
    """Serve `engine` while inside; port 0 takes a free one. The engine is the server's meanwhile.

    `name` is what clients call the model, by default the engine's. With `token` clients must send
    it. Raises SelfloopError for a host that others can reach unless `allow_remote`, and for an
    address that cannot be had.
    """
    check_host(host, allow_remote)
    desk = Desk(engine, name or engine.name, limits or Limits(), token)
    try:
        http = Http((host, port), desk)
    except (OSError, OverflowError) as error:
        raise SelfloopError(f"cannot listen on {host} port {port}: {error}; give another --port, "
                            "or 0 for any") from None
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05},
                    name="selfloop-http", daemon=True)
    desk.batcher.start()
    thread.start()
    try:
        yield Server(http)
    finally:
        http.shutdown()
        desk.batcher.stop()
        http.server_close()
        thread.join()
