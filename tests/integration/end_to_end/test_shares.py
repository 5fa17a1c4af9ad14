"""What each worker gets of connections that come at once, as the clients see it."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from support.processes import Process
from support.raw import RawClient

APP = "end_to_end.shares_app:app"

Start = Callable[..., Process]


def test_idle_workers_take_the_requests_that_a_busy_one_cannot_begin(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    for _ in range(2):
        start_worker(APP, "--layer", redis_url)
    interface = start_interface("--layer", redis_url)
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(interface)) for _ in range(16)]
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        shares = Counter(client.read_response().text for client in clients)
    # A worker that took all that wait would answer 14 or more of them, one after another.
    assert len(shares) == 2, shares
    assert min(shares.values()) >= 5, shares
