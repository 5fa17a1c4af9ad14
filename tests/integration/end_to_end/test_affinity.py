"""Connections with one key and two workers, while these are killed and stopped, as the clients see it."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from signal import SIGKILL, SIGTERM, Signals

import pytest

from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.redis import RedisServer
from support.websocket import RawWebSocket

APP = "end_to_end.affinity_app:app"
KEYS = ("--affinity", "path:/ws/{room}", "--affinity", "query:room")

Start = Callable[..., Process]


def ask(server: Process, room: str, method: str = "POST") -> str:
    """Return the worker that answers a request with the key of that room."""
    with RawClient(server) as client:
        response = client.request(method, f"/?room={room}", body=b"x" if method == "POST" else b"")
        assert response.status == 200, response
        return response.body.decode()


def read(socket: RawWebSocket) -> str:
    return socket.read_frame()[1].decode()


@contextmanager
def asking(server: Process, room: str) -> Iterator[list[str]]:
    """Ask one time after another, until the end of the context."""
    answers: list[str] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            answers.append(ask(server, room))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            yield answers
        finally:
            stop.set()
        running.result()


@pytest.mark.parametrize("signal", [SIGKILL, SIGTERM])
def test_the_keys_of_a_worker_that_ends_move_together(
    signal: Signals, short_leases: None, start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    servers = [start_interface("--layer", redis_url, *KEYS) for _ in range(2)]
    started = [start_worker(APP, "--resume", "--layer", redis_url) for _ in range(3)]
    workers = {str(worker.pid): worker for worker in started}
    with ExitStack() as stack:
        rooms: dict[str, list[RawWebSocket]] = {}
        for room in "abcdef":
            rooms[room] = [stack.enter_context(RawWebSocket(server, f"/ws/{room}")) for server in servers]
        homes = {}
        for room, sockets in rooms.items():
            (homes[room],) = {*map(read, sockets), *(ask(server, room) for server in servers)}
        assert sorted(homes.values()) == sorted([*workers] * 2)

        first = homes["a"]
        ending = workers.pop(first)
        if signal is SIGTERM:
            with asking(servers[0], "a") as answers:
                wait_until(lambda: answers)
                ending.terminate()
                wait_until(lambda: answers[-1] != first)
            moved = {answer for answer in answers if answer != first}
            assert len(moved) == 1, "no request has failed, or has come to a third worker"
        else:
            ending.kill()
            with ThreadPoolExecutor(5) as pool:  # these are offered to it, since its lease has not ended
                moved = {*pool.map(partial(ask, servers[0]), "aaaaa")}
            assert len(moved) == 1
        for room, home in homes.items():
            now = {*map(read, rooms[room]), *(ask(server, room) for server in servers)} if home == first else {home}
            assert len(now) == 1
            assert room != "a" or now == moved
            assert now <= workers.keys()
            assert ask(servers[1], room, "GET") in now


def test_keys_outlive_the_data_of_redis(
    start_redis: Callable[..., RedisServer], start_interface: Start, start_worker: Start
) -> None:
    redis = start_redis()
    server = start_interface("--layer", redis.url, *KEYS)
    for _ in range(2):
        start_worker(APP, "--resume", "--layer", redis.url)
    homes = {room: ask(server, room) for room in "abcdef"}
    with RawWebSocket(server, "/ws/a") as socket:
        assert read(socket) == homes["a"]
        redis.kill()
        redis.start()
        server.wait_for("the bus was interrupted")
        assert {room: ask(server, room) for room in "abcdef"} == homes


def test_a_key_waits_for_the_first_worker(start_interface: Start, start_worker: Start, redis_url: str) -> None:
    server = start_interface("--layer", redis_url, *KEYS)
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(ask, server, "a") for _ in range(5)]
        for _ in range(2):
            start_worker(APP, "--layer", redis_url)
        assert len({each.result() for each in asked}) == 1


def test_a_session_is_known_to_all_interface_servers_at_once(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    keys = ("--affinity", "learn:query:sid")
    servers = [start_interface("--layer", redis_url, *keys) for _ in range(2)]
    for _ in range(3):
        start_worker(APP, "--layer", redis_url)
    workers = set()
    with RawClient(servers[0]) as first, RawClient(servers[1]) as second:
        for _ in range(40):
            sid = json.loads(first.request("POST", "/session").text)["sid"]
            answers = [client.request("POST", f"/?sid={sid}") for client in (second, first)]
            assert [answer.status for answer in answers] == [200, 200]
            workers |= {answer.text for answer in answers}
    assert len(workers) > 1
