"""Interface servers, workers and clients on a model bus, and the checks after every step."""

import itertools
import logging
from typing import Any, cast

from asgibus.interface_server.http.request import Request
from asgibus.protocol.checks import read_request
from asgibus.protocol.connect_request import WEBSOCKET
from asgibus.protocol.events import MESSAGE_RECEIVED, MESSAGE_SENT, Event, size
from asgibus.protocol.states import AppState, ConnectionState
from support.model.actors import Client, Interface, Process, Run
from support.model.bus import ModelBus, Store

WORKERS = 3
ROUNDS, FRAMES = 100, 10_000  # of frames and answers, after which no process should send


class World(logging.Handler):
    """All processes and clients. Collects errors in the log of the product: there must be none."""

    def __init__(self, window: int, *, quick: bool) -> None:
        super().__init__(logging.ERROR)
        self.window = window
        self.quick = quick
        self.now = 0.0
        self.faults: list[str] = []
        self.store = Store()
        self.store.on_offer = self.offered
        self.store.on_lease_end = self.lease_ended
        self.clients: list[Client] = []
        self.by_number: dict[tuple[str, int], Client] = {}
        self.runs: list[Run] = []
        self.names = 0
        self.workers: list[Process] = []
        self.plain = 0
        logging.getLogger("asgibus").addHandler(self)
        logging.getLogger("asgibus").setLevel(logging.ERROR)
        self.interface = self.new_interface()
        self.new_worker()

    def emit(self, record: logging.LogRecord) -> None:
        if "workers in a row died" not in record.getMessage():  # allowed, and checked in `check_settled`
            self.faults.append(self.format(record))

    def close(self) -> None:
        logging.getLogger("asgibus").removeHandler(self)
        logging.getLogger("asgibus").setLevel(logging.NOTSET)
        for worker in self.workers:
            worker.end()
        super().close()

    def named(self, role: str) -> str:
        self.names += 1
        return f"{role}.{self.names}!"

    def new_interface(self) -> Interface:
        self.interface = Interface(self.store, self.named("interface"), self.window)
        return self.interface

    def new_worker(self) -> None:
        self.workers.append(Process(self, self.named("worker")))

    def new_client(self) -> Client:
        client = Client(self, self.interface)
        number = len(self.by_number) + 1
        request = Request(None, None, "http", {})
        request.raw_path, request.kind = b"/", WEBSOCKET
        self.interface.connections._numbers = itertools.count(number)
        self.by_number[self.interface.bus.mailbox, number] = client
        client.connection = self.interface.connections.open(request, cast(Any, client), ())
        self.clients.append(client)
        return client

    @property
    def buses(self) -> list[ModelBus]:
        return [*self.store.buses.values()]

    # Steps.

    def send_text(self, client: Client, pad: int) -> None:
        client.sent += 1
        client.connection.event((MESSAGE_RECEIVED, f"{client.sent - 1} {'x' * pad}"))

    def pass_time(self, seconds: float) -> None:
        self.run_loops()
        end = self.now + seconds
        while self.now < end:
            before, self.now = self.now, min(end, self.now + 1.0)
            self.run_loops()
            if self.interface.bus.up and int(self.now) > int(before):
                self.interface.connections.tick(self.now)

    def run_loops(self) -> None:
        for worker in [*self.workers]:
            if worker.bus.up:
                worker.loop.advance(self.now)
            if worker.task.done():
                if not worker.killed:
                    worker.task.result()
                self.store.buses.pop(worker.mailbox, None)
                self.workers.remove(worker)
                worker.loop.close()

    def lease_ended(self, mailbox: str) -> None:
        """Note the end of a lease."""
        self.interface.declared_dead |= mailbox == self.interface.bus.mailbox
        for client in self.clients:
            client.deaths += client.connection.peer in ("", mailbox)

    # Observations.

    def offered(self, entry: Any) -> None:
        opening = read_request(entry)
        client = self.by_number[opening.interface, opening.connection]
        if client.connection is None:
            client.bases[1] = 0
            return
        unacked = _messages(client.connection.stream.unacked_events)
        client.bases[opening.attempt] = base = client.sent - len(unacked)
        carried = _messages(opening.events)
        if carried != unacked[: len(carried)]:
            self.faults.append("the opening carries something else than what is to be sent again")
        counted = self.interface.connections.counts["handed over"]
        before, self.interface.handed_over = self.interface.handed_over, counted
        if counted == before:
            return
        began = [run for run in self.runs if (run.client, run.attempt) == (client, opening.attempt - 1)]
        candidates = [run for run in began if run.ended and run.disconnect_code != 1006]
        if len(candidates) > 1:
            return  # its offer was claimed twice, and both runs were ended
        if not began:  # it was taken over, and handed over before its turn came to begin
            before_that = client.handed_over.get(opening.attempt - 1)
            if before_that is not None:
                client.handed_over[opening.attempt] = before_that
            if base != client.bases[opening.attempt - 1]:
                self.faults.append("a hand-over acknowledged what no run has taken")
            return
        (run,) = candidates
        client.handed_over[opening.attempt] = run
        received = client.received.get(run.attempt, (run.worker.mailbox, 0))
        if not client.left and received != (run.worker.mailbox, run.sent):
            self.faults.append("a hand-over came before what was sent")
        if run.taken and run.taken[-1] + 1 != base:
            self.faults.append("a hand-over acknowledged something else than what was taken")

    def began(self, run: Run, *, resumed: bool) -> None:
        self.runs.append(run)
        if run.attempt == 1 and (resumed or run.found):
            self.faults.append("a first run has nothing to resume")
        before = run.client.handed_over.get(run.attempt)
        if before is not None and before.taken and run.found.get("next") != before.taken[-1] + 1:
            self.faults.append("the state was not handed over")

    def event_taken(self, run: Run, number: int) -> None:
        base = run.taken[-1] + 1 if run.taken else run.client.bases[run.attempt]
        if number != base:
            self.faults.append(f"I10: attempt {run.attempt} took {number} where {base} was next")
        run.taken.append(number)

    def check(self) -> None:
        """Check I10, I11 and I12. `Client` checks I4 and the order of writes."""
        assert not self.faults, self.faults
        for client in self.clients:
            connection = client.connection
            unacked = _messages(connection.stream.unacked_events)
            if client.left or client.closed:
                continue
            first = client.sent - len(unacked)
            assert [int(text.split()[0]) for text in unacked] == [*range(first, client.sent)], "I12"
            assert first >= client.acked, "what is acknowledged stays so"
            client.acked = first
            taken = max((run.taken[-1] + 1 for run in self.runs if run.client is client and run.taken), default=0)
            assert first <= taken, "nothing is acknowledged that no app has taken"
            self._check_window(connection.stream.unacked_events)
        for worker in self.workers:
            for session in worker.sessions:
                self._check_window(session.stream.unacked_events)
                self._check_window([event for _, event in session._inbox])

    def _check_window(self, events: list[Event]) -> None:
        sizes = [size(event) for event in events if event[0] in (MESSAGE_RECEIVED, MESSAGE_SENT)]
        assert sum(sizes[:-1]) < self.window, "I11"

    # The end.

    def settle(self) -> None:
        """End all faults, deliver all frames, and advance time until no process sends."""
        for bus in self.buses:
            bus.up = True
        for client in self.clients:
            if client.write_paused:
                client.write_paused = False
                client.connection.acknowledge()
        if not any(not worker.stop.is_set() for worker in self.workers):
            self.new_worker()
        for _ in range(40):
            for run in self.runs:
                if not run.worker.killed and not run.ended:
                    run.go_on(100)
            self.deliver_all()
            self.pass_time(1.0)
            self.check()

    def deliver_all(self) -> None:
        busy, rounds, written = True, 0, 0
        while busy:
            busy, rounds = False, rounds + 1
            written += sum(len(bus.outbox) for bus in self.buses)
            assert rounds < ROUNDS, "processes ask each other without end"
            assert written < FRAMES, "processes ask each other without end"
            for bus in self.buses:
                if not bus.up:
                    continue
                if bus.doubts:
                    bus.notice()
                busy = busy or bool(bus.outbox)
                bus.flush()
                for sender in bus.senders():
                    busy = True
                    bus.deliver(sender, 10**9)
                if bus.waiting is not None and not bus.waiting.done() and self.store.offers:
                    busy = True
                    bus.take_offers(10**9)
            self.run_loops()

    def check_settled(self) -> None:
        """Check that one run serves each open client and has all its messages, and that no other session remains."""
        self.check()
        served: set[Any] = set()
        for client in self.clients:
            connection = client.connection
            if not client.open:
                continue
            assert connection.state is ConnectionState.JOINED, connection.state
            assert connection.app_state is AppState.OPEN
            owner = next((worker for worker in self.workers if worker.mailbox == connection.peer), None)
            assert owner is not None, "the owner is alive"
            sessions = [each for each in owner.sessions if each.number == connection.number]
            assert [each.attempt for each in sessions] == [connection.stream.attempt], "its owner does not serve it"
            run = next(
                run
                for run in self.runs
                if (run.client, run.attempt, run.worker) == (client, connection.stream.attempt, owner) and not run.ended
            )
            assert run.disconnect_code is None, "its app got a disconnect"
            assert not sessions[0].closed
            served |= {sessions[0], run}
            assert client.acked == client.sent, "every message of the client was taken"
            assert client.received.get(run.attempt, (owner.mailbox, 0)) == (owner.mailbox, run.sent)
            assert sessions[0].stream.in_flight == connection.stream.in_flight == 0
        for worker in self.workers:
            assert set(worker.sessions) <= served, "a session got no disconnect of its client"
            left = {run for run in self.runs if run.worker is worker and not run.ended}
            assert left <= served, "an app got no disconnect of its client"
        for client in self.clients:
            if client.left and client.accepted and client.interface.bus.mailbox in self.store.buses:
                assert client.connection.state is ConnectionState.ENDED, "the disconnect of the client is unknown"
                runs = [run for run in self.runs if run.client is client]
                notified = any(run.disconnect_code in (1001, 1006) or run.refused for run in runs)
                excused = client.deaths >= 2 or client.interface.declared_dead
                assert notified or excused, "no app got a disconnect of the client"
            if client.closed:
                assert client.closed == (502, 1011)
                assert client.deaths >= 2, "only a connection that killed two workers is ended"
        assert not any(self.store.mailboxes[bus.mailbox] for bus in self.buses), "a process has not stopped sending"


def _messages(events: Any) -> list[str]:
    return [event[1] for event in events if event[0] == MESSAGE_RECEIVED]
