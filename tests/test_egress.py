"""network: none is enforced: connections leave only to hosts that run.yaml names."""

from __future__ import annotations

import socket
import sys
import threading

import pytest
from typer.testing import CliRunner

from clidata import with_splits
from selfloop import egress
from selfloop.cli import main
from selfloop.report.facts import gather
from selfloop.report.sections import network
from selfloop.roles import SelfloopError


def listener():
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


def test_this_machine_can_be_reached():
    with listener() as server, egress.only("none"):
        socket.create_connection(server.getsockname(), timeout=2).close()
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=2).close()


@pytest.mark.parametrize("address", [("192.0.2.7", 80), ("example.org", 443), ("10.0.0.1", 80)])
def test_others_cannot_and_the_line_says_how(address):
    with egress.only("none"), pytest.raises(SelfloopError, match=f"connection to {address[0]}"):
        socket.create_connection(address, timeout=2)


def test_urllib_and_datagrams_are_stopped_too():
    from urllib.request import urlopen

    with egress.only("none"):
        with pytest.raises(SelfloopError, match="network: none"):
            urlopen("http://192.0.2.7/picture.png", timeout=2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, \
                pytest.raises(SelfloopError):
            sock.sendto(b"x", ("192.0.2.7", 53))


def test_a_named_host_may_be_reached_and_the_rule_ends_with_the_run():
    with egress.only(("192.0.2.7",)):
        egress._WATCH.check("192.0.2.7")
        with pytest.raises(SelfloopError, match=r"192\.0\.2\.8"):
            egress._WATCH.check("192.0.2.8")
        with egress.only("none"), pytest.raises(SelfloopError):
            egress._WATCH.check("192.0.2.7")
    assert not egress._WATCH.rules


def test_a_thread_of_the_run_is_watched():
    found = []

    def leak():
        try:
            socket.create_connection(("192.0.2.7", 80), timeout=1)
        except Exception as error:
            found.append(error)

    with egress.only("none"):
        thread = threading.Thread(target=leak)
        thread.start()
        thread.join()
    assert isinstance(found[0], SelfloopError)




def test_the_command_line_holds_it_and_the_report_says_it(tmp_path, monkeypatch):
    with_splits(tmp_path)
    (tmp_path / "leaky.py").write_text(
        "import socket\n\ndef leaky(rollout, answer):\n"
        "    socket.create_connection(('192.0.2.7', 80), timeout=1)\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    result = CliRunner().invoke(main, ["run", "verifier=leaky:leaky"])
    assert result.exit_code == 2 and "nothing leaves this machine" in result.stderr
    assert network(gather(tmp_path / "runs" / "star")) == "none"
    refused = CliRunner().invoke(main, ["run", "--sink", "wandb"])
    assert refused.exit_code == 2 and "api.wandb.ai" in refused.stderr
