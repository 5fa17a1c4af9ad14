"""Write to Redis: while a flush is in flight, commands are gathered for the next.

There are no timers, and no delay at low load: the first write goes out at the end of the event loop's turn, or at once
if its caller wants that. A turn that takes long flushes several times, so that other processes can work meanwhile. A
flush has one entry per mailbox with all of its frames. Commands that were in flight when the connection broke are
written again on the next one, since frames carry sequence numbers; commands that may not be repeated fail. Commands
that Redis refuses for a while are tried again, and later ones wait for them. A server that has become a replica is left
at once, so that the next connection goes to the new master.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, Final, Protocol

from asgibus.layers.compiling import mypyc_attr
from asgibus.layers.contract import Draft, Frame
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.client import (
    OnReply,
    Outage,
    ReconnectingConnection,
    RedisConnection,
    RedisError,
    ignore_reply,
    pack_command,
    pack_command_list,
    pack_command_with,
)
from asgibus.layers.redis.codec import EntryCodec
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.keys import Keys
from asgibus.layers.versions import PAYLOAD

logger = logging.getLogger("asgibus.layers")

TURN_SECONDS: Final = 0.002  # of the event loop, after which a flush does not wait for the end of the turn
ENTRY_BYTES: Final = 1024 * 1024  # frames gathered for one entry: larger ones delay others, and need more memory
FRAME_OVERHEAD: Final = 64  # bytes counted for a frame in addition to what it carries
RETRY_SECONDS = 0.5  # until a command is tried again that Redis refused for a while
GIVE_UP_SECONDS = 0.05  # between two looks for calls whose time is over: a timer for each costs a tenth of a call
CALL_SECONDS = 5.0  # for a call of the app: then it raises, and the app can report that Redis is away
DRAIN_SECONDS = 2.0  # for the last writes to reach Redis: a process that stops does not wait for a lost Redis
# First words of refusals that pass, compared as a whole: BUSY is a long script, BUSYGROUP an answer like any other.
REFUSED_FOR_NOW = {"OOM", "LOADING", "READONLY", "MISCONF", "BUSY", "MASTERDOWN", "NOREPLICAS"}
# Refusals of a cluster while a slot migrates or has no master. They last moments, so every command is tried again.
MOVING = {"ASK", "TRYAGAIN", "CLUSTERDOWN"}

PAYLOAD_VERSION: Final = PAYLOAD.written  # first item of every payload

OnAcked = Callable[[str, list[bytes]], None]


@mypyc_attr(native_class=False)
class Refused(LayerUnavailable):
    """Redis refused a command. With `wrong_type`, a key has another type than the command needs."""

    wrong_type = False


class Sender(Protocol):
    """A mailbox that posts frames. Its name is in every entry, and it learns of missing mailboxes."""

    mailbox: str

    def undelivered(self, mailbox: str) -> None: ...


class Command:
    """A packed command and the callback for its reply."""

    __slots__ = ("data", "in_order", "on_reply", "patient", "repeatable")

    def __init__(self, data: bytes, on_reply: OnReply, repeatable: bool, patient: bool) -> None:
        self.data = data
        self.on_reply = on_reply
        self.repeatable = repeatable  # may be written twice
        self.patient = patient  # waits while Redis refuses it
        self.in_order = False  # waits for all commands before it that Redis refuses


class _Batch:
    """The frames that wait for one mailbox, in entries of bounded size."""

    __slots__ = ("entries", "mailbox", "sender", "size")

    def __init__(self, sender: Sender, mailbox: str) -> None:
        self.sender = sender
        self.mailbox = mailbox
        self.entries: list[list[Frame | Draft]] = [[]]
        self.size = 0


class Pipeline:
    """The commands of one event loop to one store, on one connection."""

    def __init__(self, address: Address, keys: Keys, entries: EntryCodec, outage: Outage) -> None:
        self._loop = asyncio.get_running_loop()
        self._mailbox_keys = keys.mailbox("")  # the beginning of the key of each mailbox
        self._entries = entries
        self._counts = outage.counts
        self._link = ReconnectingConnection(address, "asgibus-writer", outage, self._on_up, self._on_down)
        self._batches: dict[tuple[str, str], _Batch] = {}
        self._commands: dict[Command, None] = {}  # ordered, and quick to remove one
        self._acks: dict[tuple[str, OnAcked], list[bytes]] = {}
        self._in_flight: deque[Command] = deque()
        self._again: list[Command] = []  # refused, to be written again
        self._scheduled = False  # a flush is scheduled, at once or after a refusal
        self._flush_by = math.inf  # in this turn of the event loop, if a flush is scheduled for its end
        self.refusal: str | None = None
        """Why Redis refuses writes for now; None while it accepts them."""
        self._moved = False
        self._replica = False
        self.packed = 0
        """The number of times that posted frames were packed."""
        self._calls: dict[Command, tuple[float, asyncio.Future[Any]]] = {}  # when each gives up, by the loop's clock
        self._looks = False  # whether a look for calls whose time is over is scheduled
        self._given_up = False  # a drain took too long, and is not waited for again
        self._closed = False
        self._drained: list[asyncio.Future[None]] = []
        self.run_id = ""
        self.on_up: set[Callable[[], None]] = set()
        """Called for each new connection, before anything is written to it."""

    async def open(self) -> None:
        """Connect. Raises LayerUnavailable."""
        await self._link.open()

    async def close(self) -> None:
        """End the connection. Commands that were not answered fail with LayerUnavailable."""
        self._closed = True
        await self._link.close()
        for command in (*self._in_flight, *self._again, *self._commands):
            command.on_reply(LayerUnavailable("the layer was closed"))
        self._in_flight.clear()
        self._again.clear()
        self._commands.clear()
        self._notify_drained()

    def post(self, sender: Sender, mailbox: str, frame: Frame | Draft, size: int) -> None:
        """Add a frame to the next entry for a mailbox."""
        batch = self._batches.get((sender.mailbox, mailbox))
        if batch is None:
            batch = self._batches[sender.mailbox, mailbox] = _Batch(sender, mailbox)
            self.schedule()
        elif batch.size > ENTRY_BYTES:
            batch.entries.append([])
            batch.size = 0
        batch.entries[-1].append(frame)
        batch.size += size + FRAME_OVERHEAD
        if perf_counter() > self._flush_by:
            self._flush_early()

    def ack(self, key: str, entry_id: bytes, on_acked: OnAcked) -> None:
        """Acknowledge and delete a claimed entry of a work queue, after everything that was posted before.

        `on_acked(key, ids)` is called when Redis has done so.
        """
        self._acks.setdefault((key, on_acked), []).append(entry_id)
        self.schedule()

    def write(
        self,
        args: tuple[str | bytes | int, ...],
        on_reply: OnReply,
        *,
        repeatable: bool = True,
        patient: bool = True,
    ) -> Command:
        """Write a command.

        Args:
            args: The command.
            on_reply: Called with the reply, which may be a RedisError, or a LayerUnavailable if there is none.
            repeatable: Whether the command may be written again if the connection breaks. If not, it fails then.
            patient: Whether the command waits while Redis refuses it. If not, it fails then.

        Returns:
            The command, for `cancel`.
        """
        return self.write_packed(pack_command(args), on_reply, repeatable=repeatable, patient=patient)

    def write_packed(self, data: bytes, on_reply: OnReply, *, repeatable: bool = True, patient: bool = True) -> Command:
        """Write a packed command: see `write`."""
        command = Command(data, on_reply, repeatable, patient)
        self._commands[command] = None
        self._flush_soon()
        return command

    def cancel(self, command: Command) -> bool:
        """Remove a command that has not been written yet. Return False if it is too late."""
        if command in self._commands:
            del self._commands[command]
            return True
        return False

    async def call(
        self,
        *args: str | bytes | int,
        repeatable: bool = True,
        in_order: bool = False,
        at_once: bool = False,
        until: float | None = None,
    ) -> Any:
        """Write a command and wait for its reply. A cancelled call does not write its command any more.

        Args:
            args: The command.
            repeatable: Whether the command may be written again if the connection breaks, and wait while Redis refuses
                it. If not, the call fails then.
            in_order: Wait for everything that was posted and written before, also for commands that Redis refuses.
            at_once: Do not wait for the end of the event loop's turn, which costs a tenth of such a call.
            until: When to give up, by the event loop's clock, or up to 0.05 s later. The error says whether the command
                was written.

        Returns:
            The reply.

        Raises:
            Refused: Redis refused the command.
            LayerUnavailable: There was no reply in time.
        """
        if self._closed:
            raise LayerUnavailable("the layer was closed")
        future: asyncio.Future[Any] = self._loop.create_future()
        command = Command(pack_command(args), _into(future), repeatable, repeatable)
        command.in_order = in_order
        self._commands[command] = None
        if at_once and not self._in_flight and not self._again:
            self._flush()
        else:
            self._flush_soon()
        if until is not None:
            self._calls[command] = (until, future)
            if not self._looks:
                self._looks = True
                self._loop.call_later(GIVE_UP_SECONDS, self._give_up)
        try:
            return await future
        except RedisError as error:
            refused = Refused(f"Redis refused {args[0]!r}: {error}")
            refused.wrong_type = "WRONGTYPE" in str(error)
            raise refused from error
        except asyncio.CancelledError:
            self._take_back(command)
            raise
        finally:
            self._calls.pop(command, None)

    def _give_up(self) -> None:
        """End the calls whose time is over."""
        now = self._loop.time()
        for command, (until, future) in list(self._calls.items()):
            if until <= now and not future.done():
                future.set_exception(LayerUnavailable(self._take_back(command)))
        self._looks = bool(self._calls)
        if self._looks:
            self._loop.call_later(GIVE_UP_SECONDS, self._give_up)

    def _take_back(self, command: Command) -> str:
        """Do not write a command again whose caller has given up. Return what is known about it."""
        if self.cancel(command):
            return "Redis could not be reached in time: nothing was written"
        if command in self._again:
            self._again.remove(command)
            return "Redis refused it for too long: nothing was written"
        command.repeatable = command.patient = command.in_order = False
        if self._link.connection is None and command in self._in_flight:
            self._in_flight.remove(command)
        return "Redis did not answer in time: it is unknown whether this was written"

    async def drain(self) -> None:
        """Wait until everything written so far is answered. Give up after 2 s, with a warning."""
        if self._given_up or not (self._batches or self._commands or self._acks or self._in_flight or self._again):
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._drained.append(future)
        done, _ = await asyncio.wait([future], timeout=DRAIN_SECONDS)
        if not done:
            self._drained.remove(future)
            self._given_up = True
            logger.warning("the last writes did not reach Redis within %g s", DRAIN_SECONDS)

    async def posted(self, until: float) -> None:
        """Wait until everything posted so far is in Redis. Raises LayerUnavailable, at `until` at the latest."""
        await self.call("PING", until=until, in_order=True)

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._link.connection is not None

    @property
    def direct_id(self) -> int:
        """The id of the connection in Redis; 0 without one, and if a proxy may be between."""
        connection = self._link.connection
        return connection.client_id if connection is not None and connection.direct else 0

    def schedule(self) -> None:
        """Schedule a flush, behind the callbacks that are scheduled now, unless one is scheduled or in flight."""
        if not self._scheduled and not self._in_flight:
            self._scheduled = True
            self._flush_by = perf_counter() + TURN_SECONDS
            self._loop.call_soon(self._flush)

    def _flush_soon(self) -> None:
        """Flush at the end of this turn of the event loop, or now if the turn takes long."""
        self.schedule()
        if perf_counter() > self._flush_by:
            self._flush_early()

    def _flush_early(self) -> None:
        """Flush in the middle of a turn of the event loop that takes long, so that others can work meanwhile."""
        self._flush_by = perf_counter() + TURN_SECONDS
        connection = self._link.connection
        if connection is not None:
            commands = self._gather()
            self._in_flight.extend(commands)
            self._write(connection, commands, at_once=True)

    def _flush(self) -> None:
        self._scheduled = False
        self._flush_by = math.inf
        connection = self._link.connection
        if self._in_flight or connection is None:
            return
        commands = self._gather()
        if not commands:
            self._notify_drained()
            return
        self._in_flight.extend(commands)
        self._write(connection, commands)

    def _gather(self) -> list[Command]:
        commands = self._again
        self._again = []
        if self._batches:
            self.packed += 1
            batches, self._batches = self._batches, {}
            for batch in batches.values():
                gone = self._on_posted(batch.sender, batch.mailbox)
                key = self._mailbox_keys + batch.mailbox
                for frames in batch.entries:
                    try:
                        payload = self._entries.pack(key, (PAYLOAD_VERSION, batch.sender.mailbox, frames))
                    except TypeError:  # a fault of the sender of these frames alone
                        logger.exception("frames for %s were dropped", batch.mailbox)
                        continue
                    data = pack_command_with(("XADD", key, "NOMKSTREAM", "*", "b"), payload)
                    commands.append(Command(data, gone, True, True))
        if self._commands:
            commands += self._commands
            self._commands = {}
        if self._acks:
            for (key, on_acked), ids in self._acks.items():
                acked = partial(_acked, on_acked, key, ids)
                commands.append(Command(pack_command_list(("XACK", key, "workers"), ids), acked, True, True))
                commands.append(Command(pack_command_list(("XDEL", key), ids), ignore_reply, True, True))
            self._acks = {}
        return commands

    def _write(self, connection: RedisConnection, commands: list[Command], *, at_once: bool = False) -> None:
        data = commands[0].data if len(commands) == 1 else b"".join([command.data for command in commands])
        connection.write(data, [self._reply] * len(commands), at_once=at_once)

    def _reply(self, reply: Any) -> None:
        command = self._in_flight.popleft()
        if (isinstance(reply, RedisError) and self._is_to_repeat(command, reply)) or (command.in_order and self._again):
            self._again.append(command)
        else:
            command.on_reply(reply)
        if self._in_flight:
            return
        if self._moved or self._replica:
            why = "its slot of the cluster has moved" if self._moved else "it has become a replica"
            self._moved = self._replica = False
            if self._link.connection is not None:
                self._link.connection.abort(why)
        elif self._again:
            self._scheduled = True  # so that no later command is written before these
            self._loop.call_later(RETRY_SECONDS, self._flush)
        else:
            if self.refusal is not None:
                self.refusal = None
                logger.warning("Redis takes writes again")
            self._flush()

    def _is_to_repeat(self, command: Command, error: Exception) -> bool:
        """Note what a refusal says about the server. Return whether the command is written again."""
        text = str(error)
        if text.startswith("MOVED"):  # it was not executed
            self._moved = True
            return True
        waits = _waits(command, text.partition(" ")[0])
        if text.startswith("READONLY"):
            self._replica = True
        elif waits and self.refusal is None:
            self.refusal = text
            logger.warning("Redis refuses writes for now (%s): trying again until it takes them", text)
        return waits

    def _notify_drained(self) -> None:
        """Wake the calls of `drain`: everything is written."""
        for future in self._drained:
            if not future.done():
                future.set_result(None)
        self._drained.clear()

    def _on_up(self, connection: RedisConnection) -> None:
        self.run_id = connection.run_id
        self._given_up = False
        for on_up in self.on_up:
            on_up()
        if self._in_flight:
            self._counts["repeated write"] += len(self._in_flight)
            self._write(connection, list(self._in_flight))
        else:
            self._flush()

    def _on_down(self) -> None:
        failed = [command for command in self._in_flight if not command.repeatable]
        again = (command for command in self._in_flight if command.repeatable)
        self._in_flight = deque((*self._again, *again))
        self._again = []
        for command in failed:
            command.on_reply(LayerUnavailable("the connection to Redis broke: it is unknown whether this was written"))

    def _on_posted(self, sender: Sender, mailbox: str) -> OnReply:
        def posted(reply: Any) -> None:
            if reply is None:
                self._counts["undelivered"] += 1
                sender.undelivered(mailbox)
            elif isinstance(reply, Exception):
                self._entries.log_unexpected(
                    "frames refused", f"mailbox {mailbox}", f"frames were not written: {reply}"
                )
                sender.undelivered(mailbox)

        return posted


class Store(Protocol):
    """A store, as used from one event loop: see `store.StoreClient`."""

    address: Address
    keys: Keys
    entries: EntryCodec
    outage: Outage
    pipeline: Pipeline


def call_until() -> float:
    """Return when a call that does not send gives up, by the event loop's clock."""
    return asyncio.get_running_loop().time() + CALL_SECONDS


def _waits(command: Command, refusal: str) -> bool:
    """Return whether a command is tried again after a refusal with that first word."""
    return refusal in MOVING or (command.patient and refusal in REFUSED_FOR_NOW)


def _into(future: asyncio.Future[Any]) -> Callable[[Any], None]:
    def reply(value: Any) -> None:
        if future.done():
            return
        if isinstance(value, Exception):
            future.set_exception(value)
        else:
            future.set_result(value)

    return reply


def _acked(on_acked: OnAcked, key: str, ids: list[bytes], reply: Any) -> None:
    if not isinstance(reply, LayerUnavailable):  # Redis refuses only if it does not know the claim any more
        on_acked(key, ids)
