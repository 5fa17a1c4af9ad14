"""From a layer's URL to the layer."""

from __future__ import annotations

from collections.abc import Sequence

from asgibus.layers.contract import ChannelLayer
from asgibus.layers.memory import InMemoryChannelLayer
from asgibus.layers.redis import RedisChannelLayer
from asgibus.layers.redis.url import SCHEMES
from asgibus.layers.settings import BACKLOG_BYTES, CAPACITY, EXPIRY_SECONDS, WAIT_SECONDS


def open_layer(
    url: str,
    *,
    prefix: str = "asgibus",
    expiry: float = EXPIRY_SECONDS,
    capacity: int = CAPACITY,
    wait: float = WAIT_SECONDS,
    backlog: int = BACKLOG_BYTES,
    encryption_keys: Sequence[str | bytes] = (),
) -> ChannelLayer:
    """The channel layer for `url`. Opens no connection: the first use does.

    `memory://` (one process), `redis://[[user]:password@]host[:port][/db]`, `rediss://…` (TLS),
    `unix://[[user]:password@]/path[?db=n]`, `redis+sentinel://[user:password@]host:port[,host:port...]/service[/db]`.
    `redis+cluster://[user:password@]host:port[,host:port...]` is a Redis Cluster, `redis+clusters://` one with TLS.
    Several Redis URLs with spaces between them are stores that share what there is among them. `prefix` starts every
    key; `expiry`, `capacity`, `wait` and `backlog` as in `LayerSettings`. `encryption_keys`: what is in Redis is
    encrypted with the first of these secrets, and read with all of them; in memory nothing is. Raises ValueError for
    another scheme, or for what is no key.
    """
    urls = url.split() or [""]
    schemes = [each.partition("://")[0] if "://" in each else "" for each in urls]
    if schemes == ["memory"]:
        return InMemoryChannelLayer(expiry=expiry, capacity=capacity)
    if "memory" in schemes:
        raise ValueError("memory:// lies within one process: it cannot be one of several stores")
    if any(scheme not in SCHEMES for scheme in schemes):
        # No part of the URL is shown, which may be one of a password. One with a space in it looks like several URLs.
        known = ", ".join(f"{name}://" for name in ("memory", *SCHEMES))
        several = " (a space is written as %20)" if len(urls) > 1 else ""
        raise ValueError(f"a layer's URL begins with one of {known}{several}")
    return RedisChannelLayer(
        urls,
        prefix=prefix,
        expiry=expiry,
        capacity=capacity,
        wait=wait,
        backlog=backlog,
        symmetric_encryption_keys=encryption_keys,
    )
