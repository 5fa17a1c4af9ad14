"""The connection between a supervisor and one of its processes, as the process sees it.

The process reports its progress, one line each: `status <text>`, `ready <mailbox> …`, `retiring`, `failed <text and
traceback, as JSON>`. It stops gracefully when the supervisor writes `stop`, and when the connection ends: then the
supervisor is gone, and nothing else would ever end the process. With `move` the supervisor sends a socket, at whose
other end is the successor of the process.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import click

from asgibus.cli.service_manager import ServiceManager

VARIABLE = "ASGIBUS_CONTROL_FD"  # in the environment of a supervised process: its end of the connection
STATUS, READY, RETIRING, FAILED = "status", "ready", "retiring", "failed"
STOP = b"stop\n"
MOVE = b"move\n"

OnStop = Callable[[str], None]
OnMove = Callable[[socket.socket], None]


class ControlPipe:
    """The process's end of the connection.

    A process without a supervisor has no end; it reports to the service manager that started it, if there is one.
    """

    def __init__(self, end: socket.socket | None = None, manager: ServiceManager | None = None) -> None:
        self.manager = manager or ServiceManager()
        self._end = end
        self._reported: set[str] = set()
        self._lock = threading.Lock()
        self._on_stop: tuple[OnStop, float] | None = None
        self._on_move: OnMove | None = None

    @classmethod
    def inherited(cls) -> ControlPipe:
        """Return the pipe that the environment names, and wait in a thread for the request to stop.

        The name is removed from the environment, so that processes of the app do not inherit it.

        Raises:
            click.UsageError: The environment names something else.

        """
        manager = ServiceManager.inherited()
        number = os.environ.pop(VARIABLE, None)
        if number is None:
            return cls(manager=manager)
        try:
            end = socket.socket(fileno=int(number))
        except (ValueError, OSError, OverflowError):
            raise click.UsageError(
                f"{VARIABLE} is for processes of a supervisor alone: take it out of the environment"
            ) from None
        end.set_inheritable(False)
        pipe = cls(end)
        # A thread: the event loop may not run yet, or be blocked by the app.
        threading.Thread(target=pipe._wait_for_stop, args=(end,), name="control pipe", daemon=True).start()
        return pipe

    @property
    def is_supervised(self) -> bool:
        """Whether there is a supervisor."""
        return self._end is not None

    def status(self, text: str) -> None:
        """Report what the process does before it is ready, in one line for people."""
        self.manager.status(text)
        self._send(STATUS, text)

    def ready(self, *mailboxes: str) -> None:
        """Report that the process serves and reads these mailboxes."""
        self._send_once(READY, *mailboxes)

    def retiring(self) -> None:
        """Report that the process takes nothing new, so that another may take its place."""
        self._send_once(RETIRING)

    def failed(self, reason: str, trace: str = "") -> None:
        """Report the error with which the process ends, to standard error if there is no supervisor.

        Args:
            reason: One sentence.
            trace: A traceback to print before it, or nothing.

        """
        if self._end is None:
            print(trace, end="", file=sys.stderr)
            print(f"Error: {reason}", file=sys.stderr)
            self.manager.status(f"failed: {reason}")
        else:
            import json  # noqa: PLC0415  # for failures alone

            self._send_once(FAILED, json.dumps([" ".join(reason.split()), trace]))

    def on_stop(self, call: OnStop, within: float) -> None:
        """Set what stops the process gracefully. Until then a request to stop ends the process at once.

        Args:
            call: Called with the reason, from another thread.
            within: Seconds after which the process is ended all the same.

        """
        with self._lock:
            self._on_stop = call, within

    def on_move(self, call: OnMove) -> None:
        """Set what moves the process. It is called from another thread, with the connection to the successor."""
        self._on_move = call

    def _send_once(self, word: str, *rest: str) -> None:
        if word not in self._reported:
            self._reported.add(word)
            self._send(word, *rest)

    def _send(self, word: str, *rest: str) -> None:
        if self._end is None:
            return
        with suppress(OSError):  # the supervisor is gone, which the thread sees too
            self._end.sendall(" ".join((word, *rest)).encode() + b"\n")

    def _wait_for_stop(self, end: socket.socket) -> None:
        received, moves = _receive(end)
        while moves:
            for move in moves:
                if self._on_move is not None and STOP not in received:
                    self._on_move(move)
                else:
                    move.close()
            if STOP in received:
                break
            received, moves = _receive(end)
        with self._lock:
            if self._on_stop is None:
                os._exit(0)
            call, within = self._on_stop
        call("stop requested by the supervisor" if received else "the supervisor is gone")
        time.sleep(within)
        os._exit(1)


def _receive(end: socket.socket) -> tuple[bytes, list[socket.socket]]:
    """Wait for the next request of the supervisor. Return it with the sockets that came along; empty at the end."""
    try:
        received, descriptors, _, _ = socket.recv_fds(end, len(STOP), 1)
    except OSError:
        return b"", []
    moves = [socket.socket(fileno=each) for each in descriptors]
    for move in moves:
        move.set_inheritable(False)
    return received, moves
