"""The line between a supervisor and one of its processes, seen from the process.

The process writes how far it has come, one line each: `doing <what>`, `ready <mailbox> …`, `retiring`, `failed <text
and traceback, as JSON>`. It ends gracefully when the supervisor writes anything, and also when the line breaks: then
the supervisor is gone, however it ended, and nobody would ever end what it has left behind.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import click

from asgibus.cli.notify import ServiceManager
from asgibus.cli.options import CONTROL_VARIABLE

DOING, READY, RETIRING, FAILED = "doing", "ready", "retiring", "failed"
STOP = b"stop\n"

OnStop = Callable[[str], None]


class Lifeline:
    """One end of the line; without an end, of a process that nobody supervises, it tells nobody.

    `manager`: the service manager that started this process, if no supervisor did.
    """

    def __init__(self, end: socket.socket | None = None, manager: ServiceManager | None = None) -> None:
        self.manager = manager or ServiceManager()
        self._end = end
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._on_stop: tuple[OnStop, float] | None = None
        if end is not None:
            # A thread, as the event loop may not run yet, or be kept by an app that blocks it.
            threading.Thread(target=self._wait, args=(end,), name="lifeline", daemon=True).start()

    @classmethod
    def inherited(cls) -> Lifeline:
        """The line that the environment names, taken out of it: what the app starts is not on it.

        Raises click.UsageError for a name that no supervisor has given.
        """
        manager = ServiceManager.inherited()
        number = os.environ.pop(CONTROL_VARIABLE, None)
        if number is None:
            return cls(manager=manager)
        try:
            end = socket.socket(fileno=int(number))
        except (ValueError, OSError, OverflowError):
            raise click.UsageError(
                f"{CONTROL_VARIABLE} is for processes of a supervisor alone: take it out of the environment"
            ) from None
        end.set_inheritable(False)
        return cls(end)

    @property
    def held(self) -> bool:
        """Whether there is a supervisor."""
        return self._end is not None

    def doing(self, what: str) -> None:
        """Say what the process does before it is ready, in one line for people to read."""
        self.manager.status(what)
        self._send(DOING, what)

    def ready(self, *mailboxes: str) -> None:
        """The process serves, and reads these mailboxes."""
        self._tell(READY, *mailboxes)

    def retiring(self) -> None:
        """The process takes nothing new: another may take its place now."""
        self._tell(RETIRING)

    def failed(self, why: str, trace: str = "") -> None:
        """The process ends with an error, which the supervisor tells; without one it goes to standard error.

        `trace` is written there before.
        """
        if self._end is None:
            print(trace, end="", file=sys.stderr)
            print(f"Error: {why}", file=sys.stderr)
            self.manager.status(f"failed: {why}")
        else:
            self._tell(FAILED, json.dumps([" ".join(why.split()), trace]))

    def on_stop(self, call: OnStop, within: float) -> None:
        """Call `call(reason)`, from another thread, when the process has to stop; it is ended hard `within` seconds.

        Until this is called there is nothing that could stop gracefully, and the process would be ended at once.
        """
        with self._lock:
            self._on_stop = call, within

    def _tell(self, word: str, *rest: str) -> None:
        if word not in self._told:
            self._told.add(word)
            self._send(word, *rest)

    def _send(self, word: str, *rest: str) -> None:
        if self._end is None:
            return
        with suppress(OSError):  # the supervisor is gone, which the thread sees too
            self._end.sendall(" ".join((word, *rest)).encode() + b"\n")

    def _wait(self, end: socket.socket) -> None:
        try:
            said = end.recv(len(STOP))
        except OSError:
            said = b""
        with self._lock:
            if self._on_stop is None:
                os._exit(0)
            call, within = self._on_stop
        call("Told by the supervisor" if said else "The supervisor is gone")
        time.sleep(within)
        os._exit(1)
