"""The names of the shared channels on which connections are offered: one for each kind and pool."""

from __future__ import annotations

import re
from collections.abc import Sequence

from asgibus.layers.names import MAX_NAME_LENGTH, require_channel, require_group
from asgibus.protocol.connect_request import HTTP, WEBSOCKET

TERMINATORS = "asgibus.terminators"  # the entry points of packages that bring a protocol
_STEMS = {HTTP: "http.request", WEBSOCKET: "websocket.connect"}
MAX_POOL_LENGTH = MAX_NAME_LENGTH - max(len(stem) for stem in _STEMS.values()) - 1

# As long as "websocket", so that every pool has a channel for it.
_PROTOCOL = re.compile(r"[a-z][a-z0-9-]{0,8}\Z", re.ASCII)
_TAKEN = frozenset({HTTP, WEBSOCKET, "lifespan", "channel", "asgibus"})


def shared_channel(kind: str, pool: str) -> str:
    """The channel for new connections of a kind (`http`, `websocket`, `udp`, …) that belong to a pool."""
    return f"{_STEMS.get(kind) or kind + '.connect'}.{pool}"


def shared_channels(pool: str, protocols: Sequence[str] = ()) -> tuple[str, ...]:
    """Every channel from which a worker of the pool claims that serves these protocols beside HTTP and WebSocket."""
    return tuple(shared_channel(kind, pool) for kind in (*_STEMS, *protocols))


def require_protocol(name: str) -> str:
    """Give `name` back if it can be a protocol beside HTTP and WebSocket, else raise ValueError with the rule."""
    if name in _TAKEN:
        raise ValueError(f"{name!r} is not a protocol beside HTTP and WebSocket")
    if not _PROTOCOL.match(name):
        raise ValueError(
            f"a protocol's name is 1 to 9 lower-case letters, digits or '-', and begins with a letter; not {name!r}"
        )
    return name


def require_pool(pool: str) -> str:
    """Give `pool` back if it can be the name of a pool, else raise ValueError with the rule."""
    try:
        require_group(pool)  # the same letters, and no `!`
        require_channel(shared_channel(WEBSOCKET, pool))
    except TypeError:
        raise ValueError(
            f"a pool's name is 1 to {MAX_POOL_LENGTH} ASCII letters, digits, '.', '-' or '_'; not {pool!r}"
        ) from None
    return pool
