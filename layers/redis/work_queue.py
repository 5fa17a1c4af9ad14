"""Work queues: a process offers entries, such as new connections, and another process claims each of them.

A work queue is a stream with one consumer group, `workers`. An entry stays pending under the name of its consumer until
it is acknowledged. So an entry whose reply was lost with the connection is found again, entries that were not given out
are requeued at the end, and another process takes over the entries of a dead one, under a second consumer name, so that
they can be told apart.

An entry can also be offered to one process alone, by a key (`assignments`). Each process that claims by key reads a
stream of its own beside the shared ones.

An offer that is written twice would be served twice. When the connection breaks while an offer is in flight, a script
looks for its entry, and writes it again only if it is missing. An entry that was claimed and acknowledged is missing,
too. So whoever claims an entry that was written again asks the producer first, which knows by then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from asgibus.layers.contract import Handler
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.leases import Beat
from asgibus.layers.names import claimant_channel
from asgibus.layers.offers import AffinityKey, Claim, Offer
from asgibus.layers.redis import scripts
from asgibus.layers.redis.assignments import ONLY_KNOWN, Assignments
from asgibus.layers.redis.client import (
    BLOCK_SECONDS,
    ReconnectingConnection,
    RedisConnection,
    RedisError,
    ignore_reply,
    log_refusal,
    pack_command,
    pack_command_once,
    pack_command_with,
)
from asgibus.layers.redis.codec import MOST_RELEASES, Unreadable
from asgibus.layers.redis.pipeline import Command, Store

logger = logging.getLogger("asgibus.layers")

OFFERS_AT_ONCE = 100  # offers that one script looks for: it holds up Redis for about a millisecond
SCANNED_ENTRIES = 10_000  # entries, newest first, that a script scans for an offer whose id is unknown
CLOCK_STEP_MS = 60_000  # by which Redis's clock may step back, or lag after a failover, without an offer being missed
LOST_SECONDS = 1.0  # until an offer is reported as lost: a post of its consumer may be unread yet

NO_GROUP: Final = ("NOGROUP", "UNBLOCKED")  # the stream does not exist yet, or vanished during a blocked read
ORPHANS = "orphans"  # suffix of the consumer name for entries that were taken over
ORPHANS_AT_ONCE = 1000  # entries that one script takes over: it holds up Redis for a millisecond
ORPHANS_READ = 100  # entries whose payloads are read in one go
CLOCKS_DIFFER_SECONDS = 1  # between a Redis and the replica that takes over from it
UNBLOCK_SECONDS = 0.05  # until a read that was not blocked yet when it should have been ended is ended again

OnLost = Callable[[], None]
OnAssigned = Callable[[Offer], None]


class _Entry:
    """The stream entry of an offer."""

    __slots__ = ("command", "generation", "id", "key", "payload", "settled", "since")

    def __init__(self, key: str, payload: bytes, since: int) -> None:
        self.key = key  # empty until the claimant of an offer by key is known
        self.payload = payload
        self.since = since  # a time before it was written, in ms by Redis's clock
        self.generation = 0  # that of the producer when it was known last that no process can have had it unnoticed
        self.command: Command | None = None  # writes it, until the reply
        self.id = b""  # once it is known
        self.settled = False  # neither in flight nor in doubt


class Producer:
    """Offer entries to work queues, for the process of one mailbox."""

    def __init__(self, store: Store, mailbox: str, assignments: Assignments, now: Callable[[], int]) -> None:
        """Let `now` return Redis's time at the last heartbeat, in ms."""
        self._assignments = assignments
        self._loop = asyncio.get_running_loop()
        self._pipeline = store.pipeline
        self._queues = store.keys.shared("")  # the beginning of the key of each queue
        self._entries = store.entries
        self._mailbox_key = store.keys.mailbox(mailbox)
        self._outage = store.outage
        self._now = now
        self._run_id = store.pipeline.run_id
        self._generation = 0  # increased when Redis was replaced, or may have lost data
        self._in_doubt: dict[Offer, OnLost | None] = {}
        self._unassigned: dict[Offer, tuple[AffinityKey, float, OnAssigned]] = {}  # whose replies were lost
        self._scheduled = False
        self._closed = False
        store.pipeline.on_up.add(self._on_up)

    def offer(self, channel: str, entry: Any, once: bool) -> Offer:
        """Offer an entry: see `Bus.offer`."""
        key = self._queues + channel
        payload = self._entries.pack(key, entry)
        state = _Entry(key, payload, max(0, self._now() - CLOCK_STEP_MS))
        state.generation = self._generation
        offer = Offer(channel, once, state=state, size=len(payload))
        state.command = self._pipeline.write_packed(
            pack_command_with(("XADD", key, "*", "b"), payload),
            partial(self._on_written, offer, state),
            repeatable=False,
        )
        return offer

    def offer_by_key(
        self, key: AffinityKey, lifetime: float, entry: Any, on_assigned: OnAssigned, once: bool, known: bool
    ) -> Offer:
        """Offer an entry to the process of a key: see `Bus.offer_by_key`."""
        payload = self._entries.pack(self._assignments.place(key.pool), entry)
        state = _Entry("", payload, max(0, self._now() - CLOCK_STEP_MS))
        state.generation = self._generation
        offer = Offer("", once, state=state, size=len(payload))
        state.command = self._assignments.offer(
            key,
            lifetime,
            partial(self._on_offered, offer, state, key, lifetime, on_assigned),
            payload=payload,
            prefer=ONLY_KNOWN if known else "",
            repeatable=False,
        )
        return offer

    def take_back(self, offer: Offer, on_result: Callable[[bool], None]) -> None:
        """Remove an offer whose claimant is dead: see `Bus.take_back`."""
        state: _Entry | None = offer.state
        offer.withdrawn = True
        offer.state = None
        if state is None or not state.id:
            self._loop.call_soon(on_result, False)
        else:
            arguments = state.key, state.id, state.payload
            self._pipeline.write(("EVAL", scripts.WITHDRAW, 1, *arguments), lambda reply: on_result(reply == 1))

    def withdraw(self, offer: Offer) -> bool:
        """Take an offer back: see `Bus.withdraw`."""
        offer.withdrawn = True
        state: _Entry | None = offer.state
        if state is None:
            return False
        if state.command is not None and self._pipeline.cancel(state.command):
            offer.state = state.command = None  # so that offers do not pile up here while Redis is away
            return True
        if not state.settled:
            return False  # it is deleted once its id is known
        offer.state = None
        self._delete(state)
        return self._outage.available and state.generation == self._generation

    def offer_again(self, offer: Offer, on_lost: OnLost) -> None:
        """Offer an entry again if Redis has lost it: see `Bus.offer_again`."""
        state: _Entry | None = offer.state
        if state is not None and state.command is None and state.key and not self._closed:
            state.settled = False
            self._in_doubt[offer] = on_lost
            self._check_soon()

    def export(self, offer: Offer) -> dict[str, Any] | None:
        """Return what another process needs to withdraw or repeat an offer: see `Bus.export_offer`."""
        state: _Entry | None = offer.state
        if state is None:
            return None
        if not state.key:
            raise LayerUnavailable("the reply to an offer by key was lost")
        return {
            "claimant": offer.claimant,
            "channel": offer.channel,
            "once": offer.once,
            "size": offer.size,
            "key": state.key,
            "payload": state.payload,
            "since": state.since,
            "id": state.id,
            "settled": state.settled,
            "current": state.generation == self._generation,
        }

    def restore(self, values: Mapping[str, Any]) -> Offer:
        """Return an offer of another process: see `Bus.restore_offer`."""
        state = _Entry(values["key"], values["payload"], values["since"])
        state.generation = self._generation if values["current"] else self._generation - 1
        state.id, state.settled = values["id"], values["settled"]
        offer = Offer(values["channel"], values["once"], state=state, size=values["size"])
        offer.claimant = values["claimant"]
        if not state.settled:
            self._in_doubt[offer] = None
            self._check_soon()
        return offer

    def data_may_be_lost(self) -> None:
        """Note that this process's mailbox may have lost posts; to be called before the mailbox is made again."""
        self._generation += 1

    def close(self) -> None:
        """Offer nothing again."""
        self._closed = True
        self._pipeline.on_up.discard(self._on_up)
        self._in_doubt.clear()
        self._unassigned.clear()

    def _on_offered(
        self, offer: Offer, state: _Entry, key: AffinityKey, lifetime: float, on_assigned: OnAssigned, reply: Any
    ) -> None:
        state.command = None
        found = self._assignments.read(key, reply)
        if found is not None:
            state.generation = self._generation
            self._assign(offer, state, *found)
            on_assigned(offer)
        elif isinstance(reply, RedisError):  # it was logged, and the entry is what the script writes last
            self._assign(offer, state, "", b"")
            on_assigned(offer)
        elif not self._closed:
            self._unassigned[offer] = key, lifetime, on_assigned
            self._check_soon()

    def _assign(self, offer: Offer, state: _Entry, claimant: str, entry_id: bytes) -> None:
        """Note who may claim an offer, and the id of its entry, each empty if there is none."""
        offer.claimant = claimant
        if not claimant:
            offer.state = None
            return
        offer.channel = claimant_channel(claimant)
        state.key = self._queues + offer.channel
        if entry_id:
            self._settle(offer, state, entry_id)

    def _find_claimants(self) -> None:
        """Find the claimants of offers whose replies were lost, to look for their entries."""
        unassigned, self._unassigned = self._unassigned, {}
        for offer, (key, lifetime, on_assigned) in unassigned.items():
            self._assignments.offer(key, lifetime, partial(self._on_found, offer, key, on_assigned))

    def _on_found(self, offer: Offer, key: AffinityKey, on_assigned: OnAssigned, reply: Any) -> None:
        found = self._assignments.read(key, reply)
        state: _Entry | None = offer.state
        # A process that had claimed it is gone if there is none: then nobody knows whether it was handled.
        if found is None or state is None or self._closed or (offer.once and not found[0]):
            return
        self._assign(offer, state, found[0], b"")
        if found[0]:
            self._in_doubt[offer] = None
            self._check_soon()
        on_assigned(offer)

    def _on_written(self, offer: Offer, state: _Entry, reply: Any) -> None:
        state.command = None
        if isinstance(reply, bytes):
            state.generation = self._generation
            self._settle(offer, state, reply)
        elif isinstance(reply, RedisError):
            state.settled = True
            logger.error("an offer on %s was not written: %s", offer.channel, reply)
        elif not self._closed:
            self._in_doubt[offer] = None
            self._check_soon()

    def _settle(self, offer: Offer, state: _Entry, entry_id: bytes) -> None:
        state.id = entry_id
        state.settled = True
        if offer.withdrawn:
            offer.state = None
            self._delete(state)

    def _on_up(self) -> None:
        if self._pipeline.run_id != self._run_id or not self._run_id:
            self._run_id = self._pipeline.run_id
            self._generation += 1
        self._check_soon()

    def _check_soon(self) -> None:
        if (self._in_doubt or self._unassigned) and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._check)

    def _check(self) -> None:
        self._scheduled = False
        if not self._pipeline.connected:
            return  # until it is
        self._find_claimants()
        by_key: dict[str, list[tuple[Offer, OnLost | None]]] = {}
        for offer, on_lost in self._in_doubt.items():
            if offer.taken:
                offer.state = None
            else:
                by_key.setdefault(offer.state.key, []).append((offer, on_lost))
        self._in_doubt.clear()
        for key, offers in by_key.items():
            for start in range(0, len(offers), OFFERS_AT_ONCE):
                some = offers[start : start + OFFERS_AT_ONCE]
                self._outage.counts["offer looked for"] += len(some)
                since = f"{min(offer.state.since for offer, _ in some)}-0"
                arguments: list[str | bytes | int] = [key, self._mailbox_key, since, SCANNED_ENTRIES, self._run_id]
                for offer, _ in some:
                    arguments += offer.state.id, offer.state.payload, self._when(offer)
                self._pipeline.write(
                    ("EVAL", scripts.REPEAT_OFFERS, 2, *arguments), partial(self._on_checked, some, self._generation)
                )

    def _when(self, offer: Offer) -> str:
        """Return when an offer may be written again: see `repeat_offers.lua`."""
        if offer.withdrawn:
            return "never"
        if not offer.once:
            return "always"
        return "safe" if offer.state.generation == self._generation and not offer.state.id else "never"

    def _on_checked(self, offers: list[tuple[Offer, OnLost | None]], generation: int, reply: Any) -> None:
        if not isinstance(reply, list):
            if isinstance(reply, RedisError):
                logger.error("offers in doubt cannot be checked: %s", reply)
            return
        for (offer, on_lost), entry_id in zip(offers, reply, strict=True):
            state: _Entry | None = offer.state
            if state is None:
                continue
            if entry_id:
                if offer.once:  # others may have been claimed, and written again
                    state.generation = generation
                self._settle(offer, state, entry_id)
            elif offer.withdrawn:
                offer.state = None
            elif on_lost is not None:
                self._loop.call_later(LOST_SECONDS, self._lose, offer, on_lost)

    def _lose(self, offer: Offer, on_lost: OnLost) -> None:
        if not (offer.taken or offer.withdrawn or self._closed):
            offer.state = None
            self._outage.counts["offer lost"] += 1
            on_lost()

    def _delete(self, state: _Entry) -> None:
        """Delete an entry unless a process has claimed it, which still has to acknowledge it."""
        if state.id:
            self._pipeline.write(("EVAL", scripts.WITHDRAW, 1, state.key, state.id, state.payload), log_refusal)


