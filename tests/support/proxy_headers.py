"""PROXY headers, version 1 and 2: valid ones with their addresses, and invalid ones with the error."""

import socket
import struct

from asgibus.interface_server.proxy_protocol import SIGNATURE, UNKNOWN, Origin

REST = b"GET / HTTP/1.1\r\n\r\n"
IPV4 = socket.inet_aton("203.0.113.7") + socket.inet_aton("192.0.2.1") + struct.pack("!HH", 4711, 443)
IPV6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + struct.pack("!HH", 4711, 443)
)
PATHS = b"".join(path.ljust(108, b"\0") for path in (b"/client", b"/run/server"))
TLVS = b"\x01\x00\x02h2" + b"\x20\x00\x03abc" + b"\x04\x00\x00"

V4 = Origin(("203.0.113.7", 4711), ("192.0.2.1", 443))
V6 = Origin(("2001:db8::7", 4711), ("2001:db8::1", 443))


def version_2(family: int, rest: bytes = b"", *, command: int = 0x21, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


GOOD = {
    "v1 IPv4": (b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n", V4),
    "v1 IPv6": (b"PROXY TCP6 2001:db8::7 2001:DB8::1 4711 443\r\n", V6),
    "v1 largest": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Origin(("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ),
    "v1 ports of nothing": (b"PROXY TCP4 1.2.3.4 1.2.3.4 0 0\r\n", Origin(("1.2.3.4", 0), ("1.2.3.4", 0))),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", UNKNOWN),
    "v1 unknown with more": (b"PROXY UNKNOWN ffff::1 nonsense  \x00 1 2\r\n", UNKNOWN),
    "v1 unknown, as long as may be": (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", UNKNOWN),
    "v2 IPv4": (version_2(0x11, IPV4), V4),
    "v2 IPv6": (version_2(0x21, IPV6), V6),
    "v2 IPv4 datagram": (version_2(0x12, IPV4), V4),
    "v2 IPv6 datagram": (version_2(0x22, IPV6), V6),
    "v2 with TLVs": (version_2(0x11, IPV4 + TLVS), V4),
    "v2 IPv6 with TLVs": (version_2(0x21, IPV6 + TLVS), V6),
    "v2 with as much as may be": (version_2(0x11, IPV4 + bytes(65535 - 12)), V4),
    "v2 unix": (version_2(0x31, PATHS), Origin(None, ("/run/server", None))),
    "v2 nameless unix": (version_2(0x31, bytes(216)), Origin(None, None)),
    "v2 local": (version_2(0x00, command=0x20), UNKNOWN),
    "v2 local with addresses": (version_2(0x11, IPV4, command=0x20), UNKNOWN),
    "v2 local with too few": (version_2(0x11, b"abc", command=0x20), UNKNOWN),
    "v2 unspecified": (version_2(0x00), UNKNOWN),
    "v2 unspecified with more": (version_2(0x00, TLVS), UNKNOWN),
    "v2 of no family": (version_2(0x01, TLVS), UNKNOWN),
    "v2 of no transport": (version_2(0x10, b""), UNKNOWN),
}
BAD = {
    "a request": (REST, "neither signature"),
    "a handshake": (b"\x16\x03\x01\x02\x00\x01\x00", "neither signature"),
    "nearly v1": (b"PROXY_TCP4", "neither signature"),
    "nearly v2": (SIGNATURE[:-1] + b"X", "neither signature"),
    "lower case": (b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", "neither signature"),
    "v1 nothing": (b"PROXY \r\n", "six words"),
    "v1 TCP5": (b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n", "'TCP5' is not known"),
    "v1 UDP4": (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", "'UDP4' is not known"),
    "v1 five words": (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "six words"),
    "v1 seven words": (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", "six words"),
    "v1 two spaces": (b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n", "six words"),
    "v1 space at the end": (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", "six words"),
    "v1 tab": (b"PROXY TCP4\t1.2.3.4 1.2.3.4 1 2 3\r\n", "is not known"),
    "v1 IPv6 as TCP4": (b"PROXY TCP4 ::1 ::1 1 2\r\n", "an address is not valid"),
    "v1 IPv4 as TCP6": (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", "an address is not valid"),
    "v1 leading zero": (b"PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n", "an address is not valid"),
    "v1 zone": (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "zone"),
    "v1 host name": (b"PROXY TCP4 localhost 1.2.3.4 1 2\r\n", "an address is not valid"),
    "v1 port too large": (b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n", "a port"),
    "v1 port of letters": (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 http\r\n", "a port"),
    "v1 port with a sign": (b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", "a port"),
    "v1 port with a zero": (b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", "a port"),
    "v1 empty port": (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 \r\n", "a port"),
    "v1 LF alone": (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n" + REST, "CR LF"),
    "v1 too long": (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "longer than 107"),
    "v1 without an end": (b"PROXY UNKNOWN " + b"x" * 100, "longer than 107"),
    "v2 version 1": (version_2(0x11, IPV4, command=0x11), "version 1"),
    "v2 version 3": (version_2(0x11, IPV4, command=0x31), "version 3"),
    "v2 command 2": (version_2(0x11, IPV4, command=0x22), "command 2"),
    "v2 family 4": (version_2(0x41, IPV4), "family 4"),
    "v2 transport 3": (version_2(0x13, IPV4), "transport 3"),
    "v2 short IPv4": (version_2(0x11, IPV4[:-1]), "too few"),
    "v2 short IPv6": (version_2(0x21, IPV4), "too few"),
    "v2 short unix": (version_2(0x31, PATHS[:-1]), "too few"),
    "v2 no addresses": (version_2(0x11), "too few"),
}
