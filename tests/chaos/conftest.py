"""Fixtures of the chaos tests: the app's notes, workers of it, and figures that the summary shows."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.notes import Notes
from chaos.scale import DRAIN_PERIOD, LONG
from support import deadline, lease_times, namespaces
from support.namespaces import Namespace
from support.processes import Process, Processes
from support.sentinel import SentinelSet

APP = "chaos.chaos_app:app"
GRACEFUL_TIMEOUT = DRAIN_PERIOD + 3
HERE = Path(__file__).parent
FAR_PORT = 6379
TIMEOUT = 900 if LONG else 120
"""Seconds for one test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.timeout(TIMEOUT))
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun="TooLate"))


@pytest.fixture(autouse=True)
def _no_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "TOLERANCE", 1.0)


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the leases of the servers, in the quick form; for tests that wait for the end of a lease.

    In other tests a short lease could end without a fault on a busy machine.
    """
    if not LONG:
        monkeypatch.setenv(lease_times.VARIABLE, "1")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """Record a line of results, which is shown at the end of the run whether the test passes or fails."""
    return lambda text: request.node.user_properties.append(("figures", str(text)))


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    """Provide the notes of the app of `start_chaos_worker`."""
    return Notes(tmp_path)


@pytest.fixture
def start_chaos_worker(start_worker: Callable[..., Process], redis_url: str, notes: Notes) -> Callable[..., Process]:
    """Start a worker of the chaos app: `start_chaos_worker(*args, layer=redis_url) -> Process`."""

    def start(*args: object, layer: str = redis_url, **options: Any) -> Process:
        # With several of an option the last one counts.
        return start_worker(
            APP,
            "--layer",
            layer,
            "--drain-period",
            DRAIN_PERIOD,
            "--graceful-timeout",
            GRACEFUL_TIMEOUT,
            *args,
            env={"ASGIBUS_RESUME_RATE": "0"} | notes.env,  # the tests of the pace set their own
            **options,
        )

    return start


@pytest.fixture
def start_chaos_interface(start_interface: Callable[..., Process], redis_url: str) -> Callable[..., Process]:
    """Start an interface server: `start_chaos_interface(*args, layer=redis_url) -> Process`."""

    def start(*args: object, layer: str = redis_url, **options: Any) -> Process:
        return start_interface("--layer", layer, "--no-access-log", *args, **options)

    return start


@pytest.fixture
def binary() -> str:
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip("no redis-server binary")
    return binary


@pytest.fixture
def sentinels(binary: str, tmp_path: Path) -> Iterator[SentinelSet]:
    """Provide a master, its replica and sentinels. Name it before `processes`, which then end before the servers."""
    with SentinelSet(binary, tmp_path) as servers:
        yield servers


@pytest.fixture
def far(binary: str, tmp_path: Path) -> Iterator[Namespace]:
    """Provide a namespace in which Redis runs, at `far_url`."""
    if reason := namespaces.why_not():
        pytest.skip(reason)
    with Namespace() as namespace:
        inside = Processes(tmp_path)
        options = ("--bind", namespace.address, "--port", str(FAR_PORT), "--protected-mode", "no", "--save", "")
        inside.start("redis", namespace.command(binary, *options), ready="Ready to accept connections")
        try:
            yield namespace
        finally:
            faults = inside.end()
        assert not faults, faults


@pytest.fixture
def far_url(far: Namespace) -> str:
    return f"redis://{far.address}:{FAR_PORT}"
