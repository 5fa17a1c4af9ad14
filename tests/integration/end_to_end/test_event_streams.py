"""Event streams while their workers are stopped and killed: one response, with every event once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.admin import counts
from support.certificates import Authority
from support.event_source import interpret
from support.processes import Process
from support.raw import RawClient

APP = "end_to_end.events_app:app"


class Reader:
    """A client of an event stream."""

    def __init__(self, client: RawClient, path: str = "/numbers") -> None:
        self._client = client
        client.send(f"GET {path} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n".encode())
        assert client.read_head()[1] == 200
        self.body = b""

    @property
    def events(self) -> list[tuple[int, int]]:
        """Return the pid of the worker and the number of each event."""
        events = (event.data.split("\n") for event in interpret(self.body).events)
        return [(int(pid), int(number)) for pid, number in events]

    def read_until(self, condition: Callable[[list[tuple[int, int]]], bool]) -> None:
        while not condition(self.events):
            part = self._client.read_chunk()
            assert part, "the response has ended"
            self.body += part

    def read_to_the_end(self) -> None:
        while part := self._client.read_chunk():
            self.body += part
        self._client.read_until(b"\r\n")

    def read_from(self, worker: Process) -> None:
        """Read until that worker has sent some events."""
        self.read_until(lambda events: [pid for pid, _ in events].count(worker.pid) >= 5)


def test_one_response_over_a_stop_and_a_crash(
    start_interface: Callable[..., Process],
    start_worker: Callable[..., Process],
    redis_url: str,
    tmp_path: Path,
    short_leases: None,
) -> None:
    authority = Authority(tmp_path)
    bus = ("--layer", redis_url)
    first = start_worker(APP, *bus, "--resume")
    plain = start_interface(*bus, "--admin-port", 0)
    secure = start_interface(*bus, "--ssl-certfile", authority.issue("server.pem"))
    with RawClient(plain) as client, RawClient(secure, tls=authority.client()) as tls_client:
        readers = [Reader(client), Reader(tls_client)]
        for reader in readers:
            reader.read_from(first)
        first.terminate()
        second = start_worker(APP, *bus, "--resume")
        for reader in readers:
            reader.read_from(second)
        second.kill()
        third = start_worker(APP, *bus, "--resume")
        for reader in readers:
            reader.read_from(third)
            numbers = [number for _, number in reader.events]
            assert numbers == list(range(1, len(numbers) + 1)), "every event once, in order"
            assert {pid for pid, _ in reader.events} == {first.pid, second.pid, third.pid}
        assert first.wait() == 0
        assert counts(plain)["handed over"] == 1
        assert counts(plain)["killed"] == 1
        assert "event stream ended" not in counts(plain)


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_a_stream_without_ids_has_a_proper_end(
    start_interface: Callable[..., Process],
    start_worker: Callable[..., Process],
    redis_url: str,
    how: str,
    short_leases: None,
) -> None:
    bus = ("--layer", redis_url)
    worker = start_worker(APP, *bus, "--resume")
    interface = start_interface(*bus)
    with RawClient(interface) as client:
        reader = Reader(client, "/plain")
        reader.read_from(worker)
        worker.terminate() if how == "stop" else worker.kill()
        reader.read_to_the_end()
        numbers = [number for _, number in reader.events]
        assert numbers == list(range(1, len(numbers) + 1))
        assert 1500 <= (interpret(reader.body).retry or 0) <= 4500
        start_worker(APP, *bus)
        Reader(client, "/plain").read_until(bool)  # on the same socket
    assert "an event stream was ended, so that its client connects again: its events have no id" in interface.log()


def test_a_stop_without_resume_ends_the_stream(
    start_interface: Callable[..., Process], start_worker: Callable[..., Process], redis_url: str
) -> None:
    bus = ("--layer", redis_url)
    worker = start_worker(APP, *bus)
    with RawClient(start_interface(*bus)) as client:
        reader = Reader(client)
        reader.read_from(worker)
        worker.terminate()
        reader.read_to_the_end()
        assert [number for _, number in reader.events] == list(range(1, len(reader.events) + 1))
        assert reader.body.endswith(b"\n")
        assert b"retry: " in reader.body[-20:]


def test_an_interface_server_that_stops_ends_its_streams(
    start_interface: Callable[..., Process], start_worker: Callable[..., Process], redis_url: str
) -> None:
    bus = ("--layer", redis_url)
    worker = start_worker(APP, *bus, "--resume")
    interface = start_interface(*bus, "--drain-period", 0.2)
    with RawClient(interface) as client, RawClient(interface) as other:
        readers = [Reader(client), Reader(other, "/plain")]
        for reader in readers:
            reader.read_from(worker)
        interface.terminate()
        for reader in readers:
            reader.read_to_the_end()
            assert [number for _, number in reader.events] == list(range(1, len(reader.events) + 1))
            assert interpret(reader.body).retry
    assert interface.wait() == 0
