"""The names of the shared channels on which connections are offered: one for each kind and pool."""

from __future__ import annotations

from asgibus.layers.names import MAX_NAME_LENGTH, require_channel, require_group
from asgibus.protocol.opening import HTTP, WEBSOCKET

_STEMS = {HTTP: "http.request", WEBSOCKET: "websocket.connect"}
MAX_POOL_LENGTH = MAX_NAME_LENGTH - max(len(stem) for stem in _STEMS.values()) - 1


def shared_channel(kind: str, pool: str) -> str:
    """The channel for new connections of a kind (`http`, `websocket`) that belong to a pool."""
    return f"{_STEMS[kind]}.{pool}"


def shared_channels(pool: str) -> tuple[str, ...]:
    """Every channel from which a worker of the pool claims."""
    return tuple(shared_channel(kind, pool) for kind in _STEMS)


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
