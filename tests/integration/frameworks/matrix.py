"""The frameworks, their features, and the servers that run their apps: asgibus on both layers, and uvicorn."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from support.processes import Process, Processes

SETUPS = ("redis", "memory", "uvicorn")
MOUNT = "/mount"
UVICORN_READY = r"Uvicorn running on (http://\S+)"
ASKED = "as asked"
"""The text of each exception that the apps raise."""

GOOD_BYE = "good-bye from shut-down"
"""The line that apps with a lifespan print at shutdown."""

EXPECTED = (
    ASKED,
    "sub-exception",  # the head of a group of those
    "418: short and stout",
    "401: members only",
    "Django can only handle ASGI/HTTP connections",
    "Exception caught after response started",
    "FileNotFoundError: ",  # of a file that the app has removed
    "No route found for path 'missing'",
)
"""Texts of the error lines that the log may contain."""

PREPARE_DATABASE = """
import django
from django.core.management import call_command

django.setup()
call_command("migrate", verbosity=0)
call_command("createsuperuser", username="admin", email="admin@example.org", interactive=False, verbosity=0)
"""

ERRORS = re.compile(r"^(?:  [|] )*((?:\w+\.)*\w*(?:Error|Exception|ExceptionGroup)\b.*)", re.MULTILINE)
WRONG = re.compile(r"was never awaited|was destroyed but it is pending|never retrieved")


@dataclass(frozen=True, kw_only=True)
class Framework:
    """An app, and its features (`has`), which select its checks."""

    name: str
    app: str
    has: frozenset[str]
    interface: str = "asgi3"
    project: str = ""
    """The package with the settings of Django."""
    failure_code: int = 1011
    """Close code of a WebSocket whose handler raises: 1011 of the server, or the code of the framework."""

    def __str__(self) -> str:
        return self.name


def _framework(name: str, *has: str, app: str = "", **fields: Any) -> Framework:
    return Framework(name=name, app=app or f"frameworks.{name}_app:app", has=frozenset(has), **fields)


_HTTP = ("sessions", "static", "background")
_ALL = (*_HTTP, "lifespan", "websocket", "private", "debug")
_STARLETTE = (*_ALL, "conditional", "ranges", "denial", "reasons", "hears")
_DJANGO = (*_HTTP, "conditional", "debug", "project", "hears", "long polling")
_PROJECTS = "frameworks.django_project", "frameworks.channels_project"

FRAMEWORKS = {
    framework.name: framework
    for framework in (
        _framework("starlette", *_STARLETTE, "long polling"),
        _framework("fastapi", *_STARLETTE),
        _framework("django", *_DJANGO, app=f"{_PROJECTS[0]}.asgi:app", project=_PROJECTS[0]),
        _framework("channels", *_DJANGO, "websocket", app=f"{_PROJECTS[1]}.asgi:app", project=_PROJECTS[1]),
        _framework("quart", *_ALL, "conditional", "ranges", "denial", "hears", failure_code=1000),
        _framework("litestar", *_ALL, "reasons", "hears", failure_code=4500),
        _framework("flask", *_HTTP, "conditional", "ranges", interface="wsgi"),
        _framework("asgi2", "background", "websocket", "reasons", interface="asgi2"),
    )
}
"""Frameworks by name. The checks show the meanings of the words in `has`."""

IN_DEPTH = ("starlette", "channels", "flask")
"""One of each kind: ASGI by itself, Django with Channels, and WSGI."""


class Sites:
    """The servers of one framework's app. Each is started at its first use."""

    def __init__(self, framework: Framework, folder: Path, redis_url: Callable[[], str]) -> None:
        self.framework = framework
        self.processes = Processes(folder)
        self._redis_url = redis_url
        self._sites: dict[tuple[str, bool], Site] = {}
        self._env: dict[str, Any] = {}
        if framework.project:
            self._prepare()

    def get(self, setup: str, *, mounted: bool = False) -> Site:
        """Return the site of a setup; `mounted`: below a root path, and in the debug mode of the framework."""
        key = setup, mounted
        if key not in self._sites:
            self._sites[key] = Site(self.framework, setup, *getattr(self, f"_{setup}")(mounted))
        return self._sites[key]

    def end(self) -> list[str]:
        """End all sites; return their faults, without the errors that the apps raise on request."""
        for site in self._sites.values():
            site.client.close()
        faults = self.processes.end()
        faults += [
            f"{site.worker.name}: its app was not shut down"
            for site in self._sites.values()
            if site.has("lifespan") and GOOD_BYE not in site.worker.log()
        ]
        for process in self.processes.all:
            if process.name.startswith("uvicorn"):
                continue
            log = process.log()
            wrong = [match[0] for match in WRONG.finditer(log)]
            wrong += [match[1] for match in ERRORS.finditer(log) if not any(text in match[1] for text in EXPECTED)]
            faults += [f"{process.name} ({' '.join(process.command)}): {line}" for line in dict.fromkeys(wrong)]
        return faults

    def run(self, *command: str, layer: str = "memory", **env: str) -> Process:
        """Run a program beside the servers, such as `python -m django migrate`."""
        env = self._env_of(layer) | env
        return self.processes.start("program", [sys.executable, *command], ready=None, env=env)

    def add_worker(self, *options: str, prefix: str = "") -> Process:
        """Start another worker of "redis"; for messages with `--channel` and the prefix of the project's layer."""
        bus = ["--layer", self._redis_url(), "--prefix", prefix or self.framework.name]
        return self.processes.start_worker(self.framework.app, *bus, *options, env=self._env_of("redis"))

    def _prepare(self) -> None:
        self._env = {
            "DATABASE": self.processes.folder / "database.sqlite3",
            "DJANGO_SETTINGS_MODULE": f"{self.framework.project}.settings",
            "DJANGO_SUPERUSER_PASSWORD": "secret",
        }
        assert self.run("-c", PREPARE_DATABASE).wait(30) == 0

    def _env_of(self, setup: str, mounted: bool = False) -> dict[str, Any]:
        env = self._env | ({"DEBUG": "1"} if mounted else {})
        if self.framework.name == "channels" and setup in {"redis", "uvicorn_redis"}:
            env |= {"CHANNELS_REDIS": self._redis_url(), "CHANNELS_PREFIX": "chat-debug" if mounted else "chat"}
        return env

    def _redis(self, mounted: bool) -> tuple[Process, Process]:
        name = self.framework.name
        bus = ["--layer", self._redis_url(), "--prefix", f"{name}-debug" if mounted else name]
        root = ["--root-path", MOUNT] if mounted else []
        interface = self.processes.start_interface(*bus, *root, ready=False)
        env = self._env_of("redis", mounted)
        worker = self.processes.start_worker(self.framework.app, *bus, env=env, allow_traceback=True)
        interface.url = interface.wait_for(r"listening on (\S+)")[1]
        return interface, worker

    def _memory(self, mounted: bool) -> tuple[Process, Process]:
        root = ["--root-path", MOUNT] if mounted else []
        env = self._env_of("memory", mounted)
        both = self.processes.start_interface(*root, app=self.framework.app, env=env, allow_traceback=True)
        return both, both

    def _uvicorn_redis(self, mounted: bool) -> tuple[Process, Process]:
        """Run the Channels project with its layer on Redis."""
        return self._uvicorn(mounted, "uvicorn_redis")

    def _uvicorn(self, mounted: bool, setup: str = "uvicorn") -> tuple[Process, Process]:
        root = ["--root-path", MOUNT] if mounted else []
        command = [sys.executable, "-m", "uvicorn", self.framework.app, "--port", "0", "--http", "httptools"]
        server = self.processes.start(
            "uvicorn",
            [*command, "--interface", self.framework.interface, "--timeout-graceful-shutdown", "2", *root],
            ready=UVICORN_READY,
            env=self._env_of(setup, mounted),
            allow_traceback=True,
        )
        server.url = server.wait_for(UVICORN_READY)[1]
        return server, server


@dataclass
class Site:
    """One app on one setup of servers, and a client of the app."""

    framework: Framework
    setup: str
    server: Process
    worker: Process
    """The process whose log has the output of the app."""

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.server.url, trust_env=False, timeout=30)

    @property
    def ours(self) -> bool:
        """Return whether the servers are those of asgibus, and not uvicorn."""
        return not self.setup.startswith("uvicorn")

    def has(self, feature: str) -> bool:
        return feature in self.framework.has

    def notes(self) -> list[str]:
        """Return the notes of the app."""
        notes: list[str] = self.client.get("/noted").json()
        return notes
