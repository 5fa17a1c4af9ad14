"""Disconnects before a worker claims the connection, and places freed by a disconnect."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import redis

from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.websocket import RawWebSocket, handshake

APP = "end_to_end.disconnect_app:app"

Start = Callable[..., Process]


def test_an_unclaimed_connection_is_withdrawn_at_its_disconnect(
    start_interface: Start, start_worker: Start, redis_url: str, tmp_path: Path
) -> None:
    interface = start_interface("--layer", redis_url, "--connect-timeout", 30)
    env = {"NOTES": tmp_path}
    with redis.Redis.from_url(redis_url, protocol=2) as store, ExitStack() as stack:

        def waiting() -> int:
            return sum(store.xlen(key) for key in store.scan_iter("asgibus:shared:*"))

        clients = [stack.enter_context(RawClient(interface)) for _ in range(4)]
        for number, client in enumerate(clients):
            if number % 2:
                client.send(handshake(f"/listen?name=early-{number}"))
            else:
                client.send(f"GET /poll?name=early-{number} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        wait_until(lambda: waiting() == 4, what="four offers")
        # A FIN of an HTTP client may mean a complete request; the FIN of a WebSocket client is a disconnect.
        clients[0].reset()
        clients[1].close()
        wait_until(lambda: waiting() == 2, what="the withdrawal of two offers")

        start_worker(APP, "--layer", redis_url, env=env)
        wait_until((tmp_path / "early-2.sending").exists)
        wait_until((tmp_path / "early-3.sending").exists)
        for client in clients[2:]:
            client.close()
        wait_until((tmp_path / "early-2.ended").exists)
        wait_until((tmp_path / "early-3.ended").exists)
        assert not list(tmp_path.glob("early-[01]*"))
        wait_until(lambda: waiting() == 0, what="empty channels")


def test_a_disconnect_frees_its_place(
    start_interface: Start, start_worker: Start, redis_url: str, tmp_path: Path
) -> None:
    start_worker(APP, "--layer", redis_url, "--concurrency", 8, env={"NOTES": tmp_path})
    interface = start_interface("--layer", redis_url)
    for turn in range(6):
        with ExitStack() as stack:
            members = [
                stack.enter_context(RawWebSocket(interface, f"/listen?name={turn}-{number}")) for number in range(8)
            ]
            # There is no place for a ninth client until another disconnects.
            ninth = RawWebSocket(interface, f"/listen?name={turn}-ninth", answered=False)
            stack.callback(ninth.close)
            ninth.assert_silent(0.1)
            members[turn].close()
            assert ninth.read_answer() == 101
