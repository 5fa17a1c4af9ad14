"""Open the channel layer that a URL names."""

from __future__ import annotations

from collections.abc import Sequence

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.settings import BACKLOG_BYTES, CAPACITY, EXPIRY_SECONDS, WAIT_SECONDS, LimitsByPattern


def open_layer(
    url: str,
    *,
    prefix: str = "asgibus",
    expiry: float = EXPIRY_SECONDS,
    capacity: int = CAPACITY,
    wait: float = WAIT_SECONDS,
    backlog: int = BACKLOG_BYTES,
    encryption_keys: Sequence[str | bytes] = (),
    stream_limits: LimitsByPattern | None = None,
) -> ChannelLayer:
    """Return the channel layer for a URL.

    No connection is opened until the layer is used. The schemes are:

    - `memory://`: within this process
    - `redis://[[user]:password@]host[:port][/db]`, `rediss://…` with TLS
    - `unix://[[user]:password@]/path[?db=n]`
    - `redis+sentinel://[user:password@]host:port[,host:port...]/service[/db]`
    - `redis+cluster://[user:password@]host:port[,host:port...]`, `redis+clusters://…` with TLS

    Args:
        url: The URL, or several Redis URLs with spaces between them: stores that share the names among them.
        prefix: The beginning of every key in Redis. Processes with the same prefix belong together.
        expiry: Seconds after which an unread message is dropped; 60 by default.
        capacity: How many unread messages a channel holds; 100 by default.
        wait: Seconds that a call waits for a store that is away, 5 by default, before it raises LayerUnavailable.
        backlog: Bytes of messages that wait for the store at once, 16 MiB by default. Further calls wait until there is
            room.
        encryption_keys: Secrets. Data in Redis is encrypted with the first one, and decrypted with any of them.
        stream_limits: Other limits of streams, by glob of the stream's name: StreamLimits, or a dict of `entries`,
            `bytes` and `kept`. The first match counts. By default a stream keeps 5,000 entries and 4 MiB, for an hour
            after its end.

    Returns:
        An `InMemoryChannelLayer` or a `RedisChannelLayer`.

    Raises:
        ValueError: The URL, a number or a key is not valid.
    """
    urls = url.split() or [""]
    schemes = [each.partition("://")[0] if "://" in each else "" for each in urls]
    # Each layer is imported when it is opened: most processes use one of the two.
    if schemes == ["memory"]:
        from asgibus.layers.memory import InMemoryChannelLayer  # noqa: PLC0415

        return InMemoryChannelLayer(expiry=expiry, capacity=capacity, stream_limits=stream_limits)
    if "memory" in schemes:
        raise ValueError("memory:// lies within one process: it cannot be one of several stores")
    from asgibus.layers.redis import RedisChannelLayer  # noqa: PLC0415
    from asgibus.layers.redis.config import SCHEMES  # noqa: PLC0415

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
        stream_limits=stream_limits,
    )
