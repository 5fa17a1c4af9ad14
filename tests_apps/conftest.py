"""Fixtures that serve apps of other packages on the bus or on uvicorn, and check the logs of the servers at the end.

The tests use the clients that belong to the apps. Helpers that `tests/` has as well are in `tests/support/`.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import Site

from support import chromium
from support import redis as redis_support
from support.processes import Processes

HERE = Path(__file__).parent
UVICORN_READY = r"Uvicorn running on (http://\S+)"
COMPLAINTS = re.compile(
    r"^.*(?:\b(?:WARNING|ERROR|CRITICAL)\b|Traceback|\w+Warning: |was never awaited|never retrieved).*", re.MULTILINE
)
"""The lines of a log that an app which works gives no reason for."""

BROWSER_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")

_processes_key = pytest.StashKey[Processes]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--on", choices=("asgibus", "uvicorn"), default="asgibus", help="which server runs the apps")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the servers of a failed test; with CI set, a skip is a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome = "failed"
    if report.failed:
        for node in item.listchain():
            for process in node.stash[_processes_key].all if _processes_key in node.stash else ():
                report.sections.append((f"log of {process!r}", process.log()[-20_000:]))
    return report


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    source = redis_support.find()
    if not source.real:
        pytest.skip(f"no real Redis: {source}")
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    with redis_support.real_server(source, tmp_path_factory.mktemp("redis"), number) as url:
        yield url


@pytest.fixture(scope="module")
def redis_url(_redis_url: str) -> str:
    """Provide the URL of a Redis that is empty when the tests of a module begin."""
    redis_support.empty(_redis_url)
    return _redis_url


@pytest.fixture(scope="module")
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Hold the servers of a module.

    After the module they get SIGTERM. The last test fails if one stops with an error or has logged a warning.
    """
    processes = Processes(tmp_path_factory.mktemp("servers"))
    request.node.stash[_processes_key] = processes
    yield processes
    faults = processes.end()
    faults += [
        f"{process.name} complains: {line}"
        for process in processes.all
        for line in dict.fromkeys(COMPLAINTS.findall(process.log()))
    ]
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def serve(processes: Processes, redis_url: str, pytestconfig: pytest.Config) -> Callable[..., Site]:
    """Serve an app of this folder: `serve(app, *options, workers=2, affinity=(), interface=(), env=None) -> Site`.

    On the bus, `workers` workers run the app, with `options`. `affinity` holds the keys of the interface server, and
    `interface` its other options. The app finds the Redis of the bus in REDIS_URL.
    """
    prefixes = (f"site-{number}" for number in itertools.count())

    def start(
        app: str,
        *options: object,
        workers: int = 2,
        affinity: tuple[str, ...] = (),
        interface: tuple[object, ...] = (),
        env: dict[str, Any] | None = None,
    ) -> Site:
        variables = {"PYTHONPATH": HERE, "REDIS_URL": redis_url, **(env or {})}
        if pytestconfig.getoption("--on") == "uvicorn":
            command = [sys.executable, "-m", "uvicorn", app, "--port", "0", "--timeout-graceful-shutdown", "3"]
            server = processes.start("uvicorn", command, ready=UVICORN_READY, env=variables)
            server.url = server.wait_for(UVICORN_READY)[1]
            return Site(server, [server])
        bus = ("--layer", redis_url, "--prefix", next(prefixes))
        running = [
            processes.start_worker(app, *bus, *options, env=variables, ready=False, allow_traceback=True)
            for _ in range(workers)
        ]
        keys = (each for key in affinity for each in ("--affinity", key))
        server = processes.start_interface(*bus, *interface, *keys)
        for worker in running:
            worker.wait_for("worker ready: ")
        return Site(server, running)

    return start


@pytest.fixture(scope="session")
def node_folder() -> Callable[[Path], Path]:
    """Provide a copy of a folder of programs for Node, with the packages of its package.json: `node_folder(folder)`."""

    def installed_folder(source: Path) -> Path:
        if shutil.which("npm") is None:
            pytest.skip("no npm")
        folder = Path(sys.prefix) / source.name
        wanted = (source / "package.json").read_text()
        installed = folder / "installed.json"
        if not installed.exists() or installed.read_text() != wanted:
            folder.mkdir(exist_ok=True)
            (folder / "package.json").write_text(wanted)
            command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(command, cwd=folder, check=True)
            installed.write_text(wanted)
        for path in source.glob("*.mjs"):
            shutil.copy(path, folder)
        return folder

    return installed_folder


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    """Provide an HTTP client of the module's `site`."""
    with httpx.Client(base_url=site.url, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the machine's Chromium, without a window.

    Its scope is the module: as long as playwright's sync API is open, no async test can run in this thread. So a module
    has its tests of a browser behind the async ones.
    """
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium")
    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(BROWSER_OPTIONS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Provide a page of its own for this test."""
    page = browser.new_page()
    yield page
    page.close()