class Consumer:
    """Claim entries of work queues, for the process of one mailbox, which is its consumer name."""

    def __init__(self, store: Store, mailbox: str, handler: Handler, on_wrong_type: Callable[[], None]) -> None:
        """Prepare to claim; the first claim connects.

        Args:
            store: The store of the queues.
            mailbox: The mailbox of this process.
            handler: Unpacks the entries, and gets each claim that is taken over from a dead process.
            on_wrong_type: Called when the key of a queue has another type.
        """
        self._loop = asyncio.get_running_loop()
        self._queues = store.keys.shared("")  # the beginning of the key of each queue
        self._entries = store.entries
        self._pipeline = store.pipeline
        self._counts = store.outage.counts
        self._name = mailbox
        self._handler = handler
        self._on_wrong_type = on_wrong_type
        self._link = ReconnectingConnection(store.address, f"{mailbox}claims", store.outage, self._on_up)
        self._opened = False
        self._stopped = False
        self._waiting: asyncio.Future[list[Claim]] | None = None  # of the running call of `claim`
        self._channels: dict[str, str] = {}  # all that were ever asked for, by key
        self._asked: tuple[str, ...] = ()  # the channels of the running call of `claim`
        self._own = claimant_channel(mailbox)  # what is offered to this process alone
        self._own_key = ""  # its key, if this process claims by key
        self._own_place = ""  # of its entries: see `EntryCodec`
        self._rereads = False  # whether the running read lacks that key
        self._turns: list[str] = []  # their keys, in the order in which they are read
        self._wait: float | None = None  # for how many seconds that call waits for an entry; None without a limit
        self._limit = 0
        self._probed = 0  # how many of the keys were read alone and were empty
        self._held: set[tuple[str, bytes]] = set()  # keys and ids of entries that are claimed here
        self._run_id = ""  # of the Redis server from which entries were claimed last
        self._stale_before = 0  # in ms by its clock: older entries may have been handled already
        self._recover = False  # whether the next reply may hold entries that were claimed at any time
        self._acked_meanwhile: list[tuple[str, bytes]] = []
        self._took_over = False
        self._unread: set[str] = set()  # keys where entries were taken over and not read yet
        self._ack_callback = self._on_acked  # one object, by which the pipeline gathers acknowledgements
        self.unreadable = Unreadable()
        self._given_out = 0  # claims of the last batch
        self._released = 0  # those of them that were released
        self._refused = ""  # why the last entry could not be read
        self._pausing: asyncio.TimerHandle | None = None  # while nothing is claimed

    async def claim(self, channels: Sequence[str], limit: int, wait: float | None = None) -> list[Claim]:
        """Claim entries: see `Bus.claim`."""
        if self._stopped:
            return []
        if self._asked != tuple(channels):
            self._asked = tuple(channels)
            asked = {self._queues + channel: channel for channel in channels}
            if self._own_key:
                asked[self._own_key] = self._own
            self._channels |= asked
            self._turns = [*asked]
        self._limit = limit
        self._wait = wait
        self._probed = 0
        self._waiting = self._loop.create_future()
        self._pause_if_unreadable()
        if not self._opened:
            self._opened = True
            self._link.start()
        elif self._link.connection is not None and self._pausing is None:
            self._read(self._link.connection)
        return await self._waiting

    def stop(self) -> None:
        """Make the running call of `claim` return, and later ones: see `Bus.stop_claiming`."""
        self._stopped = True
        self._end_read()

    def claim_by_key(self, place: str) -> None:
        """Claim what is offered to this process alone, too, from now on. Its entries are of that place."""
        if self._own_key or self._stopped:
            return
        self._own_key = self._queues + self._own
        self._own_place = place
        self._channels[self._own_key] = self._own
        if self._asked:
            self._turns = [*self._turns, self._own_key]
        self._rereads = True
        self._read_again()

    def _read_again(self) -> None:
        """End the blocked read, so that the next one has all keys."""
        if self._rereads and not self._stopped and self._waiting is not None and not self._waiting.done():
            if self._link.connection is not None and self._pausing is None:
                self._pipeline.write(("CLIENT", "UNBLOCK", self._link.connection.client_id), ignore_reply)
            asyncio.get_running_loop().call_later(UNBLOCK_SECONDS, self._read_again)

    @property
    def stopped(self) -> bool:
        """Whether this process claims nothing any more."""
        return self._stopped

    @property
    def claims_by_key(self) -> bool:
        """Whether this process claims what is offered to it alone."""
        return bool(self._own_key) and not self._stopped

    def unpack_declined(self, payloads: Sequence[bytes]) -> list[Any]:
        """Return the entries that were offered to this process alone, and that it has not claimed."""
        entries = []
        for payload in payloads:
            try:
                entries.append(self._entries.unpack(self._own_place, payload))
            except ValueError as error:
                self._entries.log_rejected(f"shared channel {self._own_key}", "not claimed", error)
        return entries

    def ack(self, claim: Claim) -> None:
        """Acknowledge a claim: see `Bus.done`."""
        self._pipeline.ack(self._queues + claim.channel, claim.id, self._ack_callback)

    def release(self, claim: Claim, why: str) -> None:
        """Give a claim back: see `Bus.release`."""
        self._release(self._queues + claim.channel, claim.id, why)

    @property
    def active(self) -> bool:
        """Whether this process claims."""
        return bool(self._channels) and not self._stopped

    @property
    def keys(self) -> list[str]:
        """The keys of the work queues."""
        return list(self._channels)

    async def list_claims(self) -> dict[str, list[str]]:
        """Return the names of the other consumers, by key: see `OrphanClaimer`."""
        keys = list(self._channels)
        replies = await asyncio.gather(*(self._pipeline.call("EVAL", scripts.CONSUMERS, 1, key) for key in keys))
        return {
            key: [name for name in self._entries.valid_names(key, reply) if not name.startswith(self._name)]
            for key, reply in zip(keys, replies, strict=True)
        }

    async def claim_orphans(self, claims: Mapping[str, Sequence[str]], beat: Beat) -> bool:
        """Take over the entries of dead consumers: see `OrphanClaimer`."""
        name = self._name + ORPHANS
        for key, consumers in claims.items():
            if dead := [each for each in consumers if beat.is_dead(_owner(each))]:
                self._took_over = True
                self._unread.add(key)
                while await self._pipeline.call("EVAL", scripts.TAKE_OVER, 1, key, name, ORPHANS_AT_ONCE, *dead):
                    pass
            if key in self._unread:
                await self._read_orphans(key, name)
        return True

    async def _read_orphans(self, key: str, name: str) -> None:
        start = b"0"
        full = True
        while full:
            arguments = ("GROUP", "workers", name, "COUNT", ORPHANS_READ, "STREAMS", key, start)
            entries = (await self._pipeline.call("XREADGROUP", *arguments))[0][1]
            full = len(entries) == ORPHANS_READ
            # Entries that cannot be read here stay under this name: who takes over from this process may read them.
            for claim in self._take(key, entries, _keep_unreadable):
                self._counts["orphan"] += 1
                self._handler.orphaned(claim)
            if full:
                start = entries[-1][0]
        self._unread.discard(key)

    def drop_unless(self, run_id: str) -> None:
        """Drop the connection unless it is to the Redis server with this run id."""
        self._link.drop_unless(run_id)

    async def close(self) -> None:
        """Stop reading, requeue what was not given out, and leave the consumer group if all is acknowledged."""
        if self._pausing is not None:
            self._pausing.cancel()
        await self._link.close()
        if self._own_key and self._stopped:
            self._pipeline.write(("UNLINK", self._own_key), ignore_reply)
            del self._channels[self._own_key]
        if not self._held:
            for key in self._channels:
                self._pipeline.write(("EVAL", scripts.RELEASE_CONSUMER, 1, key, self._name), ignore_reply)
        if self._took_over:
            for key in self._channels:
                self._pipeline.write(("EVAL", scripts.REMOVE_CONSUMER, 1, key, self._name + ORPHANS), ignore_reply)

    def _on_up(self, connection: RedisConnection) -> None:
        self._recover = True
        if not connection.run_id or connection.run_id != self._run_id:
            self._run_id = connection.run_id
            connection.write(pack_command(("TIME",)), (self._on_new_server,))
        if self._waiting is not None and not self._waiting.done() and self._pausing is None:
            self._read(connection)

    def _on_new_server(self, reply: Any) -> None:
        """Take older entries for stale: a replica that took over may not know what was acknowledged last."""
        if not isinstance(reply, RedisError):
            self._stale_before = (int(reply[0]) + CLOCKS_DIFFER_SECONDS) * 1000

    def _pause_if_unreadable(self) -> None:
        """Pause if nothing of the last batch could be read."""
        given_out, released = self._given_out, self._released
        self._given_out = self._released = 0
        if released and released >= given_out:
            self._pause()
        elif given_out:
            self.unreadable.on_read()

    def _pause(self) -> None:
        seconds = self.unreadable.on_unreadable_batch(" and ".join(self._channels.values()), self._refused)
        if seconds:
            self._pausing = asyncio.get_running_loop().call_later(seconds, self._on_pause_over)

    def _on_pause_over(self) -> None:
        self._pausing = None
        if self._waiting is not None and not self._waiting.done() and self._link.connection is not None:
            self._read(self._link.connection)

    def _end_read(self) -> None:
        """Make Redis end the blocked read: with the entries that it has claimed, or with none, but never both."""
        if self._waiting is None or self._waiting.done():
            return
        connection = self._link.connection
        if connection is None or self._pausing is not None:
            self._waiting.set_result([])
        else:
            self._pipeline.write(("CLIENT", "UNBLOCK", connection.client_id), ignore_reply)
            asyncio.get_running_loop().call_later(UNBLOCK_SECONDS, self._end_read)

    def _read(self, connection: RedisConnection) -> None:
        """Read new entries; on a new connection first those that the last one's reply may have carried."""
        self._rereads = False
        keys = self._turns
        limit = self._limit if self.unreadable.why is None else 1
        options: tuple[str | int, ...]
        if self._recover:
            keys, options = [*self._channels], ()
        elif limit < len(keys) and self._probed < len(keys):
            # A read takes as many entries from each stream: with room for fewer, each is read alone, in turns.
            keys = [keys[0]]
            options = ("COUNT", limit)
            self._probed += 1
            self._turns = [*self._turns[1:], *keys]
        else:
            options = ("COUNT", max(1, limit // len(keys)))
            if self._wait is None:
                options += ("BLOCK", BLOCK_SECONDS * 1000)
            elif self._wait:
                options += ("BLOCK", max(1, round(min(self._wait, BLOCK_SECONDS) * 1000)))
        start = "0" if self._recover else ">"
        connection.write(
            pack_command_once(
                (
                    *("XREADGROUP", "GROUP", "workers", self._name),
                    *options,
                    *("STREAMS", *keys, *(start for _ in keys)),
                )
            ),
            (partial(self._on_read, connection),),
        )

    def _on_read(self, connection: RedisConnection, reply: Any) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():
            return
        if isinstance(reply, RedisError):
            if str(reply).startswith(NO_GROUP):
                self._create_groups(connection)
            else:
                connection.abort(f"claiming was refused: {reply}")  # a new connection tries again, after a pause
                if str(reply).startswith("WRONGTYPE"):
                    self._on_wrong_type()
            return
        before = self._released
        claims = [claim for key, entries in reply or () for claim in self._take(key.decode(), entries, self._release)]
        recovering = self._recover
        if recovering:
            self._recover = False
            self._held.difference_update(self._acked_meanwhile)
            self._acked_meanwhile.clear()
        if claims or self._stopped:
            self._given_out, self._released = len(claims[: self._limit]), 0
            waiting.set_result(claims[: self._limit])
            for claim in claims[self._limit :]:
                self.requeue(claim)
            return
        if self._released > before:
            self._given_out = self._released = 0
            self._pause()
        if self._wait is not None and not recovering:
            waiting.set_result([])
        elif self._pausing is None:
            self._read(connection)

    def _take(self, key: str, entries: Sequence[Any], on_foreign: Callable[[str, bytes, str], None]) -> list[Claim]:
        """Return the claims that can be read here.

        `on_foreign(key, id, why)` is called for entries that other processes may be able to read.
        """
        claims = []
        place = self._own_place if key == self._own_key else key
        for entry_id, fields in entries:
            if (key, entry_id) in self._held:
                continue
            self._held.add((key, entry_id))
            if fields is None:  # it was claimed, and deleted since
                self._pipeline.ack(key, entry_id, self._ack_callback)
                continue
            try:
                entry = self._handler.unpack_entry(self._entries.open(place, fields[1]))
            except ValueError as error:
                if why := self._entries.count_foreign(error):
                    on_foreign(key, entry_id, why)
                else:
                    self._entries.log_rejected(f"shared channel {key}", entry_id.decode(), error)
                    self._pipeline.ack(key, entry_id, self._ack_callback)
                continue
            claims.append(Claim(self._channels[key], entry_id, entry, _since(entry_id, fields) <= self._stale_before))
        return claims

    def _release(self, key: str, entry_id: bytes, why: str) -> None:
        """Requeue an entry that cannot be read here. One that was offered to this process alone is dropped."""
        if key == self._own_key:
            self._counts["unreadable entry"] += 1
            if self._entries.mark_logged("unreadable by key"):
                logger.error("an entry that only this process may claim was dropped, as all like it will be: %s", why)
            self._pipeline.ack(key, entry_id, self._ack_callback)
            return
        self._released += 1
        self._refused = why

        def on_released(reply: Any) -> None:
            self._held.discard((key, entry_id))
            if isinstance(reply, RedisError):
                logger.error("an entry of %s could not be given back: %s", key, reply)
            elif reply == 1:
                self._counts["unreadable entry"] += 1
                logger.error("an entry of %s was dropped: %d times nobody could read it", key, MOST_RELEASES)

        self._pipeline.write(("EVAL", scripts.RELEASE, 1, key, entry_id, MOST_RELEASES), on_released)

    def requeue(self, claim: Claim) -> None:
        """Return a claim to its queue: see `Bus.requeue`."""
        key = self._queues + claim.channel
        self._pipeline.write(("EVAL", scripts.REQUEUE, 1, key, claim.id), lambda _: self._held.discard((key, claim.id)))

    def _on_acked(self, key: str, ids: list[bytes]) -> None:
        """Forget acknowledged entries, which cannot come again, but after the first reply on a new connection only.

        That reply may be older than the acknowledgement.
        """
        if self._recover:
            self._acked_meanwhile += [(key, entry_id) for entry_id in ids]
        else:
            self._held.difference_update([(key, entry_id) for entry_id in ids])

    def _create_groups(self, connection: RedisConnection) -> None:
        """Create the streams with their consumer groups, from the first entry on, and read again."""
        last = self._turns[-1]

        def on_created(key: str, reply: Any) -> None:
            if connection is not self._link.connection:
                return  # the next connection reads by itself
            if isinstance(reply, RedisError) and not str(reply).startswith("BUSYGROUP"):
                connection.abort(f"making the group of {key} was refused: {reply}")
            elif key == last:
                self._read(connection)

        for key in self._turns:
            self._pipeline.write(("XGROUP", "CREATE", key, "workers", "0", "MKSTREAM"), partial(on_created, key))


def _since(entry_id: bytes, fields: Sequence[bytes]) -> int:
    """Return when an entry was first written, in ms by Redis's clock; 0 if it was written again."""
    if len(fields) > 3 and fields[2] == b"since" and (first := fields[3].partition(b"-")[0]).isdigit():
        return int(first)
    return int(entry_id.partition(b"-")[0])


def _owner(consumer: str) -> str:
    """Return the mailbox of the process with this consumer name."""
    return consumer.partition("!")[0] + "!"


def _keep_unreadable(key: str, entry_id: bytes, why: str) -> None:
    """Leave an entry that cannot be read where it is."""
