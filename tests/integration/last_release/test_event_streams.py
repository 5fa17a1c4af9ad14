"""Event streams between today's servers and those of the last release, which end them when a worker stops."""

from collections.abc import Callable
from pathlib import Path

from end_to_end.test_event_streams import APP, Reader
from support.processes import Process
from support.raw import RawClient


def test_a_worker_of_the_last_release_continues_an_event_stream(
    start_interface: Callable[..., Process],
    start_worker: Callable[..., Process],
    redis_url: str,
    last_release_python: Path,
) -> None:
    bus = ("--layer", redis_url)
    today = start_worker(APP, *bus, "--resume")
    with RawClient(start_interface(*bus)) as client:
        reader = Reader(client)
        reader.read_from(today)
        last = start_worker(APP, *bus, "--resume", python=last_release_python)
        today.terminate()
        reader.read_from(last)
        last.terminate()
        reader.read_to_the_end()
        numbers = [number for _, number in reader.events]
        assert numbers == list(range(1, len(numbers) + 1)), "every event once, in order"


def test_an_interface_server_of_the_last_release_ends_an_event_stream(
    start_interface: Callable[..., Process],
    start_worker: Callable[..., Process],
    redis_url: str,
    last_release_python: Path,
) -> None:
    bus = ("--layer", redis_url)
    worker = start_worker(APP, *bus, "--resume")
    interface = start_interface(*bus, python=last_release_python)
    with RawClient(interface) as client:
        reader = Reader(client)
        reader.read_from(worker)
        worker.terminate()
        reader.read_to_the_end()
        assert [number for _, number in reader.events] == list(range(1, len(reader.events) + 1))
    assert " ERROR " not in interface.log()
