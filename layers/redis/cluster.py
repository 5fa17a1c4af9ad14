"""A Redis Cluster as so many stores: each part of the names has a hash slot of its own, and lies where that slot is.

A part is a store as any other (`shards.py`): its keys begin with one hash tag, so all of them lie on one node, and
connections for it go to that node. When the slot moves, or a replica takes over, the connections end, and the next ones
are made to the node that has it then.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.address import Address

PARTS = 16  # more nodes than that get nothing; a process has at most one connection for writing to each part
ASK_SECONDS = 1.0  # for one node to say who has which slots, before the next one is asked


def _tag(part: int) -> str:
    """The first number whose slot lies in that part of all slots: so the parts are spread over the nodes."""
    width = REDIS_CLUSTER_HASH_SLOTS // PARTS
    return next(str(number) for number in count() if key_slot(str(number).encode()) // width == part)


TAGS = tuple(_tag(part) for part in range(PARTS))


def parts(address: Address) -> list[Address]:
    """The stores of a cluster."""
    return [replace(address, tag=tag) for tag in TAGS]


async def locate(address: Address) -> tuple[str, int]:
    """Host and port of the node that has the slot of `address.tag` now. Raises LayerUnavailable if no node tells."""
    slot = key_slot(address.tag.encode())
    errors = []
    for host, port in address.nodes:
        try:
            ranges = await _slots(address, host, port)
        except RedisError as error:
            errors.append(f"{host}:{port}: {error}")
            continue
        for first, last, master, *_ in ranges:
            if first <= slot <= last:
                name = master[0].decode() if master[0] else ""
                return name or host, int(master[1])
        errors.append(f"{host}:{port}: nobody has slot {slot}")
    raise LayerUnavailable(f"no node of the cluster tells where to go ({'; '.join(errors)})")


async def _slots(address: Address, host: str, port: int) -> list[Any]:
    node = Redis(
        host=host,
        port=port,
        username=address.username,
        password=address.password,
        ssl=address.tls is not None,
        protocol=2,
        socket_timeout=ASK_SECONDS,
        socket_connect_timeout=ASK_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    if address.tls is not None:
        node.connection_pool.connection_kwargs["ssl_context"] = address.tls
    try:
        # In two words, so that redis-py does not make something else of the answer.
        slots: list[Any] = await node.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]  # redis-py says nothing
    finally:
        await node.aclose()
    return slots
