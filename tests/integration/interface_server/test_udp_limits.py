"""Limits of UDP peers: idle, too many or too fast; failures of their workers; addresses that are in use."""

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack

import psutil
import pytest

from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.redis import RedisServer
from support.servers import LAYERS, Servers, serving
from support.udp import Peer, counts

APP = "interface_server.udp_app:app"
HTTP_ONLY = "interface_server.udp_app:http_only"
MIB = 1024 * 1024

Start = Callable[..., Process]


# Time, and limits.


def test_a_silent_peer_is_forgotten(start_interface: Start) -> None:
    server = start_interface("--udp", "127.0.0.1:0", "--udp-timeout", "0.5", app=APP)
    with Peer(server) as peer, Peer(server) as other:
        run = peer.ask(b"hello")["run"]
        wait_until(lambda: f"disconnect of run {run}: silent" in server.log() or not other.ask(b"alive"))
        assert peer.ask(b"again")["run"] != run
        server.wait_for(f"send in run {run}: the client is gone: 'udp.send' was not sent")
        assert server.log().count("disconnect of run") == 1, "an active peer was forgotten"


@pytest.mark.parametrize("layer", LAYERS)
def test_a_stop_of_the_server_is_a_disconnect(request: pytest.FixtureRequest, layer: str) -> None:
    options = ("--udp", "127.0.0.1:0")
    with serving(request, APP, *options, layer=layer, worker_options=("--protocol", "udp")) as servers:
        with Peer(servers.interfaces[0]) as peer:
            run = peer.ask(b"hello")["run"]
            servers.interfaces[0].terminate()
            assert servers.interfaces[0].wait() == 0
        servers.workers[0].wait_for(f"disconnect of run {run}: the server stops")


@pytest.mark.parametrize("layer", LAYERS)
def test_a_flood_is_dropped_and_counted(request: pytest.FixtureRequest, layer: str) -> None:
    options = ("--udp", "127.0.0.1:0", "--udp-max-peers", "10", "--admin-port", "0")
    with serving(request, APP, *options, layer=layer, worker_options=("--protocol", "udp")) as servers:
        (server,) = servers.interfaces
        with ExitStack() as stack:
            busy = stack.enter_context(Peer(server))
            busy.send(b"hold")
            before = memory(servers)
            for _ in range(50_000):  # 50 MB in all
                busy.send(bytes(1000))
            crowd = [stack.enter_context(Peer(server)) for _ in range(200)]

            def too_many_come() -> bool:
                for peer in crowd:  # repeatedly: after the flood, the kernel may drop them all
                    peer.send(b"hold")
                return "udp too many peers" in counts(server)

            wait_until(too_many_come)
            with RawClient(server) as client:  # opens the gate
                assert client.request("GET", "/").status == 200
            wait_until(lambda: counts(server).get("udp window full", 0) > 1000)
            assert memory(servers) - before < 20 * MIB
            assert json.loads(busy.receive())["data"] == "hold", "a received datagram was not answered"


def memory(servers: Servers) -> int:
    return sum(psutil.Process(process.pid).memory_info().rss for process in servers.all)


# Workers.


def test_a_worker_without_the_protocol_claims_no_peer(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    worker = start_worker(HTTP_ONLY, "--layer", redis_url)
    server = start_interface(
        "--layer", redis_url, "--udp", "127.0.0.1:0", "--connect-timeout", "0.5", "--admin-port", "0"
    )
    with Peer(server) as peer:
        for _ in range(5):
            peer.send(b"hello")
        wait_until(lambda: counts(server).get("udp lost") == 5)
        with RawClient(server) as client:
            assert client.request("GET", "/").status == 200
        assert "raised" not in worker.log()
        start_worker(APP, "--layer", redis_url, "--protocol", "udp")
        assert peer.insist(b"hello")["data"] == "hello"


def stop(worker: Process) -> None:
    worker.terminate()
    assert worker.wait() == 0


@pytest.mark.usefixtures("short_leases")
@pytest.mark.parametrize("end", [Process.kill, stop])
def test_another_worker_takes_the_next_datagram(
    start_interface: Start, start_worker: Start, redis_url: str, end: Callable[[Process], None]
) -> None:
    workers = {
        worker.pid: worker
        for worker in (start_worker(APP, "--layer", redis_url, "--protocol", "udp") for _ in range(2))
    }
    server = start_interface("--layer", redis_url, "--udp", "127.0.0.1:0")
    peers = [Peer(server) for _ in range(20)]
    first = [peer.ask(b"hello")["pid"] for peer in peers]
    ended = workers[first[0]]
    end(ended)
    for peer, pid in zip(peers, first, strict=True):
        answer = peer.insist(b"again")
        assert answer["pid"] != ended.pid
        assert answer["pid"] in workers
        if pid != ended.pid:
            assert answer["count"] == 2, "a peer of the other worker was interrupted"
        peer.__exit__()
    if end is stop:
        assert ended.log().count(": the worker stops") == first.count(ended.pid)


def test_peers_outlive_an_empty_restart_of_redis(
    start_interface: Start, start_worker: Start, start_redis: Callable[..., RedisServer]
) -> None:
    redis = start_redis()
    start_worker(APP, "--layer", redis.url, "--protocol", "udp")
    server = start_interface("--layer", redis.url, "--udp", "127.0.0.1:0")
    with Peer(server) as peer:
        run = peer.ask(b"before")["run"]
        redis.kill()
        for _ in range(3):
            peer.send(b"meanwhile")
        redis.start()
        answers = [json.loads(peer.receive()) for _ in range(3)]
        assert [(answer["run"], answer["data"]) for answer in answers] == [(run, "meanwhile")] * 3


def test_several_processes_share_the_port(start_interface: Start, start_worker: Start, redis_url: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_worker(APP, "--layer", redis_url, "--protocol", "udp")
    server = start_interface("--layer", redis_url, "--udp", f"127.0.0.1:{port}", "--processes", "2")
    wait_until(lambda: server.log().count("listening on udp://") == 2)
    for _ in range(20):
        with Peer(server, port=port) as peer:
            run = peer.ask(b"one")["run"]
            answer = peer.ask(b"two")
            assert (answer["run"], answer["count"]) == (run, 2)


# Starting.


@pytest.mark.parametrize("udp", ["127.0.0.1:{port}", "no.such.host.invalid:1", "192.0.2.1:1"])
def test_an_unavailable_address(start_interface: Start, udp: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        udp = udp.format(port=listener.getsockname()[1])
        server = start_interface("--udp", udp, app=APP, ready=False)
        assert server.wait() == 1
    (line,) = [line for line in server.log().splitlines() if "ERROR" in line or "Error" in line]
    assert f"cannot listen on udp://{udp}: " in line


def test_several_processes_need_a_port(start_interface: Start, redis_url: str) -> None:
    server = start_interface("--layer", redis_url, "--udp", "127.0.0.1:0", "--processes", "2", ready=False)
    assert server.wait() == 1
    assert "several processes need a port that all of them know" in server.log()
