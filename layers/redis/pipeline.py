"""Everything that one process writes to Redis: one flush in flight; while it is, what comes gathers for the next.

No timers, and no delay at low load: the first write goes out at the end of the loop's turn. A flush carries one entry
per mailbox with all of its frames. What was in flight when a connection broke is written again on the next one: frames
between the servers carry sequence numbers and are taken once; what may not be repeated is failed instead. What Redis
refuses for now is tried again, and what comes meanwhile waits behind it. A Redis that has become a replica is left at
once, so that the next connection goes to the one that took its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from asgibus.layers.contract import Draft, Frame
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.client import Link, Outage
from asgibus.layers.redis.codec import Entries
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.connection import OnReply, RedisConnection, RedisError, pack_command
from asgibus.layers.redis.keys import Keys

logger = logging.getLogger("asgibus.layers")

ENTRY_BYTES = 1024 * 1024  # frames gathered for one entry: larger ones delay the others and cost memory in one piece
FRAME_OVERHEAD = 64  # bytes counted for a frame beside what it carries
RETRY_SECONDS = 0.5  # until a write that Redis refused for now (out of memory, loading, read-only) is tried again
CALL_SECONDS = 5.0  # for what an app asks of the layer: then it hears that Redis is away, and can say so to somebody
DRAIN_SECONDS = 2.0  # for what was written last to reach Redis: a process that stops does not wait for a lost Redis
# The first word of such a refusal, as a whole: BUSY is a script that runs too long, BUSYGROUP an answer like any other.
REFUSED_FOR_NOW = {"OOM", "LOADING", "READONLY", "MISCONF", "BUSY", "MASTERDOWN", "NOREPLICAS"}
# By a cluster: a slot is just moving, or has no master. That takes moments: what waits for nothing else waits for it.
MOVING = {"ASK", "TRYAGAIN", "CLUSTERDOWN"}

PAYLOAD_VERSION = 3  # first item of every payload; another one is a peer of another release

OnAcked = Callable[[str, list[bytes]], None]


class Refused(LayerUnavailable):
    """Redis is there, and refuses a command; `wrong_type`: as a key of it holds something else than ours do."""

    wrong_type = False


class Sender(Protocol):
    """Who posts frames: named in every entry, and told when a mailbox is gone."""

    mailbox: str

    def undelivered(self, mailbox: str) -> None: ...


class Command:
    """A packed command and who takes its reply.

    `repeatable`: it may be written twice. `patient`: when Redis refuses it for now, it waits. `behind`: it waits for
    all that was written before it and is refused for now.
    """

    __slots__ = ("behind", "data", "on_reply", "patient", "repeatable")

    def __init__(self, data: bytes, on_reply: OnReply, repeatable: bool, patient: bool) -> None:
        self.data = data
        self.on_reply = on_reply
        self.repeatable = repeatable
        self.patient = patient
        self.behind = False


class _Box:
    """The frames that wait for one mailbox, in entries of bounded size."""

    __slots__ = ("entries", "mailbox", "sender", "size")

    def __init__(self, sender: Sender, mailbox: str) -> None:
        self.sender = sender
        self.mailbox = mailbox
        self.entries: list[list[Frame | Draft]] = [[]]
        self.size = 0


class Writer:
    """The writing side of a process, on one link. All methods are called from its event loop."""

    def __init__(self, address: Address, keys: Keys, entries: Entries, name: str, outage: Outage) -> None:
        self._loop = asyncio.get_running_loop()
        self._keys = keys
        self._entries = entries
        self._counts = outage.counts
        self._link = Link(address, name, outage, self._up, self._down)
        self._boxes: dict[tuple[str, str], _Box] = {}
        self._commands: dict[Command, None] = {}  # in order, and quick to take one out
        self._acks: dict[tuple[str, OnAcked], list[bytes]] = {}
        self._in_flight: deque[Command] = deque()
        self._again: list[Command] = []
        self._scheduled = False  # a flush is on its way, or waits until Redis may take writes again
        self.refusal: str | None = None
        """Why Redis takes no writes for now; None while it does."""
        self._moved = False
        self._replica = False
        self.packed = 0
        """How often frames that were posted have been packed."""
        self._given_up = False  # waiting until all is written took too long; not to be waited for again
        self._closed = False
        self._drained: list[asyncio.Future[None]] = []
        self.run_id = ""
        self.on_up: set[Callable[[], None]] = set()
        """Called whenever the connection is there again, before anything is written to it."""

    async def open(self) -> None:
        """Connect. Raises LayerUnavailable."""
        await self._link.open()

    async def close(self) -> None:
        """End the connection; what was not written is lost, and its callers get LayerUnavailable."""
        self._closed = True
        await self._link.close()
        for command in (*self._in_flight, *self._again, *self._commands):
            command.on_reply(LayerUnavailable("the layer was closed"))
        self._in_flight.clear()
        self._again.clear()
        self._commands.clear()
        self._let_go()

    def post(self, sender: Sender, mailbox: str, frame: Frame | Draft, size: int) -> None:
        """Add a frame to the next entry for a mailbox."""
        box = self._boxes.get((sender.mailbox, mailbox))
        if box is None:
            box = self._boxes[sender.mailbox, mailbox] = _Box(sender, mailbox)
            self._schedule()
        elif box.size > ENTRY_BYTES:
            box.entries.append([])
            box.size = 0
        box.entries[-1].append(frame)
        box.size += size + FRAME_OVERHEAD

    def ack(self, key: str, entry_id: bytes, on_acked: OnAcked) -> None:
        """Acknowledge and delete an entry that was claimed from a shared channel, behind what was posted before.

        `on_acked(key, ids)` is called when Redis has done it.
        """
        self._acks.setdefault((key, on_acked), []).append(entry_id)
        self._schedule()

    def write(
        self,
        args: tuple[str | bytes | int, ...],
        on_reply: OnReply,
        *,
        repeatable: bool = True,
        patient: bool = True,
    ) -> Command:
        """Write any command; `on_reply` takes its reply, a RedisError or a LayerUnavailable.

        `repeatable=False`: fail rather than write it twice when the connection breaks meanwhile. `patient=False`: fail
        rather than wait when Redis refuses it for now. What is returned can be cancelled.
        """
        command = Command(pack_command(args), on_reply, repeatable, patient)
        self._commands[command] = None
        self._schedule()
        return command

    def cancel(self, command: Command) -> bool:
        """Take a command back that has not been written yet, without an answer to it. False if it is too late."""
        if command in self._commands:
            del self._commands[command]
            return True
        return False

    async def call(
        self,
        *args: str | bytes | int,
        repeatable: bool = True,
        behind: bool = False,
        until: float | None = None,
    ) -> Any:
        """Write any command and wait for its reply. Raises LayerUnavailable, also when Redis refuses it.

        `repeatable=False`: fail rather than write it twice, or wait until Redis takes it. `behind`: be answered behind
        all that was posted and written before, also what Redis refuses for now. `until`: fail at that time of the event
        loop's clock; it is not written any more then, and the error says so, or that this is unknown. Nor is it when
        the call is cancelled before.
        """
        if self._closed:
            raise LayerUnavailable("the layer was closed")
        future: asyncio.Future[Any] = self._loop.create_future()
        command = self.write(args, _into(future), repeatable=repeatable, patient=repeatable)
        command.behind = behind
        timer = None if until is None else self._loop.call_at(until, self._give_up, command, future)
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
            if timer is not None:
                timer.cancel()

    def _give_up(self, command: Command, future: asyncio.Future[Any]) -> None:
        if not future.done():
            future.set_exception(LayerUnavailable(self._take_back(command)))

    def _take_back(self, command: Command) -> str:
        """See that a command whose caller has given up is not written any more; how far it had come."""
        if self.cancel(command):
            return "Redis could not be reached in time: nothing was written"
        if command in self._again:
            self._again.remove(command)
            return "Redis refused it for too long: nothing was written"
        command.repeatable = command.patient = command.behind = False
        if self._link.connection is None and command in self._in_flight:
            self._in_flight.remove(command)
        return "Redis did not answer in time: it is unknown whether this was written"

    async def drain(self) -> None:
        """Wait until everything asked for so far has been written and answered; given up, and said so, after 2 s."""
        if self._given_up or not (self._boxes or self._commands or self._acks or self._in_flight or self._again):
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._drained.append(future)
        done, _ = await asyncio.wait([future], timeout=DRAIN_SECONDS)
        if not done:
            self._drained.remove(future)
            self._given_up = True
            logger.warning("what was written last did not reach Redis within %g s", DRAIN_SECONDS)

    async def posted(self, until: float) -> None:
        """Wait until what was posted is in Redis. Raises LayerUnavailable, at the time `until` at the latest."""
        await self.call("PING", until=until, behind=True)

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._link.connection is not None

    def _schedule(self) -> None:
        if not self._scheduled and not self._in_flight:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        connection = self._link.connection
        if self._in_flight or connection is None:
            return
        commands = self._gather()
        if not commands:
            self._let_go()
            return
        self._in_flight.extend(commands)
        self._write(connection, commands)

    def _gather(self) -> list[Command]:
        commands = self._again
        self._again = []
        if self._boxes:
            self.packed += 1
            boxes, self._boxes = self._boxes, {}
            for box in boxes.values():
                gone = self._on_posted(box.sender, box.mailbox)
                key = self._keys.mailbox(box.mailbox)
                for frames in box.entries:
                    try:
                        payload = self._entries.pack(key, (PAYLOAD_VERSION, box.sender.mailbox, frames))
                    except TypeError:  # whoever posted it is wrong, and the others must not suffer
                        logger.exception("frames for %s were dropped", box.mailbox)
                        continue
                    data = pack_command(("XADD", key, "NOMKSTREAM", "*", "b", payload))
                    commands.append(Command(data, gone, True, True))
        if self._commands:
            commands += self._commands
            self._commands = {}
        if self._acks:
            for (key, on_acked), ids in self._acks.items():
                acked = partial(_acked, on_acked, key, ids)
                commands.append(Command(pack_command(("XACK", key, "workers", *ids)), acked, True, True))
                commands.append(Command(pack_command(("XDEL", key, *ids)), _ignore, True, True))
            self._acks = {}
        return commands

    def _write(self, connection: RedisConnection, commands: list[Command]) -> None:
        data = commands[0].data if len(commands) == 1 else b"".join([command.data for command in commands])
        connection.write(data, [self._reply] * len(commands))

    def _reply(self, reply: Any) -> None:
        command = self._in_flight.popleft()
        if isinstance(reply, RedisError) and str(reply).startswith("MOVED"):
            self._again.append(command)  # it was not carried out
            self._moved = True
        elif isinstance(reply, RedisError) and _waits(command, str(reply).partition(" ")[0]):
            self._again.append(command)
            if str(reply).startswith("READONLY"):
                self._replica = True
            elif self.refusal is None:
                self.refusal = str(reply)
                logger.warning("Redis refuses writes for now (%s): trying again until it takes them", reply)
        elif command.behind and self._again:
            self._again.append(command)
        else:
            if isinstance(reply, RedisError) and str(reply).startswith("READONLY"):
                self._replica = True
            command.on_reply(reply)
        if self._in_flight:
            return
        if self._moved or self._replica:
            why = "its slot of the cluster has moved" if self._moved else "it has become a replica"
            self._moved = self._replica = False
            if self._link.connection is not None:
                self._link.connection.abort(why)
        elif self._again:
            self._scheduled = True  # so that nothing overtakes what waits
            self._loop.call_later(RETRY_SECONDS, self._flush)
        else:
            if self.refusal is not None:
                self.refusal = None
                logger.warning("Redis takes writes again")
            self._flush()

    def _let_go(self) -> None:
        """Nothing is left to be written."""
        for future in self._drained:
            if not future.done():
                future.set_result(None)
        self._drained.clear()

    def _up(self, connection: RedisConnection) -> None:
        self.run_id = connection.run_id
        self._given_up = False
        for on_up in self.on_up:
            on_up()
        if self._in_flight:
            self._counts["repeated write"] += len(self._in_flight)
            self._write(connection, list(self._in_flight))
        else:
            self._flush()

    def _down(self) -> None:
        once = [command for command in self._in_flight if not command.repeatable]
        again = (command for command in self._in_flight if command.repeatable)
        self._in_flight = deque((*self._again, *again))
        self._again = []
        for command in once:
            command.on_reply(LayerUnavailable("the connection to Redis broke: it is unknown whether this was written"))

    def _on_posted(self, sender: Sender, mailbox: str) -> OnReply:
        def posted(reply: Any) -> None:
            if reply is None:
                self._counts["undelivered"] += 1
                sender.undelivered(mailbox)
            elif isinstance(reply, Exception):
                self._entries.odd("frames refused", f"mailbox {mailbox}", f"frames were not written: {reply}")
                sender.undelivered(mailbox)

        return posted


class Store(Protocol):
    """A store, as used from one event loop: see `store.Attachment`."""

    address: Address
    keys: Keys
    entries: Entries
    outage: Outage
    writer: Writer


def _waits(command: Command, refusal: str) -> bool:
    """Whether it is tried again, now that Redis has refused it with that word."""
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
    if not isinstance(reply, LayerUnavailable):  # Redis refuses it only when it knows of no such claim any more
        on_acked(key, ids)


def _ignore(reply: Any) -> None:
    """An entry that was acknowledged twice, or trimmed meanwhile, or a client that has left, needs nothing more."""
