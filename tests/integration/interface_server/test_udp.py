"""UDP over real sockets, on both layers: datagrams of peers and events of the app."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.servers import LAYERS, Servers, serving
from support.udp import Peer, counts, udp_port

APP = "interface_server.udp_app:app"


@pytest.fixture(scope="module", params=LAYERS)
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    options = ("--udp", "127.0.0.1:0", "--udp", "[::1]:0", "--admin-port", "0")
    with serving(request, APP, *options, layer=request.param, worker_options=("--protocol", "udp")) as servers:
        yield servers


@pytest.fixture
def server(servers: Servers) -> Process:
    return servers.interfaces[0]


# Peers and runs.


def test_the_scope(server: Process) -> None:
    with Peer(server) as peer:
        answer = peer.ask(b"scope")
        assert answer["scope"] == {
            "type": "udp",
            "asgi": {"version": "3.0"},
            "client": peer.address,
            "server": ["127.0.0.1", udp_port(server)],
        }
        assert answer["extensions"] == ["asgibus"]


def test_ipv6(server: Process) -> None:
    with Peer(server, host="::1") as peer:
        scope = peer.ask(b"scope")["scope"]
        assert (scope["client"], scope["server"]) == (peer.address, ["::1", udp_port(server, "::1")])


def test_each_peer_has_one_run_with_ordered_datagrams(server: Process) -> None:
    with Peer(server) as first, Peer(server) as second:
        run = first.ask(b"0")["run"]
        assert second.ask(b"0")["run"] != run
        for number in range(1, 100):
            first.send(b"%d" % number)
        answers = [json.loads(first.receive()) for _ in range(1, 100)]
        assert [(answer["run"], answer["count"], answer["data"]) for answer in answers] == [
            (run, number + 1, str(number)) for number in range(1, 100)
        ]
        assert second.ask(b"1")["count"] == 2


@pytest.mark.parametrize("size", [4, 1472, 9000, 65507])
def test_datagrams_of_all_sizes(server: Process, size: int) -> None:
    with Peer(server) as peer:
        peer.send(b"echo" + bytes(size - 4))
        assert peer.receive() == b"echo" + bytes(size - 4)


def test_empty_datagrams_are_relayed(server: Process) -> None:
    with Peer(server) as peer:
        assert peer.ask(b"")["data"] == ""
        peer.send(b'invalid{"type": "udp.send", "size": 0}')
        assert peer.receive() == b""


def test_unread_datagrams_go_to_the_next_run(server: Process) -> None:
    with Peer(server) as peer:
        for number in range(50):
            peer.send(b"once %d" % number)
        answers = [json.loads(peer.receive()) for _ in range(50)]
        assert [answer["data"] for answer in answers] == [f"once {number}" for number in range(50)]
        assert len({answer["run"] for answer in answers}) == 50


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"type": "udp.send", "size": 65508}, "ValueError: a datagram has at most 65507 bytes, not 65508"),
        ({"type": "udp.send", "bytes": "text"}, "TypeError: a datagram must be bytes, not str"),
        ({"type": "udp.send"}, "ValueError: the event 'udp.send' lacks 'bytes'"),
        ({"type": "udp.receive"}, "ValueError: unknown ASGI event type 'udp.receive'"),
        ({"type": "line.send"}, "ValueError: 'line.send' cannot be sent on a udp connection"),
        ({"type": "websocket.send", "text": ""}, "ValueError: 'websocket.send' cannot be sent on a udp connection"),
    ],
)
def test_invalid_events_raise_out_of_send(server: Process, event: dict[str, Any], error: str) -> None:
    with Peer(server) as peer:
        assert peer.ask(b"invalid" + json.dumps(event).encode())["error"] == error
        assert peer.ask(b"next")["count"] == 2, "the run goes on"


def test_close_forgets_the_peer(server: Process) -> None:
    with Peer(server) as peer:
        peer.send(b'invalid{"type": "udp.close"}')
        peer.assert_silent(0.1)
        first = peer.ask(b"again")
        assert first["count"] == 1


def test_groups_and_reply_channels(server: Process) -> None:
    with Peer(server) as first, Peer(server) as second:
        first.ask(b"join")
        second.ask(b"join")
        before = counts(server).get("broadcast out of place", 0)
        first.send(b"tell")
        assert (first.receive(), second.receive()) == (b"told", b"told")
        wait_until(lambda: counts(server).get("broadcast out of place", 0) >= before + 2)
        first.send(b"reply channel")
        assert first.receive() == b"by channel"
        assert second.ask(b"next")["count"] == 2


def test_repeated_app_errors_are_logged_rarely(servers: Servers, server: Process) -> None:
    with Peer(server) as second:
        second.ask(b"first")
        for _ in range(100):
            with Peer(server) as peer:
                peer.send(b"raise")
        assert second.ask(b"second")["count"] == 2
        with Peer(server) as peer:
            peer.insist(b"hello")
    with RawClient(server) as client:
        assert client.request("GET", "/").status == 200
    worker = servers.workers[0]
    worker.wait_for("the app raised on udp")
    assert worker.log().count("the app raised on udp") <= 2
