"""Ask the Sentinels of a service for its master, and leave a server that is the master no longer.

All Sentinels are asked, and the answer with the highest configuration epoch counts: one that was cut off, or has just
begun, names an older master.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.config import SENTINEL_SECONDS, Address
from asgibus.layers.redis.connection import RedisConnection, RedisError, reason_of

logger = logging.getLogger("asgibus.layers")

WATCH_SECONDS = 1.0  # how often Sentinels are asked whether the master is still the one in use
DOWN = {"s_down", "o_down", "disconnected"}  # flags of a master that a Sentinel cannot reach: it may be the old one


class _Answer(NamedTuple):
    epoch: int
    host: str
    port: int


class Sentinels:
    """The Sentinels of one service, as one event loop asks them. Connections to them stay open until `close`."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connections: dict[tuple[str, int], RedisConnection] = {}

    async def master(self) -> tuple[str, int]:
        """Return host and port of the master. Raises LayerUnavailable when no Sentinel names one that it can reach."""
        answers = await asyncio.gather(*map(self._ask, self._address.sentinels), return_exceptions=True)
        named = [answer for answer in answers if isinstance(answer, _Answer)]
        if not named:
            places = zip(self._address.sentinels, answers, strict=True)
            reasons = "; ".join(f"{host}:{port}: {answer}" for (host, port), answer in places)
            raise LayerUnavailable(f"no Sentinel names a master of {self._address.service!r} ({reasons})")
        _, host, port = max(named)
        return host, port

    def close(self) -> None:
        """End the connections."""
        for connection in self._connections.values():
            connection.abort("closed here")
        self._connections.clear()

    async def _ask(self, place: tuple[str, int]) -> _Answer:
        """Ask one Sentinel. Raises LayerUnavailable, saying why there is no answer that can be used."""
        try:
            async with asyncio.timeout(SENTINEL_SECONDS):
                connection = self._connections.get(place)
                if connection is None or connection.lost.done():
                    connection = await self._connect(place)
                return _read(await connection.call("SENTINEL", "MASTER", self._address.service))
        except TimeoutError:
            if (connection := self._connections.pop(place, None)) is not None:
                connection.abort("no answer")
            raise LayerUnavailable(f"no answer within {SENTINEL_SECONDS:g} s") from None
        except OSError as error:
            raise LayerUnavailable(reason_of(error)) from None
        except RedisError as error:
            raise LayerUnavailable(str(error)) from None

    async def _connect(self, place: tuple[str, int]) -> RedisConnection:
        loop = asyncio.get_running_loop()
        connection = self._connections[place] = RedisConnection(loop)
        await loop.create_connection(lambda: connection, *place, ssl=self._address.sentinel_tls)
        password, username = self._address.sentinel_password, self._address.sentinel_username
        if password is not None:
            await connection.call("AUTH", *((username, password) if username else (password,)))
        return connection


def _read(reply: Any) -> _Answer:
    """Read the answer to SENTINEL MASTER. Raises LayerUnavailable for a master that cannot be reached."""
    try:
        fields = dict(zip(map(bytes.decode, reply[::2]), map(bytes.decode, reply[1::2]), strict=True))
        answer = _Answer(int(fields["config-epoch"]), fields["ip"], int(fields["port"]))
        flags = set(fields["flags"].split(","))
    except (ValueError, TypeError, KeyError) as error:
        raise LayerUnavailable(f"an answer that cannot be read ({error!r})") from None
    if "master" not in flags or flags & DOWN:
        raise LayerUnavailable(f"the master {answer.host}:{answer.port} is down, and there is no other yet")
    return answer


async def locate(address: Address) -> tuple[str, int]:
    """Return host and port of the master now. Raises LayerUnavailable when no Sentinel names one."""
    sentinels = Sentinels(address)
    try:
        return await sentinels.master()
    finally:
        sentinels.close()


class MasterWatch:
    """Asks the Sentinels each second, so that a master that hangs is left when another has taken its place.

    `moved` is called with host and port of the master at each answer.
    """

    def __init__(self, address: Address, moved: Callable[[tuple[str, int]], None]) -> None:
        self._sentinels = Sentinels(address)
        self._moved = moved
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._task = asyncio.create_task(self._watch(), name="asgibus sentinel watch")

    async def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _watch(self) -> None:
        try:
            while True:
                await asyncio.sleep(WATCH_SECONDS)
                try:
                    self._moved(await self._sentinels.master())
                except LayerUnavailable as error:
                    logger.debug("%s", error)
        finally:
            self._sentinels.close()
