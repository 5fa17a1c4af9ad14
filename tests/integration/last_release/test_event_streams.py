"""Event streams between today's servers and those of the last release: one response, with every event once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from end_to_end.test_event_streams import APP, Reader
from support.processes import Process
from support.raw import RawClient


@pytest.mark.parametrize("old", ["interface", "neither"])
def test_an_event_stream_moves_to_the_last_release_and_back(
    start_interface: Callable[..., Process],
    start_worker: Callable[..., Process],
    redis_url: str,
    last_release_python: Path,
    old: str,
) -> None:
    bus = ("--layer", redis_url)
    worker = start_worker(APP, *bus, "--resume")
    interface = start_interface(*bus, python=last_release_python if old == "interface" else None)
    with RawClient(interface) as client:
        reader = Reader(client)
        reader.read_from(worker)
        for python in (last_release_python, None):
            before, worker = worker, start_worker(APP, *bus, "--resume", python=python)
            before.terminate()
            reader.read_from(worker)
        numbers = [number for _, number in reader.events]
        assert numbers == list(range(1, len(numbers) + 1))
    assert " ERROR " not in interface.log()
