"""Connections that wait for a worker use a bounded part of the layer."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import redis

from asgibus.layers.frames import EVENT, EVENT_OFFSET
from asgibus.protocol.connect_request import HTTP
from asgibus.protocol.events import MESSAGE_RECEIVED, REQUEST_BODY, REQUEST_END
from asgibus.protocol.stream import PART
from support.admin import counts, readiness
from support.deadline import in_time, wait_until
from support.processes import Process
from support.raw import RawClient
from support.recording import Table, claim_frame
from support.redis import RedisServer
from support.websocket import BINARY, RawWebSocket

BODY = b"x" * PART


def test_bodies_are_withheld_above_half_of_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(max_unclaimed=3 * PART)
    first, complete = table.open(HTTP, ((REQUEST_BODY, BODY),), method="POST")
    second, cut = table.open(HTTP, ((REQUEST_BODY, BODY),), method="POST")
    second.event((REQUEST_END, b"y"))
    table.open(HTTP, ((REQUEST_END, b""),))
    assert [len(opening.events) for opening in table.openings] == [1, 0, 1]
    assert (complete.reading, cut.reading) == (True, False)
    table.frames(claim_frame(second.number))
    assert table.events() == [(REQUEST_BODY, BODY), (REQUEST_END, b"y")]
    assert cut.reading
    table.frames(claim_frame(first.number))  # there is room again
    table.open(HTTP, ((REQUEST_BODY, BODY),), method="POST")
    assert len(table.openings[-1].events) == 1
    assert table.connections.counts["body withheld"] == 1


def test_a_second_run_gets_the_withheld_body() -> None:
    table = Table(max_unclaimed=PART)
    connection, _ = table.open(HTTP, ((REQUEST_END, BODY),))
    assert table.openings[-1].events == ()
    table.frames(claim_frame(connection.number))
    assert [frame[EVENT_OFFSET:] for frame in table.posted() if frame[0] == EVENT] == [(REQUEST_END, BODY)]
    table.dead()
    assert table.openings[-1].attempt == 2
    table.frames(claim_frame(connection.number, 2), sender="worker.2!")
    assert table.events("worker.2!") == [(REQUEST_END, BODY)]


def test_a_full_table_rejects_new_connections_only() -> None:
    table = Table(max_unclaimed=3000)
    connection, terminator = table.open_accepted()
    opened = [table.open(HTTP, ((REQUEST_END, b""),))[1] for _ in range(200)]
    table.dead()  # the open connection is offered again
    table.connections.tick(1.0)
    rejected = [other for other in opened if other.failed]
    assert 0 < len(rejected) < 200
    assert {answer for other in rejected for answer in other.failed} == {(503, 1013)}
    assert table.connections.counts["no room"] == len(rejected)
    assert not terminator.failed
    for offer in [*table.bus.offered]:
        if offer.state.kind == HTTP:
            table.frames(claim_frame(offer.state.connection))
    connection.event((MESSAGE_RECEIVED, "meanwhile"))
    table.connections.tick(5.0)
    assert table.openings[-1].connection == connection.number
    assert table.openings[-1].attempt == 2


@contextmanager
def waiting_uploads(server: Process, count: int) -> Iterator[None]:
    """Open sockets that have sent the first parts of their bodies, for a pool that has no worker."""
    with ExitStack() as clients:
        for _ in range(count):
            client = clients.enter_context(RawClient(server))
            client.send(
                b"POST /other/upload HTTP/1.1\r\nHost: a\r\nX-Pad: %s\r\nContent-Length: 1000000\r\n\r\n%s"
                % (b"p" * 50_000, BODY)
            )
        yield


def test_a_pool_without_workers_leaves_room_in_redis(
    start_redis: Callable[..., RedisServer],
    start_interface: Callable[..., Process],
    start_worker: Callable[..., Process],
) -> None:
    store = start_redis("--maxmemory", "60mb", "--maxmemory-policy", "noeviction")
    url = store.url
    start_worker("end_to_end.pool_app:app", "--layer", url, env={"POOL": "default"})
    options = ("--route", "/other=other", "--connect-timeout", 30, "--admin-port", 0, "--graceful-timeout", 0.5)
    server = start_interface("--layer", url, *options)
    with waiting_uploads(server, 700):
        with redis.Redis.from_url(url, protocol=2) as admin:
            wait_until(lambda: counts(server).get("no room", 0) > 0)
            assert admin.info("memory")["used_memory"] < 55_000_000
        with RawClient(server) as client:
            assert client.request("GET", "/").body == b"default"
        with RawWebSocket(server, "/") as client:
            assert client.read_frame() == (BINARY, b"default")
        with RawClient(server) as client:
            began = time.monotonic()
            assert client.request("GET", "/other/").status == 503
            in_time(time.monotonic() - began, 2)
    assert server.log().count("new connections are refused") == 1


def test_a_full_redis_is_logged_and_requests_wait(
    start_redis: Callable[..., RedisServer],
    start_interface: Callable[..., Process],
    start_worker: Callable[..., Process],
) -> None:
    url = start_redis().url
    start_worker("end_to_end.pool_app:app", "--layer", url, env={"POOL": "default"})
    server = start_interface("--layer", url, "--admin-port", 0)
    with redis.Redis.from_url(url, protocol=2) as admin, RawClient(server) as client:
        assert client.request("GET", "/").status == 200
        admin.config_set("maxmemory", "1kb")
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: readiness(server)[0] == 503)
        assert "OOM" in readiness(server)[1]
        admin.config_set("maxmemory", "0")
        assert client.read_response().status == 200
        wait_until(lambda: readiness(server)[0] == 200)
    assert server.log().count("Redis refuses writes for now (OOM") == 1
