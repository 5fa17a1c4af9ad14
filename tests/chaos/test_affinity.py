"""Connections with keys, while workers are killed and replaced, and interface servers move, under load."""

import itertools
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from websockets.sync.client import ClientConnection

from chaos.scale import DRAIN_PERIOD, by_form
from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.websocket import ws

APP = "end_to_end.affinity_app:app"
KEYS = ("--affinity", "path:/ws/{room}", "--affinity", "query:room")
ROOMS = [f"room{number}" for number in range(8)]
ENDS = by_form(4, 40)
"""The number of workers that end."""
POSTERS = 4

Start = Callable[..., Process]
Figures = Callable[[object], None]


def ask(server: Process, room: str, status: Counter[int]) -> str:
    """Return the worker that answers a POST with the key of that room, and count the status."""
    with RawClient(server) as client:
        response = client.request("POST", f"/?room={room}", body=b"x" * random.choice((1, 5000)))
    status[response.status] += 1
    return response.text


class Room:
    """The sockets of a room, which stay open."""

    def __init__(self, name: str, sockets: list[ClientConnection]) -> None:
        self.name = name
        self.sockets = sockets
        self._tokens = itertools.count(1)

    def workers(self) -> set[str]:
        """Return the workers that serve the sockets now. The app names its worker unasked, too, when a run begins."""
        token = f"{next(self._tokens)}"
        for socket in self.sockets:
            socket.send(token)
        return {self._answer(socket, token) for socket in self.sockets}

    def _answer(self, socket: ClientConnection, token: str) -> str:
        while True:
            worker, _, text = str(socket.recv(30)).partition(" ")
            if text == token:
                return worker


@contextmanager
def load(servers: list[Process], status: Counter[int]) -> Iterator[None]:
    """Send requests with the keys of all rooms, until the end of the context."""
    stop = threading.Event()

    def run(start: int) -> None:
        for number in itertools.count(start):
            if stop.is_set():
                return
            ask(servers[number % len(servers)], ROOMS[number % len(ROOMS)], status)

    with ThreadPoolExecutor(POSTERS) as pool:
        running = [pool.submit(run, number) for number in range(POSTERS)]
        try:
            yield
        finally:
            stop.set()
        for each in running:
            each.result()


def test_one_key_is_in_one_worker_whatever_ends(
    start_interface: Start, start_worker: Start, redis_url: str, figures: Figures
) -> None:
    def start(**options: Any) -> Process:
        return start_worker(APP, "--layer", redis_url, "--resume", "--drain-period", DRAIN_PERIOD, **options)

    workers = [start() for _ in range(3)]
    servers = [start_interface("--layer", redis_url, "--processes", 2, "--no-access-log", *KEYS) for _ in range(2)]
    status: Counter[int] = Counter()
    kills = 0
    with ExitStack() as stack:
        rooms = [
            Room(name, [stack.enter_context(ws(servers[number % 2], f"/ws/{name}")) for number in range(3)])
            for name in ROOMS
        ]
        with load(servers, status):
            for number in range(ENDS):
                ending = workers.pop(random.randrange(len(workers)))
                if number % 2:
                    ending.kill()
                    kills += 1
                else:
                    ending.terminate()
                workers.append(start())
                if number % 4 == 3:
                    servers[0].mark()
                    servers[0].send_signal(signal.SIGUSR2)
                    servers[0].wait_for("all processes have moved")
                living = {str(worker.pid) for worker in workers}
                for room in rooms:
                    wait_until(lambda room=room, living=living: len(found := room.workers()) == 1 and found < living)
        for room in rooms:
            homes = room.workers() | {ask(server, room.name, status) for server in servers}
            assert len(homes) == 1, f"{room.name} is in {homes}"
    figures(f"{status.total()} requests while {ENDS} workers ended, {kills} of them killed: {dict(status)}")
    assert status.keys() <= {200, 502}
    assert status[502] <= kills * POSTERS, "no request has failed but those in the hands of a killed worker"
