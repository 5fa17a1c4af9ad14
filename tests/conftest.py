"""Fixtures for all tests. Their docstrings have their promises; `pytest --fixtures` lists them.

Redis is found in this order: the URL in ASGIBUS_TEST_REDIS_URL (its database is emptied, one database for each xdist
worker), a private `redis-server`, a container. Without any, the tests marked `redis` are skipped.
With ASGIBUS_REQUIRE_ALL set, a test marked `redis`, `browser`, `program` or `last_release` may not be skipped: it
fails.
"""

import compileall
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import asgibus
from asgibus.layers import settings as layer_settings
from support import chromium, forks, last_release, lease_times
from support import redis as redis_support
from support.processes import TESTS, Process, Processes
from support.redis import RedisServer

# The speed of a machine at making examples is no property of the code.
settings.register_profile("quick", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("quick"), max_examples=1000)

REQUIRED = ("redis", "browser", "program", "last_release")
UNCOVERED = {"browser", "chaos", "deployment", "differential", "end_to_end", "frameworks", "last_release"}
"""Folders whose processes are not measured by coverage, which makes a process half as slow again: the lines that they
run are run in the tests of each part, too."""
STARTS = {"test_debug_log.py", "test_env_file.py", "test_hostile_options.py", "test_log_config.py", "test_start.py"}
"""Files whose tests are about the start of a process, and so start each one as users do."""
MARKED_BY_FIXTURE = {
    "redis_url": "redis",
    "shared_redis_url": "redis",
    "start_redis": "redis",
    "browser": "browser",
    "program": "program",
    "last_release_python": "last_release",
}

_source_key = pytest.StashKey[redis_support.Source]()
_processes_key = pytest.StashKey[Processes]()


def _require_all() -> bool:
    return os.environ.get("ASGIBUS_REQUIRE_ALL", "").lower() not in {"", "0", "false"}


def _source(config: pytest.Config) -> redis_support.Source:
    if _source_key not in config.stash:
        config.stash[_source_key] = redis_support.find()
    return config.stash[_source_key]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        help="also run the tests marked `long`, and more examples of what hypothesis makes",
    )


