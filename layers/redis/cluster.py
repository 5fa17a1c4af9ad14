"""A Redis Cluster as so many stores: each part of the names has a hash slot of its own, and lies where that slot is.

A part is a store as any other (`shards.py`): its keys begin with one hash tag, so all of them lie on one node, and
connections for it go to that node. When the slot moves, or a replica takes over, the connections end, and the next ones
are made to the node that has it then.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import count
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.connection import RedisConnection, RedisError, authenticate, reason_of

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
    """Return host and port of the node that has the slot of `address.tag` now.

    Raises LayerUnavailable, with what each node has said, if none of them tells.
    """
    slot = key_slot(address.tag.encode())
    errors = []
    for host, port in address.nodes:
        try:
            ranges = await _slots(address, host, port)
            for first, last, master, *_ in ranges:
                if first <= slot <= last:
                    return (master[0].decode() if master[0] else "") or host, int(master[1])
        except TimeoutError:
            errors.append(f"{host}:{port}: no answer within {ASK_SECONDS:g} s")
        except OSError as error:
            errors.append(f"{host}:{port}: {reason_of(error)}")
        except (RedisError, LayerUnavailable) as error:
            errors.append(f"{host}:{port}: {error}")
        except (AttributeError, TypeError, ValueError, IndexError):
            errors.append(f"{host}:{port}: an answer that cannot be read")
        else:
            errors.append(f"{host}:{port}: nobody has slot {slot}")
    raise LayerUnavailable(f"no node of the cluster tells where to go ({'; '.join(errors)})")


async def _slots(address: Address, host: str, port: int) -> list[Any]:
    """Return what a node says of all slots: first, last, and the nodes that have them, the master first."""
    loop = asyncio.get_running_loop()
    connection = RedisConnection(loop)
    try:
        async with asyncio.timeout(ASK_SECONDS):
            await loop.create_connection(lambda: connection, host, port, ssl=address.tls)
            await authenticate(connection, address)
            slots: list[Any] = await connection.call("CLUSTER", "SLOTS")
            return slots
    finally:
        connection.abort("closed here")
