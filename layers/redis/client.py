"""Connections to a Redis server: find the server, connect to it, and connect again when the connection is lost.

A connection speaks RESP through hiredis on an `asyncio.Protocol`, pipelined, without a coroutine per command. Each
command is written with the callback that takes its reply; replies come in the order of the commands. All links of a
process to one store share an `Outage`, which logs once that Redis is away and once that it is back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, NamedTuple

import hiredis

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.config import Address, hash_slot

logger = logging.getLogger("asgibus.layers")

Argument = str | bytes | int


def pack_command(args: Sequence[Argument]) -> bytes:
    """Return a command as RESP."""
    packed: bytes = hiredis.pack_command(tuple(args))  # type: ignore[arg-type]  # its stub names a tuple of one item
    return packed


def pack_command_with(args: tuple[Argument, ...], last: bytes) -> bytes:
    """Return a command as RESP whose other arguments are often the same: they are packed once.

    hiredis needs a microsecond for a short command.
    """
    return b"%b$%d\r\n%b\r\n" % (_pack_start(args), len(last), last)


@lru_cache(maxsize=1024)
def pack_command_once(args: tuple[Argument, ...]) -> bytes:
    """Return a command as RESP that is often the same: it is packed once."""
    return pack_command(args)


def pack_command_list(args: tuple[Argument, ...], ids: Sequence[bytes]) -> bytes:
    """Return a command as RESP that ends with a list: its other arguments are packed once."""
    lengths = [b"$%d\r\n%b\r\n" % (len(each), each) for each in ids]
    return b"*%d\r\n%b%b" % (len(args) + len(ids), _pack_words(args), b"".join(lengths))


@lru_cache(maxsize=1024)
def _pack_words(args: tuple[Argument, ...]) -> bytes:
    """Return the arguments of a command as RESP, without their number."""
    return pack_command(args).partition(b"\r\n")[2]


@lru_cache(maxsize=1024)
def _pack_start(args: tuple[Argument, ...]) -> bytes:
    """Return a command as RESP, without its last argument."""
    return pack_command((*args, b"")).removesuffix(b"$0\r\n\r\n")


RedisError = hiredis.ReplyError
OnReply = Callable[[Any], None]

# For how long a blocking read waits in Redis, and for how long an overdue reply is waited for: then the connection is
# given up, as TCP may not notice its end. A Redis that works answers within milliseconds, or two seconds for a blocking
# read; three more are for a fork, swapping or a slow script. Neither is longer than a lease, so that a process with a
# silent connection has a new one when others see that its lease has ended.
BLOCK_SECONDS = 2
SILENCE_SECONDS = 5.0

_NOTHING: Final = object()


def ignore_reply(reply: object) -> None:
    """Ignore the reply to a command, also an error: nothing depends on it, or it is repaired later."""


def log_refusal(reply: object) -> None:
    """Log the reply to a command if it is an error, and ignore any other."""
    if isinstance(reply, RedisError):
        logger.error("Redis refused a command: %s", reply)


class RedisConnection(asyncio.Protocol):
    """A connection to Redis. `lost` is done when it has ended; callbacks that wait for replies are dropped then."""

    __slots__ = (
        "_loop",
        "_reader",
        "_replies",
        "_transport",
        "client_id",
        "direct",
        "lost",
        "owed_since",
        "place",
        "run_id",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._replies: deque[OnReply] = deque()
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[str] = loop.create_future()
        self.owed_since = 0.0
        self.client_id = 0
        self.direct = False  # whether Redis sees the address of this end, so that no proxy is between
        self.run_id = ""
        self.place: tuple[str, int] | None = None  # host and port, as Sentinel or the cluster names them

    def write(self, data: bytes, on_replies: Iterable[OnReply], *, at_once: bool = False) -> None:
        """Write packed commands.

        Args:
            data: The commands.
            on_replies: A callback for the reply of each. A reply may be a RedisError.
            at_once: Whether not to wait for the end of this turn of the event loop, as uvloop does.
        """
        if self._transport is None or self._transport.is_closing():
            return  # the owner learns from `lost` that it has to write again
        if not self._replies:
            self.owed_since = self._loop.time()
        self._replies.extend(on_replies)
        if at_once:
            self._transport.set_write_buffer_limits(high=0)  # uvloop gathers writes up to this limit
            self._transport.write(data)
            self._transport.set_write_buffer_limits()
        else:
            self._transport.write(data)

    def call(self, *args: str | bytes | int) -> asyncio.Future[Any]:
        """Write a command. If there is no reply within `SILENCE_SECONDS`, the connection is ended.

        Returns:
            A future with the reply. It raises RedisError, or LayerUnavailable when the connection is lost.
        """
        future: asyncio.Future[Any] = self._loop.create_future()

        def reply(value: Any) -> None:
            if not future.done():
                if isinstance(value, RedisError):
                    future.set_exception(value)
                else:
                    future.set_result(value)

        def end(lost: asyncio.Future[str]) -> None:
            if not future.done():
                future.set_exception(LayerUnavailable(f"the connection to Redis ended: {lost.result()}"))

        def settled(_: asyncio.Future[Any]) -> None:
            self.lost.remove_done_callback(end)
            timer.cancel()

        timer = self._loop.call_later(SILENCE_SECONDS, self.abort, f"no reply for {SILENCE_SECONDS:g} s")
        self.lost.add_done_callback(end)
        future.add_done_callback(settled)
        self.write(pack_command(args), (reply,))
        return future

    @property
    def address(self) -> str:
        """The address of this end, as Redis writes it; for a Unix socket that of the server."""
        assert self._transport is not None
        name = self._transport.get_extra_info("sockname")
        if not isinstance(name, tuple):
            return f"{self._transport.get_extra_info('peername')}:0"
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def abort_if_silent(self) -> bool:
        """End the connection if Redis has owed a reply for too long. Return whether it has."""
        silent = bool(self._replies) and self._loop.time() - self.owed_since > SILENCE_SECONDS
        if silent:
            self.abort(f"no reply for {SILENCE_SECONDS:g} s")
        return silent

    def abort(self, reason: str) -> None:
        """End the connection at once."""
        if not self.lost.done() and not self._loop.is_closed():
            self.lost.set_result(reason)
        self._replies.clear()
        if self._transport is not None and not self._loop.is_closed():  # which would have to run once more to close it
            self._transport.abort()

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream socket has a full transport

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        replies = self._replies
        self.owed_since = self._loop.time()
        try:
            while (reply := reader.gets()) is not _NOTHING:
                if not replies:
                    # Redis refuses a connection in this way: in protected mode, or when it has too many clients.
                    said = reply if isinstance(reply, RedisError) else "a reply that nobody asked for"
                    self.abort(f"Redis sent {said}")
                    return
                replies.popleft()(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"Redis sent something that is not RESP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._replies.clear()
        if not self.lost.done():
            self.lost.set_result(str(error) if error else "Redis closed the connection")


def reason_of(error: OSError) -> str:
    """Return why there is no connection, in the words of the system; those of asyncio repeat the address."""
    if error.errno is not None and error.errno > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


FIRST_PAUSE = 0.05  # seconds: after a failover, for example, the next connection usually succeeds at once
STEADY_SECONDS = 1.0  # after a connection that ended sooner, the next pause is longer than the one before
LONGEST_PAUSE = 2.0  # seconds: how late the return of Redis is noticed at most
LOOK_SECONDS = 1.0  # how often a connection is checked for an overdue reply

CONNECT_SECONDS = 5.0  # a host that does not answer a SYN for this long is treated as down
OLDEST_REDIS = (7, 0)
NO_PERMISSION = ("NOPERM", "ERR unknown command")

SENTINEL_SECONDS = 1.0  # for a Sentinel to answer
SENTINEL_WATCH_SECONDS = 1.0  # how often Sentinels are asked whether the master has changed
DOWN = {"s_down", "o_down", "disconnected"}  # flags of a master that a Sentinel cannot reach: it may be the old one
NODE_SECONDS = 1.0  # for a node of a cluster to answer, before the next one is asked


class Outage:
    """Track whether Redis is away, for all links of a process to one store, and log each outage once."""

    def __init__(self, address: Address, counts: Counter[str]) -> None:
        self.counts = counts
        self._address = address
        self._links: set[ReconnectingConnection] = set()
        self._down: set[ReconnectingConnection] = set()
        self._failed = 0

    @property
    def available(self) -> bool:
        """Whether all links are connected."""
        return not self._down

    def failed(self, reason: object) -> None:
        """Count a call of the app that failed because of the outage, and log the first one."""
        self.counts["send failed"] += 1
        self._failed += 1
        if self._failed == 1:
            logger.warning("a message of the app was not sent (%s); further ones are counted", reason)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count and log a LayerUnavailable that is raised in this context."""
        try:
            yield
        except LayerUnavailable as error:
            self.failed(error)
            raise

    def down(self, link: ReconnectingConnection, reason: str) -> None:
        """Note that a link lost its connection."""
        if not self._down:
            logger.warning("Redis at %s is gone (%s): trying again until it is back", self._address, reason)
        self._down.add(link)

    def up(self, link: ReconnectingConnection) -> None:
        """Note that a link is connected."""
        self._links.add(link)
        connection = link.connection
        if connection is not None and connection.run_id:
            for each in self._links:  # links to the server that this one has replaced would read other data
                each.drop_unless(connection.run_id)
        if link in self._down:
            self._down.discard(link)
            self.counts["reconnect"] += 1
            if not self._down:
                logger.warning("Redis at %s is back", self._address)
        if self._failed and not self._down:
            logger.warning("%d calls of apps failed while Redis was away", self._failed)
            self._failed = 0

    def moved(self, place: tuple[str, int]) -> None:
        """Drop connections to other servers than the master at this host and port: an old master may hang."""
        for link in self._links:
            connection = link.connection
            if connection is not None and connection.place is not None and connection.place != place:
                connection.abort("Sentinels say that the master is {}:{} now".format(*place))

    def forget(self, link: ReconnectingConnection) -> None:
        """Ignore a link that was closed."""
        self._links.discard(link)
        self._down.discard(link)


