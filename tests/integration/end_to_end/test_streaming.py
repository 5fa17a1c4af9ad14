"""Bodies far larger than the memory of their servers, with a slow peer.

ASGIBUS_TEST_STREAM_MIB sets their size (1024 for the promise of the documentation; the default is for every day).
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest

from end_to_end.stream_app import MIB, Pace, block
from support.processes import Process
from support.raw import RawClient
from support.redis import RedisServer

SIZE = int(os.environ.get("ASGIBUS_TEST_STREAM_MIB", "96"))
PACE = 64  # mebibytes a second of the slow peer; the fast one does more than a hundred
MAY_GROW = 64  # mebibytes

figures = logging.getLogger("figures")  # shown by `pytest -rP --log-level=info`

pytestmark = pytest.mark.timeout(60 + SIZE)


class Memory:
    """Growth of processes during the context, in mebibytes."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._before = self._now()
        self.grown = dict.fromkeys(pids, 0.0)

    def _now(self) -> dict[str, float]:
        return {name: process.memory_info().rss / MIB for name, process in self._processes.items()}

    @contextmanager
    def watched(self) -> Iterator[None]:
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.02):
                for name, size in self._now().items():
                    self.grown[name] = max(self.grown[name], size - self._before[name])

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()


@pytest.fixture
def bus(
    start_redis: Callable[..., RedisServer],
    start_worker: Callable[..., Process],
    start_interface: Callable[..., Process],
) -> Iterator[Process]:
    """Provide an interface server whose processes may not grow during the test."""
    store = start_redis()
    worker = start_worker("end_to_end.stream_app:app", "--layer", store.url)
    interface = start_interface("--layer", store.url)
    with RawClient(interface) as client:  # modules loaded at the first request are no growth
        client.request("GET", "/download?mib=1")
        client.request("POST", "/upload", body=bytes(MIB))
    memory = Memory({"interface": interface.pid, "worker": worker.pid, "redis": store.pid})
    started = time.monotonic()
    with memory.watched():
        yield interface
    seconds = time.monotonic() - started
    growth = ", ".join(f"{name} {size:.1f}" for name, size in memory.grown.items())
    figures.info("%d MiB in %.1f s (%.0f MiB/s); grown by MiB: %s", SIZE, seconds, SIZE / seconds, growth)
    assert max(memory.grown.values()) < MAY_GROW, growth


def download(bus: Process, pace: Pace, *, app_pace: int = 0) -> None:
    digest, expected = hashlib.sha256(), hashlib.sha256()
    with RawClient(bus, receive_buffer=1 << 18) as client:
        client.send(f"GET /download?mib={SIZE}&pace={app_pace} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        client.read_head()
        remaining = SIZE * MIB
        while remaining:
            data = client.read_some()
            assert data, "the connection was closed too early"
            digest.update(data)
            remaining -= len(data)
            if (seconds := pace.wait_for(len(data))) > 0:
                time.sleep(seconds)
    for number in range(SIZE):
        expected.update(block(number))
    assert digest.digest() == expected.digest()


def upload(bus: Process, pace: Pace, *, app_pace: int = 0) -> None:
    digest = hashlib.sha256()
    with RawClient(bus, timeout=30) as client:
        head = f"POST /upload?pace={app_pace} HTTP/1.1\r\nHost: test\r\nContent-Length: {SIZE * MIB}\r\n\r\n"
        client.send(head.encode())
        for number in range(SIZE):
            digest.update(data := block(number))
            client.send(data)
            if (seconds := pace.wait_for(MIB)) > 0:
                time.sleep(seconds)
        assert client.read_response().text == digest.hexdigest()


def test_a_download_by_a_slow_client(bus: Process) -> None:
    download(bus, Pace(PACE))


def test_an_upload_to_a_slow_app(bus: Process) -> None:
    upload(bus, Pace(0), app_pace=PACE)


def test_a_download_beside_an_upload(bus: Process) -> None:
    with ThreadPoolExecutor() as threads:
        uploading = threads.submit(upload, bus, Pace(0))
        download(bus, Pace(0))
        uploading.result()
