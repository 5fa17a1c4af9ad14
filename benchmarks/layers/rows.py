"""The rows of the table and the peers, for the driver and the two ends."""

from dataclasses import dataclass
from typing import Any

CAPACITY = 100_000
"""Unread messages that a channel may hold, for every peer: beyond it channels_redis.core drops, or refuses."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: its name on the command line, its title in the table, its load.

    local: whether the channels are process-local ones. senders: tasks that send. members: channels of the reader, in
    one group if there are several. window: how many sends may be unread. grant: how many of them the reader confirms
    at once. echo: the reader answers each message, and the sender waits for the answer.
    """

    name: str
    title: str
    local: bool = False
    senders: int = 1
    members: int = 1
    window: int = 1000
    grant: int = 100
    echo: bool = False


ROWS = {
    row.name: row
    for row in (
        Row("sequential", "1 sender, ordinary channel"),
        Row("sequential-local", "1 sender, process-local channel", local=True),
        Row("senders-64", "64 senders, ordinary channel", senders=64),
        Row("senders-64-local", "64 senders, process-local channel", senders=64, local=True),
        Row("ping-pong", "Ping-pong, ordinary channels", echo=True),
        Row("ping-pong-local", "Ping-pong, process-local channels", local=True, echo=True),
        Row("group-1000", "Group of 1000 channels, 1 in flight", local=True, members=1000, window=1, grant=1),
        Row("group-1000-8", "Group of 1000 channels, 8 in flight", local=True, members=1000, window=8, grant=1),
    )
}

PEERS = ("asgibus", "core", "pubsub")


def open_layer(peer: str, url: str) -> Any:
    """Return the layer of a peer, with defaults except for the capacity, which pub/sub does not have."""
    # Each process imports the layer that it measures, and no other.
    match peer:
        case "asgibus":
            from asgibus.layers import RedisChannelLayer  # noqa: PLC0415

            return RedisChannelLayer(hosts=[url], capacity=CAPACITY)
        case "core":
            from channels_redis.core import RedisChannelLayer as Core  # type: ignore[import-untyped]  # noqa: PLC0415

            return Core(hosts=[url], capacity=CAPACITY)
        case "pubsub":
            from channels_redis.pubsub import RedisPubSubChannelLayer  # type: ignore[import-untyped]  # noqa: PLC0415

            return RedisPubSubChannelLayer(hosts=[url])
        case _:
            raise ValueError(f"no peer is called {peer}")