class ReconnectingConnection:
    """A connection that is made again when it is lost.

    `on_up` is called with each new connection, `on_down` when a connection is lost.
    """

    def __init__(
        self,
        address: Address,
        name: str,
        outage: Outage,
        on_up: Callable[[RedisConnection], None],
        on_down: Callable[[], None] | None = None,
    ) -> None:
        self._address = address
        self._name = name
        self._outage = outage
        self._on_up = on_up
        self._on_down = on_down
        self._task: asyncio.Task[None] | None = None
        self._last = ("", 0)  # of the last connection: run id of the server, and its id for this client
        self.connection: RedisConnection | None = None

    async def open(self) -> None:
        """Connect, and stay connected until `close`. Raises LayerUnavailable when the first attempt fails."""
        self._use(await connect(self._address, self._name))
        self.start()

    def start(self) -> None:
        """Connect in the background, and stay connected until `close`."""
        self._task = background(self._run(), f"redis {self._name}")
        # The event loop may end without a `close`, even before the task has begun.
        self._task.add_done_callback(lambda _: self._end())

    async def close(self) -> None:
        """End the connection, and wait until it has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self._end()

    def drop_unless(self, run_id: str) -> None:
        """Drop the connection, and make another one, unless it is to the Redis server with this run id."""
        if self.connection is not None and self.connection.run_id not in ("", run_id):
            self.connection.abort("another Redis has taken its place")

    def _use(self, connection: RedisConnection) -> None:
        last, self._last = self._last, (connection.run_id, connection.client_id)
        if connection.run_id and last[0] == connection.run_id:
            # The server may not have noticed the end of the last connection: commands still on their way there must
            # not be executed after later ones, and nothing may be given to its blocked read.
            connection.write(pack_command(("CLIENT", "KILL", "ID", last[1])), (ignore_reply,))
        self.connection = connection
        self._outage.up(self)
        self._on_up(connection)

    def _end(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort("closed here")
        self._outage.forget(self)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        if self.connection is None:
            self._use(await self._reconnect(0))
        pause = 0.0
        while self.connection is not None:
            since = loop.time()
            reason = await self._watch(self.connection)
            self.connection = None
            self._outage.down(self, reason)
            if self._on_down is not None:
                self._on_down()
            steady = loop.time() - since > STEADY_SECONDS
            pause = FIRST_PAUSE if steady else min(max(pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            self._use(await self._reconnect(pause))

    async def _watch(self, connection: RedisConnection) -> str:
        """Wait until the connection ends, and return why."""
        while True:
            done, _ = await asyncio.wait([connection.lost], timeout=LOOK_SECONDS)
            if done:
                return connection.lost.result()
            connection.abort_if_silent()

    async def _reconnect(self, pause: float) -> RedisConnection:
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # spread, so that processes do not reconnect at once
            try:
                return await connect(self._address, self._name)
            except LayerUnavailable as error:
                logger.debug("still gone: %s", error)
            pause = min(max(pause * 2, FIRST_PAUSE), LONGEST_PAUSE)


def background(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start a task that may still be pending when its event loop is closed.

    asyncio would report such a task when it is collected, to an app that does not know it.
    """
    task = asyncio.create_task(work, name=name)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio does itself for its inner futures
    return task


