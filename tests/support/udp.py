"""A peer that speaks UDP with an interface server whose app is `interface_server.udp_app`."""

import json
import re
import socket
import urllib.request
from typing import Any, Self

import pytest

from support.deadline import HANG, wait_until
from support.processes import Process


class Peer:
    """A UDP socket that is connected to the socket of a server."""

    def __init__(self, server: Process, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(HANG)
        self._socket.connect((host, port or udp_port(server, host)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    @property
    def address(self) -> list[Any]:
        return list(self._socket.getsockname()[:2])

    def send(self, data: bytes) -> None:
        self._socket.send(data)

    def receive(self) -> bytes:
        return self._socket.recv(65535)

    def ask(self, data: bytes) -> dict[str, Any]:
        self.send(data)
        answer: dict[str, Any] = json.loads(self.receive())
        return answer

    def insist(self, data: bytes) -> dict[str, Any]:
        """Ask until an answer arrives: datagrams may be lost while a worker stops."""
        self._socket.settimeout(0.2)

        def answer() -> dict[str, Any] | None:
            try:
                return self.ask(data)
            except TimeoutError:
                return None

        datagram = wait_until(answer, what="an answer")
        self._socket.settimeout(HANG)
        return datagram

    def assert_silent(self, seconds: float = 0.3) -> None:
        self._socket.settimeout(seconds)
        with pytest.raises(TimeoutError):
            self.receive()
        self._socket.settimeout(HANG)


def udp_port(server: Process, host: str = "127.0.0.1") -> int:
    shown = re.escape(f"[{host}]" if ":" in host else host)
    return int(server.wait_for(rf"listening on udp://{shown}:(\d+)")[1])


def counts(server: Process) -> dict[str, int]:
    url = server.wait_for(r"admin port on (http://\S+)")[1]
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        lines = response.read().decode()
    return {name: int(float(count)) for name, count in re.findall(r'events_total\{kind="([^"]+)"\} (\S+)', lines)}
