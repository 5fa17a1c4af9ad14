"""Real processes of the two commands (and any other), with their log at hand and an end that is checked."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import psutil

from support import forks, lease_times
from support.deadline import HANG, STEP, TooLate, bound

TESTS = Path(__file__).resolve().parent.parent
APPS = TESTS / "integration"
"""Where the apps of the integration tests are found, such as `interface_server.http_app`."""

END_TIMEOUT = 20.0
"""Seconds a process may take to end after SIGTERM. Above the graceful timeout that the tests set."""

GRACEFUL_TIMEOUT = 2
"""Seconds that the commands give to work in flight when a test, or its teardown, ends them."""

TROUBLE = re.compile(r"Traceback \(most recent call last\)|was never awaited|was destroyed but it is pending")
"""Log lines that fail a test that has not announced them."""

ACCESS = re.compile(r'INFO .* - "\S+ .*" \d{3}$')
"""A line of the access log."""

SHOWN_LINES = 60
"""Lines of a process's log that a failure shows, each of SHOWN_CHARACTERS at most."""

SHOWN_CHARACTERS = 500

LISTENING = re.compile(r"listening on (?:(?P<url>https?://\S+)|unix:(?P<uds>\S+))")
WORKER_READY = re.compile(r"worker ready: ")


class Process:
    """One process in the background; its stdout and stderr go to one log file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        env: Mapping[str, str],
        allow_traceback: bool,
        fork: bool = False,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log_path = folder / f"{name}.log"
        self.allow_traceback = allow_traceback
        self.url = ""
        self.uds = ""
        self.blamed = False  # a test failed because of this process, so its end need not be reported
        self._expected_to_end = False
        self._asked_to_end = False
        self._mark = 0
        server = forks.server_of(self.command, env, environment()) if fork else None
        self._popen: forks.Fork | subprocess.Popen[bytes]
        with self.log_path.open("wb") as log:
            if server is not None:
                self._popen = server.start(self.command, folder, env, log)
                return
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=dict(env),
                start_new_session=True,
            )

    def __repr__(self) -> str:
        return f"<{self.name} pid={self.pid} returncode={self._popen.poll()}>"

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def ws_url(self) -> str:
        """Return the URL with `ws` for `http`, without a slash at the end."""
        return re.sub(r"^http", "ws", self.url)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def children(self) -> list[int]:
        """Return the running children of the process."""
        pids = []
        for child in psutil.Process(self.pid).children():
            with suppress(psutil.NoSuchProcess):  # the child has ended meanwhile
                if child.status() != psutil.STATUS_ZOMBIE:
                    pids.append(child.pid)
        return pids

    @property
    def returncode(self) -> int | None:
        """Return the exit code: None while the process runs, negative for a signal. Marks its end as expected."""
        self._expected_to_end = True
        return self._popen.poll()

    def log(self) -> str:
        """Return the output so far, since `mark` if that was called."""
        return self.whole_log()[self._mark :]

    def whole_log(self) -> str:
        """Return the output since the start."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def last_lines(self) -> str:
        """Return the end of the log without the access log, and say how much is left out."""
        lines = self.log().splitlines()
        telling = [line[:SHOWN_CHARACTERS] for line in lines if not ACCESS.search(line)]
        shown = telling[-SHOWN_LINES:]
        counts = f"{len(telling) - len(shown)} earlier lines and {len(lines) - len(telling)} of the access log"
        left_out = [f"({counts} are left out: {self.log_path})"] if len(shown) < len(lines) else []
        return "\n".join([*left_out, *shown])

    def mark(self) -> None:
        """Skip the log so far: a test begins that shares the process with earlier tests."""
        self._mark = len(self.whole_log())

    def wait_for(self, pattern: str | re.Pattern[str], timeout: float = HANG) -> re.Match[str]:
        """Return the first match in the log, as soon as it is there.

        Fails with AssertionError after `timeout` seconds, or when the process ends without a match.
        """

        deadline = time.monotonic() + timeout
        while True:
            # Check before reading the log, so that the last lines of a process that just ended are not missed.
            ended = not self.running
            if match := re.search(pattern, self.log()):
                return match
            if ended:
                self._fail(f"ended with code {self._popen.returncode} before it wrote {_text(pattern)}")
            if time.monotonic() > deadline:
                self._fail(f"did not write {_text(pattern)} within {timeout} s")
            time.sleep(STEP)

    def send_signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def terminate(self) -> None:
        """Send SIGTERM without waiting."""
        self._expected_to_end = self._asked_to_end = True
        self._popen.terminate()

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl+C does, without waiting."""
        self._expected_to_end = self._asked_to_end = True
        self._popen.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self._expected_to_end = True
        self._popen.kill()
        self._popen.wait(END_TIMEOUT)

    def pause(self) -> None:
        """Send SIGSTOP, which pauses the process at any point."""
        self._popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Fails with TooLate after `timeout` seconds, for promised times. Without `timeout`, fails with AssertionError
        after END_TIMEOUT seconds.
        """
        self._expected_to_end = True
        try:
            return self._popen.wait(END_TIMEOUT if timeout is None else bound(timeout))
        except subprocess.TimeoutExpired:
            if timeout is None:
                self._fail(f"did not end within {END_TIMEOUT} s")
            self._fail(f"did not end within {timeout} s", TooLate)

    def _fail(self, what: str, kind: type[AssertionError] = AssertionError) -> NoReturn:
        self.blamed = True
        raise kind(f"{self.name} {what}. Its log:\n{self.last_lines()}") from None