async def connect(address: Address, name: str) -> RedisConnection:
    """Connect to a master and greet it (AUTH, SELECT, CLIENT SETNAME).

    Raises:
        LayerUnavailable: There is no connection; the message says where and why.
    """
    loop = asyncio.get_running_loop()
    connection = RedisConnection(loop)
    greeted = False
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            if address.path is not None:
                await loop.create_unix_connection(lambda: connection, address.path)
            else:
                connection.place = host, port = await locate(address)
                await loop.create_connection(lambda: connection, host, port, ssl=address.tls)
            await _greet(connection, address, name)
        greeted = True
    except TimeoutError:
        reason = f"no answer within {CONNECT_SECONDS:g} s"
    except OSError as error:
        reason = reason_of(error)
    except UnicodeError:
        reason = "it has no valid host name"
    except (RedisError, LayerUnavailable) as error:
        reason = str(error).partition(". ")[0]  # that of the protected mode has six sentences more
    else:
        return connection
    finally:
        if not greeted:
            connection.abort("could not be greeted")
    raise LayerUnavailable(f"Redis at {address} cannot be used: {reason}")


async def _greet(connection: RedisConnection, address: Address, name: str) -> None:
    await _authenticate(connection, address.username, address.password)
    if address.db:
        await connection.call("SELECT", address.db)
    await connection.call("CLIENT", "SETNAME", name)
    connection.client_id = await connection.call("CLIENT", "ID")
    connection.direct = await _is_direct(connection)
    answer = await _call_if_permitted(connection, "INFO", "server")
    if answer is not None:
        info = dict(line.split(":", 1) for line in answer.decode().split() if ":" in line)
        version = tuple(int(part) for part in info.get("redis_version", "0.0").split(".")[:2])
        if version < OLDEST_REDIS:
            raise LayerUnavailable(f"it is version {info.get('redis_version')}, and 7.0 or later is needed")
        connection.run_id = info.get("run_id", "")
    role = await _call_if_permitted(connection, "ROLE")
    if role is not None and role[0] != b"master":
        raise LayerUnavailable("it is a replica")  # after a failover: a later attempt finds the new master


