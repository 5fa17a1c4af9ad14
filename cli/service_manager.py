"""Report progress to the service manager: the `sd_notify` protocol of systemd, over a datagram socket."""

from __future__ import annotations

import logging
import os
import socket
import time

logger = logging.getLogger("asgibus")

VARIABLE = "NOTIFY_SOCKET"
SEND_SECONDS = 1.0  # the service manager may have stopped reading, and the event loop waits meanwhile


class ServiceManager:
    """The service manager that started this process. Without an address, all calls do nothing."""

    def __init__(self, address: str = "") -> None:
        self._address = address
        self._failed = False

    @classmethod
    def inherited(cls) -> ServiceManager:
        """Return the one that the environment names, and remove the name: processes of the app do not inherit it."""
        return cls(os.environ.pop(VARIABLE, ""))

    def ready(self, status: str) -> None:
        """Report that the start-up, or a reload, is over."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def moved(self, pid: int, status: str) -> None:
        """Report that another process serves in the place of this one."""
        self._send(f"MAINPID={pid}", "READY=1", f"STATUS={_line(status)}")

    def environment(self) -> dict[str, str]:
        """Return the variables with which another process finds the same service manager."""
        return {VARIABLE: self._address} if self._address else {}

    def stopping(self) -> None:
        """Report that the process has begun to stop."""
        self._send("STOPPING=1", "STATUS=stopping")

    def reloading(self, status: str) -> None:
        """Report that a reload has begun; `ready` ends it."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={microseconds}", f"STATUS={_line(status)}")

    def status(self, status: str) -> None:
        """Report what the process does, in one line for `systemctl status`."""
        self._send(f"STATUS={_line(status)}")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        # A leading "@" names a socket in the abstract namespace, whose address begins with a null byte.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            if not address.startswith(("/", "\0")):
                raise OSError("only unix sockets are supported")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_SECONDS)
                sender.sendto("\n".join(assignments).encode(errors="replace"), address)
        except (OSError, ValueError) as error:  # the process serves all the same
            if not self._failed:
                self._failed = True
                reason = getattr(error, "strerror", None) or error
                logger.warning("the service manager at %s cannot be notified: %s", self._address, reason)


def _line(text: str) -> str:
    return " ".join(text.split())
