"""Listening sockets: a TCP port, a unix socket, or an inherited file descriptor."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from asgibus.interface_server.settings import InterfaceSettings


class ListenError(Exception):
    """The server cannot listen. The message names the address and the reason."""


def listening_socket(settings: InterfaceSettings) -> socket.socket:
    """Return a socket that is bound as the settings say.

    Raises:
        ListenError: The address cannot be used.
    """
    try:
        if settings.fd is not None:
            return socket.socket(fileno=settings.fd)
        if settings.uds is not None:
            return _unix_socket(settings.uds, int(settings.uds_mode, 8))
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(listening, (settings.host, settings.port))
    except OSError as error:
        where = settings.uds or (f"fd {settings.fd}" if settings.fd is not None else f"{settings.host}:{settings.port}")
        raise ListenError(f"cannot listen on {where}: {error.strerror or error}") from error
    return listening


def _unix_socket(path: str, mode: int) -> socket.socket:
    """Bind to a path, and replace a socket that no process serves any more.

    No client can connect before the mode is set, since the socket does not listen yet.
    """
    if Path(path).exists():
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise OSError(errno.EEXIST, "there is something else than a socket")
        if _is_served(path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        Path(path).unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _bind(listening, path)
    Path(path).chmod(mode)
    return listening


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a busy server would make this process wait
        return probe.connect_ex(path) != errno.ECONNREFUSED


def _bind(listening: socket.socket, address: tuple[str, int] | str) -> None:
    try:
        listening.bind(address)
    except BaseException:
        listening.close()
        raise


def describe(listening: socket.socket, *, tls: bool) -> str:
    """Return the address of a listening socket, as a URL or a path."""
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def host_and_port(address: object) -> tuple[str, int | None] | None:
    """Return a socket's address as a scope has it: (host, port), (path, None), or None for an unnamed unix socket."""
    if isinstance(address, tuple):
        return (address[0], address[1])
    if isinstance(address, bytes):
        address = address.decode("utf-8", "replace")
    return (address, None) if isinstance(address, str) and address else None
