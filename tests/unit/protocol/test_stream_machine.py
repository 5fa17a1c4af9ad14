"""Both ends of sessions on a bus that drops, repeats and delays, while processes are killed, paused and drained."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.model.actors import Client, Process, Run
from support.model.bus import ModelBus
from support.model.world import WORKERS, World

SOME = st.integers(1, 4)
PADS = st.sampled_from([0, 30, 200, 500])


class Sessions(RuleBasedStateMachine):
    """Faults, and actions of clients and apps."""

    world: World
    holds = True

    @initialize(window=st.sampled_from([300, 1000]), clients=st.integers(1, 2), quick=st.booleans())
    def begin(self, window: int, clients: int, quick: bool) -> None:
        self.world = World(window, quick=quick)
        for _ in range(clients):
            self.world.new_client()
        self.dead: list[Process] = []  # killed, and not yet declared dead
        self.world.deliver_all()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if self.holds:
                self.end()
        finally:
            self.world.close()

    def end(self) -> None:
        """Stop the faults, and check the settled state."""
        while self.dead:
            self.world.store.end_lease(self.dead.pop().mailbox)
        self.world.settle()
        self.world.check_settled()

    def pick(self, data: st.DataObject, among: list[Any]) -> Any:
        return among[data.draw(st.integers(0, len(among) - 1))]

    # Clients and apps.

    @precondition(lambda self: self.speakers())
    @rule(data=st.data(), pad=PADS, count=SOME)
    def client_speaks(self, data: st.DataObject, pad: int, count: int) -> None:
        client = self.pick(data, self.speakers())
        for _ in range(count):
            if client.reading:
                self.world.send_text(client, pad)

    def speakers(self) -> list[Client]:
        return [each for each in self.world.clients if each.open and each.reading and each.interface.bus.up]

    @precondition(lambda self: self.world.plain < 6 and self.speakers())
    @rule(data=st.data())
    def plain_message(self, data: st.DataObject) -> None:
        client = self.pick(data, self.speakers())
        self.world.plain += 1
        event = {"type": "websocket.send", "text": f"plain {self.world.plain}"}
        self.world.store.message(client.interface.bus.mailbox, str(client.connection.number), event)

    @precondition(lambda self: self.speakers())
    @rule(data=st.data())
    def client_reads_or_not(self, data: st.DataObject) -> None:
        client = self.pick(data, self.speakers())
        client.write_paused = not client.write_paused
        if not client.write_paused:
            client.connection.acknowledge()

    @precondition(lambda self: self.speakers())
    @rule(data=st.data(), another=st.booleans())
    def client_leaves(self, data: st.DataObject, another: bool) -> None:
        client = self.pick(data, self.speakers())
        client.left = True
        client.connection.client_gone(1001)
        if another:
            self.world.new_client()

    @precondition(lambda self: self.active())
    @rule(data=st.data(), count=SOME)
    def app_goes_on(self, data: st.DataObject, count: int) -> None:
        self.pick(data, self.active()).go_on(count)
        self.world.run_loops()

    @precondition(lambda self: self.active())
    @rule(data=st.data(), pad=PADS, count=SOME)
    def app_speaks(self, data: st.DataObject, pad: int, count: int) -> None:
        run = self.pick(data, self.active())
        for _ in range(count):
            run.send_text("x" * pad)
        self.world.run_loops()

    @rule(pad=PADS)
    def everybody_speaks(self, pad: int) -> None:
        """Let both ends of every connection send, and deliver all frames."""
        for client in self.speakers():
            self.world.send_text(client, pad)
        for run in self.active():
            run.go_on(3)
            run.send_text("x" * pad)
        self.world.deliver_all()

    def active(self) -> list[Run]:
        return [run for run in self.world.runs if not run.ended and not run.worker.killed and run.worker.bus.up]

    @rule(seconds=st.sampled_from([0.2, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    # The bus.

    @precondition(lambda self: self.writers())
    @rule(data=st.data(), count=SOME, again=st.booleans())
    def write_some(self, data: st.DataObject, count: int, again: bool) -> None:
        self.pick(data, self.writers()).flush(count, again=again)

    def writers(self) -> list[ModelBus]:
        return [bus for bus in self.world.buses if bus.outbox and bus.up]

    @precondition(lambda self: any(bus.senders() for bus in self.world.buses))
    @rule(data=st.data(), count=SOME)
    def deliver_some(self, data: st.DataObject, count: int) -> None:
        bus = self.pick(data, [bus for bus in self.world.buses if bus.senders()])
        bus.deliver(self.pick(data, bus.senders()), count)
        self.world.run_loops()

    @rule()
    def deliver_everything(self) -> None:
        self.world.deliver_all()

    @precondition(lambda self: self.world.store.offers and self.claimants())
    @rule(data=st.data(), count=SOME, twice=st.booleans())
    def claim_some(self, data: st.DataObject, count: int, twice: bool) -> None:
        self.pick(data, self.claimants()).take_offers(count, twice=twice)
        self.world.run_loops()

    @precondition(lambda self: self.world.store.offers and len(self.claimants()) > 1)
    @rule()
    def everybody_claims_the_same(self) -> None:
        claimants = self.claimants()
        for bus in claimants:
            bus.take_offers(10**9, twice=bus is not claimants[-1])
        self.world.run_loops()

    def claimants(self) -> list[ModelBus]:
        return [bus for bus in self.world.buses if bus.up and bus.waiting is not None and not bus.waiting.done()]

    # Faults.

    @rule()
    def store_restarts_empty(self) -> None:
        self.world.store.empty()

    @precondition(lambda self: any(bus.doubts and bus.up for bus in self.world.buses))
    @rule(data=st.data())
    def notice_an_interruption(self, data: st.DataObject) -> None:
        self.pick(data, [bus for bus in self.world.buses if bus.doubts and bus.up]).notice()
        self.world.run_loops()

    @precondition(lambda self: len(self.world.workers) < WORKERS)
    @rule()
    def start_a_worker(self) -> None:
        self.world.new_worker()

    def running(self) -> list[Process]:
        return [worker for worker in self.world.workers if worker.bus.up]

    @precondition(lambda self: self.running())
    @rule(
        data=st.data(),
        how=st.sampled_from(["drained", "killed", "reaped", "paused", "lapsed"]),
        speaking=st.booleans(),
    )
    def a_worker_is(self, data: st.DataObject, how: str, speaking: bool) -> None:
        """Stop or pause a process. `speaking`: frames of the process wait to be written then."""
        worker = self.pick(data, self.running())
        for run in self.active():
            if speaking and run.worker is worker:
                run.send_text("")
                run.go_on(1)
        self.world.run_loops()
        if worker not in self.world.workers:
            return  # the worker was stopping, and has ended
        if how == "drained":
            worker.stop.set()
            self.world.run_loops()
        elif how in ("killed", "reaped"):
            self.world.workers.remove(worker)
            worker.kill()
            self.dead.append(worker)
            if how == "reaped":
                self.worker_is_declared_dead()
        else:
            worker.bus.up = False
            if how == "lapsed":
                worker.bus.doubts = True
                self.world.store.end_lease(worker.mailbox)

    @precondition(lambda self: self.dead)
    @rule()
    def worker_is_declared_dead(self) -> None:
        self.world.store.end_lease(self.dead.pop(0).mailbox)

    @precondition(lambda self: self.world.interface.bus.up)
    @rule(how=st.sampled_from(["paused", "lapsed", "killed"]), speaking=st.booleans())
    def the_interface_is(self, how: str, speaking: bool) -> None:
        """Stop or pause a process. `speaking`: frames of the process wait to be written then."""
        bus = self.world.interface.bus
        for client in self.speakers():
            if speaking:
                self.world.send_text(client, 0)
        bus.up = False
        if how == "lapsed":
            bus.doubts = True
            self.world.store.end_lease(bus.mailbox)
        elif how == "killed":
            bus.outbox.clear()
            del self.world.store.buses[bus.mailbox]
            self.world.store.end_lease(bus.mailbox)
            self.world.new_interface()
            self.world.new_client()

    @precondition(lambda self: any(not bus.up for bus in self.world.buses))
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        self.pick(data, [bus for bus in self.world.buses if not bus.up]).up = True
        self.world.run_loops()

    @invariant()
    def everything_holds(self) -> None:
        if hasattr(self, "world"):
            self.holds = False
            self.world.check()
            self.holds = True


TestSessions = pytest.mark.timeout(600)(Sessions.TestCase)  # a failure needs time to find a short example
TestSessions.settings = settings(max_examples=3 * settings.default.max_examples, stateful_step_count=40)
