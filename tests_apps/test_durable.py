"""The conformance suite of the Durable Streams protocol, and its client, at `asgi-interface --streams`.

The server answers what reads. What writes goes to `durable_app`, which has the part of the write half that the suite
needs to test reading.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from serving import Site

from asgibus.streams import sign
from support.deadline import in_time
from support.processes import Process, Processes

pytestmark = pytest.mark.timeout(600)  # the suite takes half a minute, and more where other tests run beside it

HERE = Path(__file__).parent / "durable"
KEY = "0123456789abcdef"
LEASE = 5.0  # seconds

NOT_WRITTEN = (
    "Fork",  # streams that begin with the entries of others
    "Idempotent Producer",  # the app does not know producers, which repeat what they have sent
    "TTL",  # streams live as long as their writers, and then for --stream-kept
    "Expires-At",
)
"""Parts of the protocol that the app of this test has not: tests whose names have one of these are left out."""
NOT_WRITTEN_EITHER = ("producer-state-survives-close", "close-with-different-body-dedup")


@pytest.fixture(scope="module")
def node(node_folder: Callable[[Path], Path]) -> Path:
    """Provide a folder with the packages of this test installed."""
    return node_folder(HERE)


@pytest.fixture(scope="module")
def suite(node: Path, serve: Callable[..., Site]) -> dict[str, str]:
    """Run the suite, and provide the failure of each test by its name; empty for one that has passed."""
    options = ("--streams", "/v1/stream", "--streams-unsigned", "--streams-poll-timeout", 2)
    site = serve("durable_app:app", workers=1, interface=options)
    left_out = "|".join((*NOT_WRITTEN, *NOT_WRITTEN_EITHER))
    results = node / "results.json"
    command = ["npx", "vitest", "run", "conformance.test.mjs", "--reporter=json", f"--outputFile={results}"]
    command += ["--testTimeout=30000", "-t", f"^(?!.*(?:{left_out})).*$"]
    results.unlink(missing_ok=True)
    finished = subprocess.run(
        command, cwd=node, env={**os.environ, "STREAMS_URL": site.url}, capture_output=True, text=True, check=False
    )
    assert results.exists(), finished.stdout + finished.stderr
    found: dict[str, str] = {}
    for test in json.loads(results.read_text())["testResults"][0]["assertionResults"]:
        if test["status"] in ("passed", "failed"):
            found[test["fullName"]] = "\n".join(test["failureMessages"])
    return found


def test_the_suite_passes(suite: dict[str, str]) -> None:
    failures = {name: text for name, text in suite.items() if text}
    assert not failures, "\n\n".join(f"{name}\n{text}" for name, text in failures.items())
    assert len(suite) > 150


class Reading:
    """A process that reads a stream with the client of the protocol."""

    def __init__(self, node: Path, url: str, live: str) -> None:
        command = ["node", "read.mjs", url, live]
        self._process = subprocess.Popen(command, cwd=node, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield what the client has told: batches of items, and how the stream has ended."""
        assert self._process.stdout is not None
        return map(json.loads, self._process.stdout)


class Writing:
    """A process that writes numbers to a stream."""

    def __init__(self, redis_url: str, prefix: str, name: str, count: int) -> None:
        command = [sys.executable, "-P", HERE / "write.py", redis_url, prefix, name, str(count)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        self.wait_for(0)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.communicate()

    def wait_for(self, number: int) -> None:
        """Wait until this number is stored."""
        assert self._process.stdout is not None
        while int(self._process.stdout.readline()) < number:
            pass

    def wait(self) -> None:
        """Wait until the stream has ended."""
        self._process.communicate(timeout=30)

    def kill(self) -> None:
        self._process.kill()


@dataclass(frozen=True)
class Bus:
    """A bus of its own for a test, whose processes it may kill."""

    redis_url: str
    prefix: str
    server: Process
    worker: Process

    def sign(self, name: str) -> str:
        """Return the URL of a stream."""
        return f"{self.server.url}/streams/{sign(name, KEY)}"


@pytest.fixture
def bus(redis_url: str, tmp_path: Path) -> Iterator[Bus]:
    prefix = tmp_path.name
    options = ("--layer", redis_url, "--prefix", prefix)
    processes = Processes(tmp_path)
    try:
        worker = processes.start_worker("durable_app:app", *options, env={"PYTHONPATH": HERE.parent})
        server = processes.start_interface(*options, "--streams", "/streams", "--streams-key", KEY)
        yield Bus(redis_url, prefix, server, worker)
    finally:
        processes.end()


def numbers(told: list[dict[str, Any]]) -> list[int]:
    return [item["n"] for each in told for item in each.get("items", ())]


def end(told: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how the stream has ended."""
    [found] = [each for each in told if "items" not in each]
    return found


@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_a_client_reads_on_while_the_worker_is_killed(node: Path, bus: Bus, live: str) -> None:
    url = bus.sign("answer")
    with Writing(bus.redis_url, bus.prefix, "answer", 40) as writer, Reading(node, url, live) as reading:
        writer.wait_for(10)
        bus.worker.kill()
        told = list(reading)
    assert numbers(told) == [*range(40)]
    assert end(told) == {"closed": True}
    assert len(told) > 5  # it came bit by bit


@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_a_client_learns_that_the_writer_was_killed(node: Path, bus: Bus, live: str) -> None:
    with (
        Writing(bus.redis_url, bus.prefix, "answer", 1000) as writer,
        Reading(node, bus.sign("answer"), live) as reading,
    ):
        writer.wait_for(10)
        writer.kill()
        killed = time.monotonic()
        told = list(reading)
        in_time(time.monotonic() - killed, LEASE + 1, "learning of the end of the writer")
    found = numbers(told)
    assert found == [*range(len(found))]
    assert len(found) > 10
    assert end(told) == {"error": 424, "text": "The stream has failed: the writer is gone.\n"}


def test_a_client_reads_what_there_is(node: Path, bus: Bus) -> None:
    with Writing(bus.redis_url, bus.prefix, "answer", 5) as writer:
        writer.wait()
    with Reading(node, bus.sign("answer"), "sse") as reading:
        told = list(reading)
    assert numbers(told) == [*range(5)]
    assert end(told) == {"closed": True}


def test_a_client_without_the_signature_reads_nothing(node: Path, bus: Bus) -> None:
    url = bus.sign("answer")
    with Reading(node, url.replace("answer", "others"), "sse") as reading:
        [told] = reading
    assert told["error"] == 403
