"""The PROXY protocol, versions 1 and 2: a proxy first sends the addresses of the client that it forwards. No IO."""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import NamedTuple

from asgibus.protocol.connect_request import Address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"  # the first bytes of version 2, which begin no request of any protocol
MAX_LINE = 107  # bytes of the longest header of version 1, its CRLF included

_WORD = b"PROXY "
_HEAD = struct.Struct("!12sBBH")  # signature, version and command, family and transport, bytes that follow
_PORT = re.compile(r"(?:0|[1-9][0-9]{0,4})\Z", re.ASCII)
_LOCAL, _PROXY = 0, 1
_UNSPECIFIED, _INET, _INET6, _UNIX = 0, 1, 2, 3
_ADDRESS_BYTES = {_UNSPECIFIED: 0, _INET: 12, _INET6: 36, _UNIX: 216}
_LAST_TRANSPORT = 2  # unspecified, stream, datagram


class ProxyProtocolError(ValueError):
    """The bytes are not a PROXY header. The message says why."""


class Origin(NamedTuple):
    """The addresses of a connection that a proxy forwards."""

    client: Address | None
    """None for a client on a unix socket."""
    server: Address | None
    known: bool = True
    """False if the proxy connects for itself, as for health checks, or does not know the addresses."""


UNKNOWN = Origin(None, None, known=False)


class ProxyHeader:
    """Parses one header, which may arrive in pieces."""

    def __init__(self) -> None:
        self._data = b""
        self.complete = False
        self.origin = UNKNOWN

    def feed(self, data: bytes) -> int:
        """Parse more bytes.

        Returns:
            How many of the bytes belong to the header.

        Raises:
            ProxyProtocolError: The bytes cannot be a header.
        """
        before = len(self._data)
        self._data += data
        if self._data.startswith(SIGNATURE[: len(self._data)]):
            end = self._version_2()
        elif self._data.startswith(_WORD[: len(self._data)]):
            end = self._version_1()
        else:
            raise ProxyProtocolError("it begins with neither signature")
        if end is None:
            return len(data)
        self.complete = True
        self._data = b""
        return end - before

    def _version_1(self) -> int | None:
        """Return the length of the header, or None if it is incomplete."""
        line, end, _ = self._data.partition(b"\r\n")
        if len(line + end) > MAX_LINE or (not end and len(line) == MAX_LINE):
            raise ProxyProtocolError(f"the line is longer than {MAX_LINE} bytes")
        if b"\n" in line:
            raise ProxyProtocolError("the line does not end with CR LF")
        if not end:
            return None
        words = line.decode("latin-1").split(" ")
        if words[1] != "UNKNOWN":
            self.origin = _origin_of(words)
        return len(line) + 2

    def _version_2(self) -> int | None:
        """Return the length of the header, or None if it is incomplete."""
        if len(self._data) < _HEAD.size:
            return None
        _, version_command, family_transport, length = _HEAD.unpack_from(self._data)
        version, command = version_command >> 4, version_command & 0xF
        family, transport = family_transport >> 4, family_transport & 0xF
        if version != 2:
            raise ProxyProtocolError(f"version {version} is not known")
        if command not in (_LOCAL, _PROXY):
            raise ProxyProtocolError(f"command {command} is not known")
        if family not in _ADDRESS_BYTES or transport > _LAST_TRANSPORT:
            raise ProxyProtocolError(f"address family {family} with transport {transport} is not known")
        speaks_for_client = command == _PROXY and transport != 0
        if speaks_for_client and length < _ADDRESS_BYTES[family]:
            raise ProxyProtocolError(f"{length} bytes are too few for its addresses")
        if len(self._data) < _HEAD.size + length:
            return None
        if speaks_for_client:  # the extensions after the addresses (type, length, value) are skipped
            self.origin = _packed_origin(family, self._data[_HEAD.size : _HEAD.size + _ADDRESS_BYTES[family]])
        return _HEAD.size + int(length)


def _origin_of(words: list[str]) -> Origin:
    if len(words) != 6:
        raise ProxyProtocolError("it has not six words")
    _, kind, *addresses, client_port, server_port = words
    reader = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}.get(kind)
    if reader is None:
        raise ProxyProtocolError(f"{kind!r} is not known")
    if not _PORT.match(client_port) or not _PORT.match(server_port) or max(int(client_port), int(server_port)) > 65535:
        raise ProxyProtocolError("a port is not a number up to 65535")
    if any("%" in address for address in addresses):
        raise ProxyProtocolError("an address has a zone")
    try:
        client, server = [str(reader(address)) for address in addresses]
    except ValueError as error:
        raise ProxyProtocolError(f"an address is not valid: {error}") from error
    return Origin((client, int(client_port)), (server, int(server_port)))


def _packed_origin(family: int, addresses: bytes) -> Origin:
    if family == _INET or family == _INET6:
        size = 4 if family == _INET else 16
        client, server, client_port, server_port = struct.unpack(f"!{size}s{size}sHH", addresses)
        return Origin(
            (str(ipaddress.ip_address(client)), client_port), (str(ipaddress.ip_address(server)), server_port)
        )
    if family == _UNIX:
        path = addresses[108:].partition(b"\0")[0].decode("utf-8", "replace")
        return Origin(None, (path, None) if path else None)
    return UNKNOWN
