"""The names of the shared channels on which connections are offered: one for each kind of scope and pool."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from asgibus.layers.names import MAX_NAME_LENGTH, require_channel, require_group
from asgibus.protocol.connect_request import HTTP, WEBSOCKET

TERMINATORS = "asgibus.terminators"  # the group of entry points for protocols of other packages
_STEMS = {HTTP: "http.request", WEBSOCKET: "websocket.connect"}
MAX_POOL_LENGTH = MAX_NAME_LENGTH - max(len(stem) for stem in _STEMS.values()) - 1

# At most as long as "websocket", so that the name of the channel is valid for every pool.
_PROTOCOL = re.compile(r"[a-z][a-z0-9-]{0,8}\Z", re.ASCII)
_RESERVED = frozenset({HTTP, WEBSOCKET, "lifespan", "channel", "asgibus"})


@cache  # every connection asks; there are few kinds and pools
def shared_channel(kind: str, pool: str) -> str:
    """Return the channel on which connections are offered.

    Args:
        kind: The type of the scope: `http`, `websocket`, `udp`, …
        pool: The pool of the connections.
    """
    return f"{_STEMS.get(kind) or kind + '.connect'}.{pool}"


def shared_channels(pool: str, protocols: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the channels that a worker claims from.

    Args:
        pool: The pool of the worker.
        protocols: The protocols that it serves, other than HTTP and WebSocket.
    """
    return tuple(shared_channel(kind, pool) for kind in (*_STEMS, *protocols))


def require_protocol(name: str) -> str:
    """Return `name` if it is a valid name for a protocol other than HTTP and WebSocket.

    Raises:
        ValueError: It is not; the text says the rule.
    """
    if name in _RESERVED:
        raise ValueError(f"{name!r} is not a protocol beside HTTP and WebSocket")
    if not _PROTOCOL.match(name):
        raise ValueError(
            f"a protocol's name is 1 to 9 lower-case letters, digits or '-', and begins with a letter; not {name!r}"
        )
    return name


def require_pool(pool: str) -> str:
    """Return `pool` if it is a valid name for a pool.

    Raises:
        ValueError: It is not; the text says the rule.
    """
    try:
        require_group(pool)  # the same letters, and no `!`
        require_channel(shared_channel(WEBSOCKET, pool))
    except TypeError:
        raise ValueError(
            f"a pool's name is 1 to {MAX_POOL_LENGTH} ASCII letters, digits, '.', '-' or '_'; not {pool!r}"
        ) from None
    return pool