async def _is_direct(connection: RedisConnection) -> bool:
    """Return whether Redis sees the address of this end; False if it may not be asked."""
    try:
        info: bytes = await connection.call("CLIENT", "INFO")
    except RedisError:
        return False
    return f" addr={connection.address} " in info.decode(errors="replace")


async def _authenticate(connection: RedisConnection, username: str | None, password: str | None) -> None:
    """Authenticate if there is a password. Raises RedisError when it is refused."""
    if password is not None:
        await connection.call("AUTH", *((username, password) if username else (password,)))


async def _call_if_permitted(connection: RedisConnection, *args: str) -> Any:
    """Return the reply to a command; None if this user or this server may not answer it."""
    try:
        return await connection.call(*args)
    except RedisError as error:
        if str(error).startswith(NO_PERMISSION):
            return None
        raise


# Finding the server of an address.


async def locate(address: Address) -> tuple[str, int]:
    """Return host and port to connect to now. Raises LayerUnavailable if no Sentinel or node of a cluster knows."""
    if address.nodes:
        return await _locate_in_cluster(address)
    if not address.sentinels:
        return address.host, address.port
    sentinels = Sentinels(address)
    try:
        return await sentinels.master()
    finally:
        sentinels.close()


class _Master(NamedTuple):
    epoch: int
    host: str
    port: int