class Processes:
    """All processes of one test or one module. `end` ends them and reports their faults.

    The commands are forks of one process where that is possible: see `support.forks`. Tests of a start use none: see
    STARTS in tests/conftest.py.
    """

    def __init__(self, folder: Path, *, fork: bool = True) -> None:
        self.folder = folder
        self._fork = fork
        self.all: list[Process] = []

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        ready: str | re.Pattern[str] | None,
        env: Mapping[str, Any] | None = None,
        allow_traceback: bool = False,
    ) -> Process:
        """Start it and wait until its log matches `ready` (None: do not wait)."""
        count = sum(1 for process in self.all if process.name.rpartition("-")[0] == name)
        process = Process(
            f"{name}-{count + 1}",
            command,
            folder=self.folder,
            env=environment(env or {}),
            allow_traceback=allow_traceback,
            fork=self._fork,
        )
        self.all.append(process)
        if ready is not None:
            process.wait_for(ready)
        return process

    def start_interface(
        self,
        *args: object,
        app: str | None = None,
        env: Mapping[str, Any] | None = None,
        ready: bool = True,
        allow_traceback: bool = False,
        python: Path | None = None,
    ) -> Process:
        """`python`: that of another environment, such as the one of the last release."""
        options = [str(arg) for arg in args]
        if not any(option.partition("=")[0] in {"--port", "--uds", "--fd"} for option in options):
            options = ["--host", "127.0.0.1", "--port", "0", *options]
        command = [*_python("asgibus.cli.interface", python), *([app] if app else []), *options]
        process = self.start(
            "interface", command, ready=LISTENING if ready else None, env=env, allow_traceback=allow_traceback
        )
        if ready:
            match = process.wait_for(LISTENING)
            process.url, process.uds = match["url"] or "", match["uds"] or ""
        return process

    def start_worker(
        self,
        app: str,
        *args: object,
        env: Mapping[str, Any] | None = None,
        ready: bool = True,
        allow_traceback: bool = False,
        python: Path | None = None,
    ) -> Process:
        command = [*_python("asgibus.cli.worker", python), app, *(str(arg) for arg in args)]
        return self.start(
            "worker", command, ready=WORKER_READY if ready else None, env=env, allow_traceback=allow_traceback
        )

    def end(self) -> list[str]:
        """End the running processes, and return a line for each fault."""
        faults = [
            f"{process.name} ended by itself with code {process._popen.returncode}"
            for process in self.all
            if not process.running and not process._expected_to_end and not process.blamed
        ]
        remaining = [process for process in self.all if process.running]
        for process in remaining:
            process.resume()
            if not process._asked_to_end:  # a second signal would stop it at once, with work in flight
                process.terminate()
        for process in remaining:
            try:
                code = process._popen.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                faults.append(f"{process.name} did not end within {END_TIMEOUT} s of SIGTERM and was killed")
            else:
                # A second SIGTERM, or one during start-up, may find the default action.
                if code not in {0, -signal.SIGTERM}:
                    faults.append(f"{process.name} ended with code {code} after SIGTERM")
        for process in self.all:
            if process.allow_traceback or process.blamed:
                continue
            if trouble := TROUBLE.search(process.whole_log()):
                excerpt = process.whole_log()[max(0, trouble.start() - 300) :][:4000]
                faults.append(f"{process.name} logged trouble that the test did not announce:\n{excerpt}")
        return faults


def _python(module: str, python: Path | None) -> list[str]:
    """Return the command that runs a module, with shorter leases if the test has asked for them.

    Another release has the leases of the product, because what shortens them knows the code of today.
    """
    if python is not None:
        return [str(python), "-m", module]
    launcher = ["support.launcher"] if os.environ.get(lease_times.VARIABLE) else []
    return [sys.executable, "-m", *launcher, module]


def _text(pattern: str | re.Pattern[str]) -> str:
    return repr(pattern if isinstance(pattern, str) else pattern.pattern)


def environment(extra: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str]:
    """Return the environment of a process: ours without the user's ASGIBUS_ settings, with the apps of the tests on the
    path."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("ASGIBUS_")}
    env["PYTHONUNBUFFERED"] = "1"
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), str(APPS), env.get("PYTHONPATH")]))
    env["ASGIBUS_GRACEFUL_TIMEOUT"] = str(GRACEFUL_TIMEOUT)
    env.update({name: str(value) for name, value in extra.items()})
    return env