def pytest_configure(config: pytest.Config) -> None:
    sys.dont_write_bytecode = False  # pytest caches rewritten asserts: to rewrite them is half of a collection
    settings.load_profile("long" if config.getoption("--long") else "quick")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does so in the background; children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the modules of the test processes once: with PYTHONDONTWRITEBYTECODE set, each process would do so."""
    if not hasattr(session.config, "workerinput"):
        packages = Path(asgibus.__file__).parent
        for folder in (*packages.glob("*/"), TESTS):  # through a link no folder is found from above
            compileall.compile_dir(folder, quiet=2)


def pytest_sessionfinish(session: pytest.Session) -> None:
    forks.end()


# Markers, and reports of missing requirements.


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests that need Redis or a browser by their fixtures, and leave out the long form."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKED_BY_FIXTURE:
                item.add_marker(MARKED_BY_FIXTURE[fixture])
    if not config.getoption("--long"):
        deselect(config, items, lambda item: item.get_closest_marker("long") is not None)


def deselect(config: pytest.Config, items: list[pytest.Item], unwanted: Callable[[pytest.Item], bool]) -> None:
    """Remove the unwanted items from the list, and count them as deselected."""
    left_out = [item for item in items if unwanted(item)]
    if left_out:
        items[:] = [item for item in items if not unwanted(item)]
        config.hook.pytest_deselected(items=left_out)


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"redis: {_source(config)}", f"chromium: {chromium.find() or 'none'}"]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the results of the chaos tests, and the skipped tests with their reasons."""
    figures = [
        (report.nodeid.partition("::")[2], text)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, text in report.user_properties
        if name == "figures"
    ]
    if figures:
        terminalreporter.section("figures")
    for test, text in figures:
        terminalreporter.write_line(f"{test}: {text}")
    skipped = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.section("skipped", sep="!", yellow=True, bold=True)
    for reason, count in skipped.most_common():
        terminalreporter.write_line(f"{count:5} {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test, or a file of tests, was skipped."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the processes of a failed test; where all is required, a skip is a failure."""
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and _require_all()
        and any(item.get_closest_marker(name) for name in REQUIRED)
    ):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"{item.nodeid} may not be skipped with ASGIBUS_REQUIRE_ALL set. {reason}"
    if report.failed:
        owners = [node.stash[_processes_key] for node in item.listchain() if _processes_key in node.stash]
        for process in [process for processes in owners for process in processes.all]:
            if process.blamed:  # the failure has the log already
                continue
            report.sections.append((f"log of {process!r}", process.last_lines()))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a test module that skips itself where all tests are required."""
    report = yield
    if report.skipped and _require_all():
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped itself, and ASGIBUS_REQUIRE_ALL forbids it"
    return report


# Programs beside Redis and the browser.


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Provide `program("nginx")`: the path of a program. Skip the test if there is none; mark it `program`."""

    def find(name: str) -> str:
        # Debian has servers where only root looks for them.
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if path is None:
            pytest.skip(f"no {name}")
        return path

    return find


@pytest.fixture(scope="session")
def last_release_python() -> Path:
    """Provide the Python of an environment with the last release, for `start_worker(app, python=…)` and so on.

    Skip the test where the last release is not in the history of git; mark it `last_release`.
    """
    try:
        return last_release.install()
    except last_release.Unavailable as unavailable:
        pytest.skip(str(unavailable))


# Async tests.


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


# State of the process.


@pytest.fixture(autouse=True)
def _default_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the time that layers wait for a missing store, which a command in this process may have set."""
    monkeypatch.setattr(layer_settings._Process, "wait", layer_settings.WAIT_SECONDS)


# Coverage.


@pytest.fixture(scope="module", autouse=True)
def _processes_without_coverage(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in UNCOVERED:
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
            patch.delenv("COVERAGE_PROCESS_START", raising=False)
        yield


# Redis.


@pytest.fixture(scope="session")
def _real_redis(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    source = _source(pytestconfig)
    if not source.real:
        pytest.skip(f"no Redis: {source.detail}")
    with redis_support.real_server(source, tmp_path_factory.mktemp("redis"), _xdist_number()) as url:
        yield url


@pytest.fixture
def redis_url(_real_redis: str) -> str:
    """Provide the URL of a real Redis whose database is empty and this test's own. Marks the test `redis`."""
    redis_support.empty(_real_redis)
    return _real_redis


@pytest.fixture(scope="module")
def shared_redis_url(_real_redis: str) -> str:
    """Return the URL of an emptied Redis for processes that a module shares.

    Tests of that module must not use `redis_url`.
    """
    redis_support.empty(_real_redis)
    return _real_redis


@pytest.fixture
def _own_redis_servers() -> Iterator[list[RedisServer]]:
    servers: list[RedisServer] = []
    yield servers
    for server in servers:
        server.close()


@pytest.fixture
def start_redis(_own_redis_servers: list[RedisServer], tmp_path: Path) -> Callable[..., RedisServer]:
    """Start a Redis that the test may kill, pause and start again: `start_redis(*options) -> RedisServer`.

    It needs a `redis-server` binary. Marks the test `redis`.
    """
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip("no redis-server binary")

    def start(*options: str) -> RedisServer:
        server = RedisServer(binary, tmp_path, *options)
        _own_redis_servers.append(server)
        return server

    return start


# The two commands.


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the leases of the processes that this test starts, so that it need not wait long for the end of one."""
    monkeypatch.setenv(lease_times.VARIABLE, "1")


@pytest.fixture
def processes(
    request: pytest.FixtureRequest, tmp_path: Path, _own_redis_servers: list[RedisServer]
) -> Iterator[Processes]:
    """Provide the processes of this test.

    At its end they get SIGTERM. The test fails if one ended by itself before, does not end in time or not with 0, or
    logged a traceback without `allow_traceback=True`.
    """
    processes = Processes(tmp_path, fork=request.path.name not in STARTS)
    request.node.stash[_processes_key] = processes
    yield processes
    if faults := processes.end():
        pytest.fail("\n".join(faults), pytrace=False)


@pytest.fixture(scope="module")
def shared_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Yield processes that all tests of a module share, where one process for each test would be slow.

    Each test first calls `mark`, so that it reads only the log lines that follow.
    """
    processes = Processes(tmp_path_factory.mktemp("shared"), fork=request.path.name not in STARTS)
    request.node.stash[_processes_key] = processes
    yield processes
    if faults := processes.end():
        pytest.fail("\n".join(faults), pytrace=False)


@pytest.fixture
def start_interface(processes: Processes) -> Callable[..., Process]:
    """Start an interface server: `start_interface(*args, app=None, env=None) -> Process`.

    Runs `python -m asgibus.cli.interface [app] *args` in `tmp_path`, on a free port of 127.0.0.1 by default,
    and returns when it listens (`ready=False`: at once). `app` is found in `tmp_path`, in
    `tests/integration/` or in `tests/`.
    `allow_traceback=True` if its log may hold one.
    """
    return processes.start_interface


@pytest.fixture
def start_worker(processes: Processes) -> Callable[..., Process]:
    """Start a worker: `start_worker(app, *args, env=None) -> Process`; else as `start_interface`."""
    return processes.start_worker


def _xdist_number() -> int:
    """Return the number of the xdist worker: 0 for gw0 and for a run without xdist."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