class Sentinels:
    """The Sentinels of one service. Connections to them stay open until `close`."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connections: dict[tuple[str, int], RedisConnection] = {}

    async def master(self) -> tuple[str, int]:
        """Return host and port of the master. Raises LayerUnavailable if no Sentinel names one that it can reach.

        All Sentinels are asked, and the answer with the highest configuration epoch counts: a Sentinel that was cut
        off, or has just started, names an older master.
        """
        answers = await asyncio.gather(*map(self._ask, self._address.sentinels), return_exceptions=True)
        masters = [answer for answer in answers if isinstance(answer, _Master)]
        if not masters:
            places = zip(self._address.sentinels, answers, strict=True)
            reasons = "; ".join(f"{host}:{port}: {answer}" for (host, port), answer in places)
            raise LayerUnavailable(f"no Sentinel names a master of {self._address.service!r} ({reasons})")
        _, host, port = max(masters)
        return host, port

    def close(self) -> None:
        """End the connections."""
        for connection in self._connections.values():
            connection.abort("closed here")
        self._connections.clear()

    async def _ask(self, place: tuple[str, int]) -> _Master:
        """Ask one Sentinel. Raises LayerUnavailable, with the reason, if its answer cannot be used."""
        try:
            async with asyncio.timeout(SENTINEL_SECONDS):
                connection = self._connections.get(place)
                if connection is None or connection.lost.done():
                    connection = await self._connect(place)
                return _read_master(await connection.call("SENTINEL", "MASTER", self._address.service))
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
        await _authenticate(connection, self._address.sentinel_username, self._address.sentinel_password)
        return connection


def _read_master(reply: Any) -> _Master:
    """Parse the reply to SENTINEL MASTER. Raises LayerUnavailable for a master that cannot be reached."""
    try:
        fields = dict(zip(map(bytes.decode, reply[::2]), map(bytes.decode, reply[1::2]), strict=True))
        master = _Master(int(fields["config-epoch"]), fields["ip"], int(fields["port"]))
        flags = set(fields["flags"].split(","))
    except (ValueError, TypeError, KeyError) as error:
        raise LayerUnavailable(f"an answer that cannot be read ({error!r})") from None
    if "master" not in flags or flags & DOWN:
        raise LayerUnavailable(f"the master {master.host}:{master.port} is down, and there is no other yet")
    return master


class MasterWatch:
    """Ask the Sentinels each second for the master, so that connections to an old master that hangs are dropped.

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
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _watch(self) -> None:
        try:
            while True:
                await asyncio.sleep(SENTINEL_WATCH_SECONDS)
                try:
                    self._moved(await self._sentinels.master())
                except LayerUnavailable as error:
                    logger.debug("%s", error)
        finally:
            self._sentinels.close()


async def _locate_in_cluster(address: Address) -> tuple[str, int]:
    """Return host and port of the node that has the slot of `address.tag` now.

    Raises:
        LayerUnavailable: No node knows; the message has the reason of each.
    """
    slot = hash_slot(address.tag)
    errors = []
    for host, port in address.nodes:
        try:
            for first, last, master, *_ in await _cluster_slots(address, host, port):
                if first <= slot <= last:
                    return (master[0].decode() if master[0] else "") or host, int(master[1])
        except TimeoutError:
            errors.append(f"{host}:{port}: no answer within {NODE_SECONDS:g} s")
        except OSError as error:
            errors.append(f"{host}:{port}: {reason_of(error)}")
        except (RedisError, LayerUnavailable) as error:
            errors.append(f"{host}:{port}: {error}")
        except (AttributeError, TypeError, ValueError, IndexError):
            errors.append(f"{host}:{port}: an answer that cannot be read")
        else:
            errors.append(f"{host}:{port}: no node has slot {slot}")
    raise LayerUnavailable(f"no node of the cluster could be asked for slot {slot} ({'; '.join(errors)})")


async def _cluster_slots(address: Address, host: str, port: int) -> list[Any]:
    """Return a node's reply to CLUSTER SLOTS: first slot, last slot, and the nodes that have them, the master first."""
    loop = asyncio.get_running_loop()
    connection = RedisConnection(loop)
    try:
        async with asyncio.timeout(NODE_SECONDS):
            await loop.create_connection(lambda: connection, host, port, ssl=address.tls)
            await _authenticate(connection, address.username, address.password)
            slots: list[Any] = await connection.call("CLUSTER", "SLOTS")
            return slots
    finally:
        connection.abort("closed here")
