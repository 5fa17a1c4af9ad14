"""Sign the names of streams, so that HTTP clients may read them: `sign`.

    url = "/streams/" + streams.sign("answer.7", key, expires=3600)

A client that has this URL may read the stream for an hour, at an interface server with `--streams /streams`.
"""

from __future__ import annotations

import math
import time
from typing import Final

from asgibus.layers.settings import LONGEST_SECONDS
from asgibus.protocol.stream_names import sign_name

__all__ = ["sign"]

EXPIRES_SECONDS: Final = 3600.0


def sign(name: str, key: str | bytes, *, expires: float = EXPIRES_SECONDS) -> str:
    """Return the signed name of a stream, with which an HTTP client may read it. There is no IO.

    Args:
        name: The name of the stream.
        key: The secret, of 16 bytes or more: one of those that `--streams-key` gives to the interface servers.
        expires: Seconds for which the name is valid, and up to one more; an hour by default.

    Returns:
        A path and a query, to be appended to the path of `--streams` and a slash: `NAME?expires=…&signature=…`.

    Raises:
        TypeError: The name is not valid.
        ValueError: The key is too short, or the time is not above 0 and up to ten years.
    """
    if not 0 < expires <= LONGEST_SECONDS:
        raise ValueError(f"a signed name is valid for a number of seconds above 0, up to {LONGEST_SECONDS}")
    return sign_name(name, key, math.ceil(time.time() + expires))
