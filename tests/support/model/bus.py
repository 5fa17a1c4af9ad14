"""A bus that loses, repeats, delays and reorders as the contract of `Bus` allows, and an event loop without IO.

Nothing happens without a call: the test controls writes, deliveries, claims, ends of processes, and time.
"""

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from asgibus.layers.codec import pack, unpack
from asgibus.layers.contract import (
    Bus,
    Delivery,
    Draft,
    Frame,
    Handler,
    Statistics,
)
from asgibus.layers.frames import DEAD, MESSAGE
from asgibus.layers.offers import AffinityKey, Claim, Offer


class SteppedLoop(asyncio.BaseEventLoop):
    """An event loop with a clock of its own, which only `advance` moves."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = SimpleNamespace(select=lambda timeout: [])

    def time(self) -> float:
        return self._now

    def _process_events(self, events: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_ready(self) -> None:
        """Run until all tasks wait for a later time or for another process."""
        while self._ready or (self._scheduled and self._scheduled[0].when() <= self._now):  # type: ignore[attr-defined]
            self.call_soon(self.stop)
            self.run_forever()

    def advance(self, until: float) -> None:
        """Advance the clock to `until`, from timer to timer."""
        self.run_ready()
        while self._scheduled and self._scheduled[0].when() <= until:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
            self.run_ready()
        self._now = max(self._now, until)


class Store:
    """Model of the data in Redis: offers, claims, and a mailbox for each process with a queue for each sender."""

    def __init__(self) -> None:
        self.mailboxes: dict[str, dict[str, deque[tuple[str, Frame]]]] = {}
        self.offers: dict[bytes, tuple[str, Any]] = {}
        self.claims: dict[bytes, tuple[str, Claim]] = {}
        self.buses: dict[str, ModelBus] = {}
        self.dead: list[str] = []
        self.ids = map(b"%d".__mod__, itertools.count(1))
        self.on_offer: Callable[[Any], None] = lambda entry: None
        self.on_lease_end: Callable[[str], None] = lambda mailbox: None

    def put(self, mailbox: str, sender: str, frame: Frame) -> bool:
        """Append a frame to a mailbox; return whether the mailbox exists."""
        queues = self.mailboxes.get(mailbox)
        if queues is None:
            return False
        queues.setdefault(sender, deque()).append((sender, frame))
        return True

    def message(self, mailbox: str, local: str, message: dict[str, Any]) -> bool:
        """Send an unnumbered message to a process-local channel."""
        return self.put(mailbox, "", (MESSAGE, local, message))

    def empty(self) -> None:
        """Restart without data; each process notices later, at `notice`."""
        self.mailboxes.clear()
        self.offers.clear()
        self.claims.clear()
        for bus in self.buses.values():
            bus.doubts = True

    def end_lease(self, mailbox: str) -> None:
        """End the lease of a mailbox: report the death to the others, after its last frames, and hand its claims on."""
        self.on_lease_end(mailbox)
        if mailbox not in self.dead:
            self.dead.append(mailbox)
        self.mailboxes.pop(mailbox, None)
        for other in self.mailboxes:
            if other != mailbox:
                self.report_dead(other, mailbox)
        self.reassign_orphans()

    def report_dead(self, mailbox: str, dead: str) -> None:
        self.mailboxes[mailbox].setdefault(dead, deque()).append(("", (DEAD, dead, True)))

    def reassign_orphans(self) -> None:
        claimant = next((bus for bus in self.buses.values() if bus.waiting is not None and bus.up), None)
        for name, (owner, claim) in [*self.claims.items()]:
            if claimant is not None and owner in self.dead and owner != claimant.mailbox:
                self.claims[name] = (claimant.mailbox, claim)
                claimant.handler.orphaned(claim)


class ModelBus(Bus):
    """The bus as one process uses it. Writes wait in `outbox` until `flush`."""

    def __init__(self, store: Store, mailbox: str, handler: Handler) -> None:
        self.mailbox = mailbox
        self.store = store
        self.handler = handler
        self.outbox: deque[Callable[[], None]] = deque()
        self.waiting: asyncio.Future[list[Claim]] | None = None
        self.limit = 0
        self.flushes = 0
        self.stopped = False
        self.up = True
        """Whether the process runs: it has neither ended nor been paused."""
        self.doubts = False
        """Whether the process will notice an interruption."""
        store.buses[mailbox] = self
        store.mailboxes[mailbox] = {}

    @property
    def available(self) -> bool:
        return True

    # The model has no ordinary channels.

    async def shared_statistics(self, channel: str) -> Statistics:
        raise NotImplementedError

    async def take(self, channel: str, limit: int, *, once: bool = False) -> list[Delivery]:
        raise NotImplementedError

    def acknowledge(self, delivery: Delivery) -> None:
        raise NotImplementedError

    def give_back(self, delivery: Delivery, *, delay: float = 0.0) -> None:
        raise NotImplementedError

    def requeue(self, claim: Claim) -> None:
        raise NotImplementedError

    def release(self, claim: Claim, why: str) -> None:
        raise NotImplementedError

    # Nor has it offers by key.

    def offer_by_key(self, *args: Any, **kwargs: Any) -> Offer:
        raise NotImplementedError

    def take_back(self, offer: Offer, on_result: Callable[[bool], None]) -> None:
        raise NotImplementedError

    def assign(self, key: AffinityKey, lifetime: float, mailbox: str) -> None:
        raise NotImplementedError

    def renew_keys(self, keys: Sequence[AffinityKey], lifetime: float) -> None:
        raise NotImplementedError

    def announce_keys(self, pools: Sequence[str]) -> None:
        raise NotImplementedError

    @property
    def unreadable(self) -> str | None:
        return None

    # Faults and steps of the model.

    def flush(self, count: int = 10**9, *, again: bool = False) -> None:
        """Execute the oldest `count` writes. `again`: the reply is lost, so the writes will be repeated."""
        self.flushes += 1
        for write in [*itertools.islice(self.outbox, count)]:
            write()
            if not again:
                self.outbox.popleft()

    def deliver(self, sender: str, count: int) -> None:
        """Deliver the oldest frames of one sender."""
        queue = self.store.mailboxes[self.mailbox][sender]
        batch = [queue.popleft() for _ in range(min(count, len(queue)))]
        if not queue:
            del self.store.mailboxes[self.mailbox][sender]
        for named, items in itertools.groupby(batch, key=lambda item: item[0]):
            self.handler.batch(named, [frame for _, frame in items])

    def senders(self) -> list[str]:
        """Return the senders of the frames in the mailbox, none while the process is paused."""
        return [*self.store.mailboxes.get(self.mailbox, ())] if self.up else []

    def take_offers(self, count: int, *, twice: bool = False) -> None:
        """Claim, if the process waits for claims. `twice`: leave the offers, so that another process may claim them."""
        names = [*itertools.islice(self.store.offers, min(count, self.limit))]
        if self.waiting is None or self.waiting.done() or not names:
            return
        claims = []
        for name in names:
            channel, entry = self.store.offers[name] if twice else self.store.offers.pop(name)
            claims.append(Claim(channel, name, entry, stale=twice))
            if not twice:
                self.store.claims[name] = (self.mailbox, claims[-1])
        self.waiting.set_result(claims)

    def notice(self) -> None:
        """Notice that the store lost its data or the lease of this process ended, and restore the mailbox."""
        self.doubts = False
        if self.mailbox in self.store.dead:
            self.store.dead.remove(self.mailbox)
        if self.mailbox not in self.store.mailboxes:
            self.store.mailboxes[self.mailbox] = {}
            for dead in self.store.dead:
                self.store.report_dead(self.mailbox, dead)
        self.handler.interrupted()

    # The contract.

    @property
    def packed(self) -> int:
        return self.flushes

    def post(self, mailbox: str, frame: Frame | Draft, size: int = 0) -> None:
        def write() -> None:
            if not self.store.put(mailbox, self.mailbox, tuple(frame)):
                self.handler.undelivered(mailbox)
                if mailbox in self.store.dead and self.mailbox in self.store.mailboxes:
                    self.store.report_dead(self.mailbox, mailbox)

        self.outbox.append(write)

    def write_soon(self) -> None:
        """Do nothing: the test decides when frames are delivered."""

    async def posted(self) -> None:
        """Do nothing: posted frames wait until they are delivered in any case."""

    def offer(self, channel: str, entry: Any, *, once: bool = False) -> Offer:
        offer = Offer(channel, once, state=(unpack(pack(entry)), []))
        self.store.on_offer(entry)
        self.outbox.append(lambda: self._put(offer))
        return offer

    def _put(self, offer: Offer) -> None:
        if not offer.withdrawn:
            entry, names = offer.state
            names.append(next(self.store.ids))
            self.store.offers[names[-1]] = (offer.channel, entry)

    def withdraw(self, offer: Offer) -> bool:
        offer.withdrawn = True
        for name in offer.state[1]:
            self.store.offers.pop(name, None)
        return True

    def offer_again(self, offer: Offer, on_lost: Callable[[], None]) -> None:
        if not any(name in self.store.offers or name in self.store.claims for name in offer.state[1]):
            self.outbox.append(lambda: self._put(offer))

    async def claim(self, channels: Sequence[str], limit: int) -> list[Claim]:
        if self.stopped:
            return []
        self.limit = limit
        self.waiting = asyncio.get_running_loop().create_future()
        self.store.reassign_orphans()
        try:
            return await self.waiting
        finally:
            self.waiting = None

    def stop_claiming(self) -> None:
        self.stopped = True
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result([])

    def done(self, claim: Claim) -> None:
        self.outbox.append(lambda: self.store.claims.pop(claim.id, None) and None)

    async def join_group(self, group: str) -> None:
        pass

    async def leave_group(self, group: str) -> None:
        pass

    async def drain(self) -> None:
        if self.up:
            self.flush()


class ModelLayer:
    """The part of a channel layer that a worker uses. Leaving the bus normally ends the lease at once."""

    def __init__(self, store: Store, mailbox: str) -> None:
        self.store = store
        self.mailbox = mailbox
        self.counts: Counter[str] = Counter()

    @asynccontextmanager
    async def bus(self, role: str, handler: Handler) -> AsyncIterator[Bus]:
        bus = ModelBus(self.store, self.mailbox, handler)
        yield bus
        if bus.up:
            bus.flush()
            bus.up = False
            self.store.end_lease(self.mailbox)
