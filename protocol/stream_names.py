"""Signed names of streams: whoever has one may read that stream, until the signature expires. No clock.

A signed name is `NAME?expires=TIME&signature=TEXT`: a path and a query, which are appended to the path of
`asgi-interface --streams`. TIME is a Unix time in seconds. TEXT is an HMAC with SHA-256 of the name and that time, RFC
2104, in the URL-safe alphabet of base64.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from typing import Final

from asgibus.layers.names import require_stream

EXPIRES: Final = "expires"
SIGNATURE: Final = "signature"
FEWEST_KEY_BYTES: Final = 16  # 128 bits, if the key is random: it can be tried without any request

_CONTEXT: Final = b"asgibus.streams 1\0"  # keeps these signatures apart from others that are made with the same key
_TIME: Final = re.compile(r"[1-9][0-9]{0,15}\Z", re.ASCII)


def sign_name(name: str, key: str | bytes, expires_at: int) -> str:
    """Return the signed name of a stream.

    Args:
        name: The name of the stream.
        key: The secret.
        expires_at: The Unix time in seconds until which the signature is valid.

    Raises:
        TypeError: The name is not valid.
        ValueError: The key is shorter than 16 bytes.
    """
    signature = _signature(require_stream(name), str(expires_at), require_key(key))
    return f"{name}?{EXPIRES}={expires_at}&{SIGNATURE}={signature}"


def require_key(key: str | bytes) -> bytes:
    """Return a key as bytes. Raises ValueError, which shows no secret, if it is shorter than 16 bytes."""
    data = key.encode() if isinstance(key, str) else key
    if len(data) < FEWEST_KEY_BYTES:
        raise ValueError(f"a key that signs streams has at least {FEWEST_KEY_BYTES} bytes, and this one {len(data)}")
    return data


def why_refused(name: str, query: Mapping[str, str], keys: Iterable[bytes], now: float) -> str | None:
    """Return why a signature does not allow to read a stream, as a sentence for the client; None if it does.

    The answer takes the same time for every wrong signature, and does not depend on the stream.

    Args:
        name: The name of the stream.
        query: The parameters of the query.
        keys: The keys, any of which may have made the signature.
        now: The Unix time in seconds.
    """
    expires, signature = query.get(EXPIRES, ""), query.get(SIGNATURE, "")
    valid = False
    for key in keys:  # all of them, so that the time does not tell which one it was
        valid |= hmac.compare_digest(_signature(name, expires, key).encode(), signature.encode())
    if not valid or not _TIME.match(expires):
        return "The signature of this stream is missing or wrong."
    if now > int(expires):
        return "The signature of this stream has expired."
    return None


def _signature(name: str, expires: str, key: bytes) -> str:
    digest = hmac.digest(key, _CONTEXT + f"{name}\0{expires}".encode(), "sha256")
    return urlsafe_b64encode(digest).rstrip(b"=").decode()
