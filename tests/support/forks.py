"""Processes that are forks of one that has imported asgibus: to import it takes most of the time of a start.

This module, run as a program, imports the modules of both commands, and then forks for each request of the tests. The
fork runs a command as `python -m` does.
"""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

IMPORTED = ("asgibus.cli.interface", "asgibus.cli.worker", "asgibus.layers.redis", "asgibus.layers.memory")
RUN = ("asgibus.cli.interface", "asgibus.cli.worker", "support.launcher")
"""The modules that a fork can run."""

MEASURED = ("COVERAGE", "COV_")
"""Beginnings of the names of variables by which coverage measures a process: it does not measure forks."""

AT_START = ("PYTHON", "LD_", "MALLOC_", "GLIBC_")
"""Beginnings of the names of variables that a process reads before its first module is imported, or nearly so."""

RUN_BY_PATH = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
"""Runs this module where `support` cannot be imported, as for the apps of other packages."""

REQUEST_BYTES = 1024 * 1024
LOOK_SECONDS = 0.05  # for which one thread waits for reports: others may wait, too


_server: "ForkServer | None" = None


def server_of(command: Sequence[str], env: Mapping[str, str], usual: Mapping[str, str]) -> "ForkServer | None":
    """Return the server of these tests if it can run a command; otherwise None.

    Args:
        command: The command.
        env: Its environment.
        usual: The environment of most commands.
    """
    global _server  # noqa: PLW0603  # as long as the tests run
    if [*command[:2]] != [sys.executable, "-m"] or command[2] not in RUN or not hasattr(os, "pidfd_open"):
        return None
    if any(name.startswith(MEASURED) for name in env):
        return None
    if _server is None:
        _server = ForkServer(usual)
    return _server if _server.env == _at_start(env) else None


def end() -> None:
    """End the server, if there is one."""
    global _server  # noqa: PLW0603
    if _server is not None:
        _server.close()
        _server = None


class Fork:
    """A process that is a fork: what the tests use of `subprocess.Popen`."""

    def __init__(self, server: "ForkServer", pid: int) -> None:
        self._server = server
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self._server.read_ends(0.0)
            self.returncode = self._server.ends.get(self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self._server.read_ends(left)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks, as the tests see it. It ends with the process of the tests."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.ends: dict[int, int] = {}
        self.env = _at_start(env)
        """The variables that must be the same for a fork."""
        self._lock = threading.Lock()
        self._started: list[int] = []
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", RUN_BY_PATH, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=dict(env),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        """End the process. Its forks, if there are any, go on."""
        self._socket.close()
        self._process.wait()

    def start(self, command: Sequence[str], folder: Path, env: Mapping[str, str], log: IO[bytes]) -> Fork:
        request = json.dumps({"command": [*command], "folder": str(folder), "env": dict(env)}).encode()
        with self._lock:
            socket.send_fds(self._socket, [request], [log.fileno()])
            while not self._started:
                self._read(LOOK_SECONDS)
            return Fork(self, self._started.pop())

    def read_ends(self, seconds: float) -> None:
        """Read the reports of ends, and wait for one at most that long, or for a moment."""
        with self._lock:
            self._read(min(seconds, LOOK_SECONDS))

    def _read(self, seconds: float) -> None:
        while select.select([self._socket], [], [], seconds)[0]:
            data = self._socket.recv(1000)
            assert data, "the process that forks has ended"
            kind, pid, code = json.loads(data)
            if kind == "started":
                self._started.append(pid)
            else:
                self.ends[pid] = code
            seconds = 0.0


def _at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(AT_START)}


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request, and report ends. Return the request in a fork, and None at the end of the requests."""
    running: dict[int, int] = {}  # pids by the descriptors that become readable when they end
    while True:
        readable, _, _ = select.select([requests, *running], [], [])
        for descriptor in readable:
            if descriptor is requests:
                data, logs, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 1)
                if not data:
                    return None
                request: dict[str, Any] = json.loads(data)
                pid = os.fork()
                if pid == 0:
                    requests.close()
                    for each in running:
                        os.close(each)
                    os.setsid()
                    os.dup2(logs[0], 1)
                    os.dup2(logs[0], 2)
                    os.close(logs[0])
                    return request
                os.close(logs[0])
                running[os.pidfd_open(pid)] = pid
                _report(requests, "started", pid, 0)
            else:
                pid = running.pop(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                _report(requests, "ended", pid, os.waitstatus_to_exitcode(status))


def _report(requests: socket.socket, kind: str, pid: int, code: int) -> None:
    with suppress(OSError):  # the tests have ended
        requests.send(json.dumps((kind, pid, code)).encode())


def run(request: Mapping[str, Any]) -> None:
    """Run the command of a request, as `python -m` does in that folder."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[0] = request["folder"]
    sys.orig_argv[:] = request["command"]
    sys.argv[:] = request["command"][2:]
    module = sys.argv[0]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in IMPORTED:
        __import__(name)
    for name in RUN:
        sys.modules.pop(name, None)
    with socket.socket(fileno=int(sys.argv[1])) as accepted:
        fork = serve(accepted)
    if fork is not None:
        run(fork)
