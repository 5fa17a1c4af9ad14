"""Validation of the authority of a request, in `Host` or in an absolute target: a host, and perhaps a port."""

from __future__ import annotations

import ipaddress
import re

MAX_PORT = 65535

_USUAL = re.compile(rb"[A-Za-z0-9.-]+(?::[0-9]{1,4})?\Z")  # nearly all hosts; a sixth of the time
_NAME = rb"[A-Za-z0-9._~!$&'()*+,;=-]*"  # unreserved and sub-delims; IPv4 addresses match, too
_AUTHORITY = re.compile(
    rb"(" + _NAME + rb"(?:%[0-9A-Fa-f]{2}" + _NAME + rb")*"
    rb"|\[[0-9A-Fa-f:.]+\]"
    rb"|\[[Vv][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+\])"
    rb"(?::([0-9]*))?\Z"
)


def is_authority(value: bytes) -> bool:
    """Return whether a value is a host with an optional port, RFC 3986 section 3.2.2 and RFC 9110 section 7.2.

    The host may be a name, with percent-encoded bytes, an IPv4 address, or an IPv6 or later address in brackets. An
    empty value is valid: the client's target has no authority. A port is at most `MAX_PORT`, and needs a host.
    """
    if _USUAL.match(value):
        return True
    match = _AUTHORITY.match(value)
    if match is None:
        return False
    host, port = match.groups()
    if port is not None:
        digits = port.lstrip(b"0")
        if not host or len(digits) > 5 or int(digits or b"0") > MAX_PORT:
            return False
    if host.startswith(b"[") and host[1:2] not in b"Vv":
        try:
            ipaddress.IPv6Address(host[1:-1].decode("ascii"))
        except ValueError:
            return False
    return True
