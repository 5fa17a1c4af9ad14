"""Share connections that come at once between workers, as the clients see it."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from signal import SIGKILL, SIGTERM, Signals

import pytest

from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.websocket import handshake

APP = "end_to_end.shares_app:app"

Start = Callable[..., Process]


class Crowd:
    """WebSockets that stay open, by the worker that serves them."""

    def __init__(self, interface: Process, stack: ExitStack) -> None:
        self._interface = interface
        self._stack = stack
        self.sockets: dict[str, list[RawClient]] = {}

    def open(self, count: int) -> None:
        """Open that many WebSockets at once, and wait until each is told its worker."""
        clients = [self._stack.enter_context(RawClient(self._interface)) for _ in range(count)]
        for client in clients:
            client.send(handshake("/"))
        for client in clients:
            assert client.read_head()[1] == 101
            self._read_worker(client)

    def open_until_even(self, workers: int) -> None:
        """Open WebSockets until all workers have heard of each other, and have about as many."""

        def even() -> bool:
            self.open(10)
            return len(self.sockets) == workers and self.is_even()

        wait_until(even)

    def lose_worker(self, worker: Process, signal: Signals) -> None:
        """Kill a worker, or stop it, and wait until others serve its sockets."""
        worker.kill() if signal is SIGKILL else worker.terminate()
        for client in self.sockets.pop(str(worker.pid)):
            self._read_worker(client)

    def _read_worker(self, client: RawClient) -> None:
        _, length = client.read_exactly(2)
        self.sockets.setdefault(client.read_exactly(length).decode(), []).append(client)

    @property
    def shares(self) -> Counter[str]:
        return Counter({worker: len(clients) for worker, clients in self.sockets.items()})

    def is_even(self) -> bool:
        """Return whether the fullest worker has 10 % more than its share at most, and four more of few sockets."""
        shares = self.shares
        return max(shares.values()) <= 1.1 * shares.total() / len(shares) + 4


@pytest.mark.parametrize(("workers", "count"), [(2, 30), (4, 400)])
def test_websockets_that_are_opened_at_once_are_spread_evenly(
    workers: int, count: int, start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    for _ in range(workers):
        start_worker(APP, "--layer", redis_url)
    with ExitStack() as stack:
        crowd = Crowd(start_interface("--layer", redis_url), stack)
        even = 0
        for _ in range(5):
            crowd.open_until_even(workers)
            crowd.open(count)
            even += crowd.is_even()
        # On a busy machine a worker may not run for longer than the others wait for it.
        assert even >= 3, crowd.shares


def test_a_burst_right_after_the_start_is_spread_evenly(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    interface = start_interface("--layer", redis_url)
    for _ in range(4):
        start_worker(APP, "--layer", redis_url)
    with ExitStack() as stack:
        crowd = Crowd(interface, stack)
        crowd.open(400)  # the first worker has not looked for others since it was alone
        # On a busy machine a worker may not run for longer than the others wait for it.
        assert max(crowd.shares.values()) <= 160, crowd.shares


@pytest.mark.parametrize("signal", [SIGKILL, SIGTERM])
def test_the_websockets_of_a_worker_that_ends_are_spread_evenly(
    signal: Signals, short_leases: None, start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    workers = [start_worker(APP, "--resume", "--layer", redis_url) for _ in range(3)]
    with ExitStack() as stack:
        crowd = Crowd(start_interface("--layer", redis_url), stack)
        crowd.open_until_even(3)
        crowd.open(90)
        before = crowd.shares
        crowd.lose_worker(workers[0], signal)
        gained = crowd.shares - before
        assert len(gained) == 2, gained
        assert min(gained.values()) >= gained.total() / 4, gained


def test_a_worker_that_hangs_holds_up_nobody(
    short_leases: None, start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    workers = [start_worker(APP, "--layer", redis_url) for _ in range(2)]
    with ExitStack() as stack:
        crowd = Crowd(start_interface("--layer", redis_url), stack)
        crowd.open_until_even(2)
        before = crowd.shares
        workers[0].pause()
        crowd.open(60)  # a claim that Redis gave to the worker that hangs is taken over when its lease has ended
        assert crowd.shares - before == Counter({str(workers[1].pid): 60})
        workers[0].resume()


def test_idle_workers_take_the_requests_that_a_busy_one_cannot_begin(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    for _ in range(2):
        start_worker(APP, "--layer", redis_url)
    interface = start_interface("--layer", redis_url)
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(interface)) for _ in range(16)]

        def shares() -> Counter[str]:
            for client in clients:
                client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            return Counter(client.read_response().text for client in clients)

        wait_until(lambda: len(shares()) == 2)  # a worker knows its app after a request
        # A worker that took all that wait would answer 14 or more of them, one after another.
        for _ in range(2):
            assert min((counts := shares()).values()) >= 3, counts
