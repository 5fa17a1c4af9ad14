"""Recovery of a worker: probes for lost frames, ends of duplicate runs, and lost clients."""

import asyncio
import logging
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

import asgibus
from asgibus.layers.frames import ABANDONED, ACK, EVENT, PROBE, RESEND, RESET, SUPERSEDED
from asgibus.layers.memory import MemoryBus
from asgibus.layers.offers import Claim
from asgibus.protocol import events, router
from asgibus.protocol.channels import shared_channels
from asgibus.protocol.connect_request import HTTP, REQUEST_VERSION, WEBSOCKET, ConnectRequest
from asgibus.worker import session_registry
from asgibus.worker.session import Session, SessionHost
from support.bus import Recorder, until
from support.worker_harness import Interface, accept, echo, hello, running, status_and_body

pytestmark = pytest.mark.anyio


class Witness:
    """An app for WebSockets that notes its events, and returns when permitted."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.runs: list[int] = []
        self.may_return = asyncio.Event()
        self.errors: list[BaseException] = []
        self.handed_over: list[bool] = []

    @property
    def codes(self) -> list[int]:
        return [event["code"] for event in self.seen if event["type"] == "websocket.disconnect"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        self.runs.append(asgibus.connection(scope).attempt)
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            self.seen.append(event)
        self.seen.append(event)
        self.handed_over.append(asgibus.connection(scope).handed_over)
        await self.may_return.wait()
        try:
            await send({"type": "websocket.send", "text": "too late"})
        except OSError as error:
            self.errors.append(error)


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the periods of the checks of a worker from seconds to milliseconds."""
    monkeypatch.setattr(session_registry, "TICK_SECONDS", 0.002)
    monkeypatch.setattr(session_registry, "RECENT_SECONDS", 0.05)
    monkeypatch.setattr(router, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(router, "STALLED_SECONDS", 0.1)
    monkeypatch.setattr(router, "PROBE_AGAIN_SECONDS", 0.06)


def count(interface: Interface, number: int, kind: int) -> int:
    return [frame[0] for frame in interface.frames(number)].count(kind)


# Probes.


async def test_a_probe_is_answered_with_missing_frames_or_an_acknowledgement() -> None:
    async with running(echo) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a")
        await until(lambda: len(interface.events(number)) == 2)
        interface.post((PROBE, number, 1, 3))
        await until(lambda: (RESEND, number, 1, 1) in interface.frames(number))
        interface.post((PROBE, number, 1, 1))
        await until(lambda: (ACK, number, 1, 1) in interface.frames(number))
        interface.post((PROBE, 77, 1, 0), (PROBE, number, 2, 0))
        await until(lambda: interface.frames(77) and (RESET, number, 2) in interface.frames(number))
        assert interface.frames(77) == [(RESET, 77, 1)]
        assert interface.worker.gauges()["sessions"] == 1


async def test_a_gap_is_requested_and_later_events_wait() -> None:
    app = Witness()
    async with running(app) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "late", start=1)
        await until(lambda: (RESEND, number, 1, 0) in interface.frames(number))
        interface.send_texts(number, "early", "late")
        await until(lambda: len(app.seen) == 2)
        app.may_return.set()
    assert [event["text"] for event in app.seen[:2]] == ["early", "late"]


async def test_missing_frames_of_the_interface_server_are_sent_again() -> None:
    async with running(echo) as interface:
        number = await interface.accepted(window=100_000)
        interface.send_texts(number, "a", "b", "c")
        await until(lambda: len(interface.events(number)) == 4)
        interface.post((ACK, number, 1, 1), (RESEND, number, 1, 2))
        await until(lambda: len(interface.events(number)) == 6)
        assert interface.events(number)[4:] == [(events.MESSAGE_SENT, "b"), (events.MESSAGE_SENT, "c")]
        assert interface.worker.counts()["repeated"] == 1


async def test_after_an_interruption_every_interface_server_is_probed() -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await go.wait()
            await hello(scope, receive, send)
        else:
            await echo(scope, receive, send)

    async with running(app) as interface:
        socket, request = await interface.accepted(), interface.open(HTTP)
        await until(lambda: interface.frames(request))
        await interface.layer.declare_dead(interface.owner)  # like a process whose lease has ended
        await until(lambda: count(interface, socket, PROBE) and count(interface, request, PROBE))
        assert interface.frames(socket)[-1] == (PROBE, socket, 1, 1)
        assert interface.frames(request)[-1] == (PROBE, request, 1, 0)
        go.set()
        assert status_and_body(await interface.answer(request)) == (200, b"/")


@pytest.mark.usefixtures("_fast")
async def test_unacknowledged_frames_are_probed() -> None:
    async with running(echo) as interface:
        number = await interface.accepted()
        await until(lambda: count(interface, number, PROBE) >= 2)
        interface.acknowledge(number)
        await until(lambda: interface.worker._sessions._sessions[interface.bus.mailbox, number].stream.in_flight == 0)
        probes = count(interface, number, PROBE)
        await asyncio.sleep(0.3)  # time for more questions, of which there must be none
        assert count(interface, number, PROBE) == probes


@pytest.mark.usefixtures("_fast")
async def test_undelivered_frames_are_probed_until_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "STALLED_SECONDS", math.inf)
    async with running(echo) as interface:
        number = await interface.accepted()
        other = await interface.accepted()
        interface.worker._sessions.undelivered("interface.other!")
        interface.worker._sessions.undelivered(interface.bus.mailbox)
        await until(lambda: count(interface, number, PROBE) == count(interface, other, PROBE) == 1)
        interface.worker._sessions.undelivered(interface.bus.mailbox)
        await until(lambda: count(interface, number, PROBE) == 2)


# Lost clients.


async def test_a_killed_interface_server_disconnects_all_its_clients(caplog: pytest.LogCaptureFixture) -> None:
    app = Witness()
    app.may_return.set()
    async with running(app) as interface:
        numbers = [await interface.accepted() for _ in range(3)]
        recorder = Recorder()
        async with interface.layer.bus("interface", recorder) as other:
            bus, interface.bus = interface.bus, other
            elsewhere = interface.open(WEBSOCKET)
            interface.bus = bus
            await until(lambda: [frame for frame in recorder.frames if frame[1] == elsewhere])
            assert interface.worker.gauges()["sessions"] == 4
            await interface.layer.declare_dead(interface.bus.mailbox)
            await until(lambda: interface.worker.gauges()["sessions"] == 1)
            assert app.codes == [1006] * len(numbers)
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        assert interface.worker.counts()["interface died"] == 2
    assert len(app.errors) == 4
    assert "and with it 3 connections here" in caplog.text


async def test_a_reset_is_a_disconnect() -> None:
    app = Witness()
    app.may_return.set()
    async with running(app) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "before")
        interface.post((RESET, number, 2))
        interface.post((RESET, number, 1), (RESET, number, 1))
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        assert [event.get("text") for event in app.seen] == ["before", None]
        assert app.codes == [1006]
        assert interface.worker.counts()["reset"] == 2


@pytest.mark.parametrize("resume", [True, False])
async def test_a_superseded_run_gets_a_disconnect(resume: bool) -> None:
    app = Witness()
    async with running(app, resume=resume) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "before")
        await until(lambda: app.seen)
        interface.post((SUPERSEDED, number, 2), (SUPERSEDED, number, 1), (SUPERSEDED, number, 1))
        await until(lambda: app.codes == [1012])
        assert app.handed_over == [True]
        interface.post((RESET, number, 1))
        app.may_return.set()
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        assert [type(error).__name__ for error in app.errors] == ["ClientDisconnected"]
        assert "another run serves the client" in str(app.errors[0])
        assert interface.worker.counts()["superseded"] == 2
        assert [event[0] for event in interface.events(number)] == [events.ACCEPT], "nothing is handed over"


async def test_a_superseded_run_changes_neither_groups_nor_state() -> None:
    errors: list[OSError] = []
    discarded: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        connection = asgibus.connection(scope)
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["code"] == 1012
        await connection.group_discard("room")
        discarded.append("room")
        connection.state["a"] = 1
        for call in (connection.save_state(), connection.group_add("hall")):
            try:
                await call
            except OSError as error:
                errors.append(error)

    async with running(app, resume=True) as interface:
        number = await interface.accepted()
        interface.post((SUPERSEDED, number, 1))
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        assert discarded == ["room"]
        assert "another run serves this connection by now" in str(errors[0])
        assert "another run serves the client" in str(errors[1])
        assert [event[0] for event in interface.events(number)] == [events.ACCEPT]


async def test_group_add_of_a_superseded_run_raises() -> None:
    errors: list[OSError] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        try:
            await asgibus.connection(scope).group_add("room")
        except OSError as error:
            errors.append(error)

    async with running(app, resume=True) as interface:
        number = await interface.accepted()
        await interface.last(number, events.GROUP_ADD)
        interface.post((SUPERSEDED, number, 1))
        await until(lambda: errors)
        assert "another run serves the client" in str(errors[0])


async def test_a_second_disconnect_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    app = Witness()
    async with running(app) as interface:
        number = await interface.accepted()
        await interface.layer.declare_dead(interface.bus.mailbox)
        await until(lambda: app.codes == [1006])
        interface.post((EVENT, number, 1, 0, 1, events.WEBSOCKET_DISCONNECT, 1001, ""), (EVENT, 77, 1, 0, 0, 4, ""))
        await until(lambda: interface.frames(77))
        app.may_return.set()
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
    assert "Traceback" not in caplog.text


async def test_a_disconnect_in_a_drain_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    app = Witness()
    async with running(app) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await until(lambda: app.codes == [1012])
        interface.post((EVENT, number, 1, 0, 1, events.WEBSOCKET_DISCONNECT, 1001, ""), (EVENT, 77, 1, 0, 0, 4, ""))
        await until(lambda: interface.frames(77))
        app.may_return.set()
        await asyncio.wait_for(interface.ended, 30)
    assert "Traceback" not in caplog.text


async def test_frames_for_interface_servers_are_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "asgibus.worker")
    async with running(hello) as interface:
        interface.post((ABANDONED, 1, 1), (ABANDONED, 2, 1))
        await until(lambda: interface.worker.counts().get("bad frame") == 2)
    logged = [record.levelname for record in caplog.records if "is not for a worker" in record.getMessage()]
    assert logged == ["ERROR"]


async def test_a_probe_of_an_interface_server_declared_dead_is_reset() -> None:
    app = Witness()
    async with running(app) as interface:
        number = await interface.accepted()
        await interface.layer.declare_dead(interface.bus.mailbox)
        await until(lambda: app.codes == [1006])
        interface.post((PROBE, number, 1, 0))
        await until(lambda: count(interface, number, RESET) + count(interface, number, ACK))
        assert interface.frames(number)[-1] == (RESET, number, 1), "no worker would serve the client"
        app.may_return.set()


# Offers.


async def test_a_repeated_offer_is_answered_and_served_once() -> None:
    app = Witness()
    app.may_return.set()
    async with running(app) as interface:
        number = await interface.accepted(attempt=3)
        for attempt in (3, 2):
            interface.open(WEBSOCKET, connection=number, attempt=attempt)
        await until(lambda: count(interface, number, PROBE) == 2)
        assert interface.frames(number)[1:] == [(PROBE, number, 3, 1)] * 2
        assert app.runs == [3]


async def test_an_offer_repeated_while_its_run_ends_is_reset() -> None:
    app = Witness()
    async with running(app) as interface:
        number = await interface.accepted()
        interface.post((RESET, number, 1))
        await until(lambda: app.codes == [1006])
        interface.open(WEBSOCKET, connection=number)
        await until(lambda: (RESET, number, 1) in interface.frames(number))
        app.may_return.set()


async def test_a_newer_attempt_replaces_an_older_one() -> None:
    app = Witness()
    async with running(app) as interface:
        number = await interface.accepted()
        interface.open(WEBSOCKET, connection=number, attempt=2, resumed=True)
        await until(lambda: (EVENT, number, 2, 0, 0, events.ACCEPT, None, b"", False) in interface.frames(number))
        await until(lambda: app.codes == [1012])
        assert app.handed_over == [True]
        interface.send_texts(number, "for the new one", attempt=2)
        interface.send_texts(number, "for the old one")
        await until(lambda: count(interface, number, RESET))
        app.may_return.set()
        await until(lambda: interface.worker.gauges()["sessions"] == 1)
        assert [event.get("text") for event in app.seen] == [None, "for the new one"]
        assert app.runs == [1, 2]


async def test_a_newer_attempt_replaces_final_frames() -> None:
    async def closes(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        await send({"type": "websocket.close"})

    async with running(closes) as interface:
        number = interface.open(WEBSOCKET)
        await interface.answer(number)
        interface.open(WEBSOCKET, connection=number, attempt=2)
        await until(lambda: [frame[2] for frame in interface.frames(number)] == [1, 1, 2, 2])
        interface.post((RESEND, number, 1, 0), (RESEND, number, 2, 0))
        await until(lambda: len(interface.frames(number)) == 6)
        assert [frame[2] for frame in interface.frames(number)[4:]] == [2, 2]
        interface.post((ACK, number, 2, 2))


async def test_a_further_run_gets_the_events_of_its_connect_request_first() -> None:
    app = Witness()
    app.may_return.set()
    unread = ((events.MESSAGE_RECEIVED, "a"), (events.MESSAGE_RECEIVED, "b"))
    async with running(app) as interface:
        number = await interface.accepted(attempt=2, resumed=True, events=unread)
        interface.send_texts(number, "c", attempt=2, start=2)
        await until(lambda: len(app.seen) == 3)
        assert [event["text"] for event in app.seen] == ["a", "b", "c"]
        await until(lambda: (ACK, number, 2, 3) in interface.frames(number))
        assert interface.worker.counts()["further run"] == 1


# Lost responses.


async def test_a_recent_response_is_repeated_on_request() -> None:
    async with running(hello) as interface:
        number = interface.open(HTTP)
        answer = [*await interface.answer(number)]
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        interface.post((PROBE, number, 1, 1))
        await until(lambda: count(interface, number, ACK))
        await interface.layer.declare_dead(interface.owner)
        await until(lambda: (PROBE, number, 1, 1) in interface.frames(number))
        interface.post((RESEND, number, 1, 0))
        await until(lambda: interface.events(number) == answer * 2)
        interface.post((RESET, number, 1), (PROBE, number, 1, 1))
        await until(lambda: (RESET, number, 1) in interface.frames(number), what="the end of the response")


async def test_an_answered_request_offered_again_does_not_run() -> None:
    runs: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        runs.append(scope["path"])
        await hello(scope, receive, send)

    async with running(app) as interface:
        number = interface.open(HTTP)
        await interface.answer(number)
        interface.open(HTTP, connection=number)
        await until(lambda: (PROBE, number, 1, 1) in interface.frames(number))
        assert len(runs) == 1


def test_recent_responses_are_bounded_in_number_and_age(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, count in (("USUAL_BYTES", 3), ("MOST_BYTES", 8)):
        monkeypatch.setattr(session_registry, limit, count * (session_registry.SESSION_BYTES + 100))
    responses = session_registry.RecentResponses()
    host = cast(SessionHost, SimpleNamespace(lifespan_state={}))
    sessions = []
    for number in range(9):
        request = ConnectRequest(REQUEST_VERSION, "i!", number, 1, False, 0, 1000, HTTP)
        session = Session(request, Claim("a", b"", None), host)
        session.stream.in_flight = 100
        sessions.append(session)
        responses.add(session)
    assert [*responses] == sessions[4:], "a full generation was kept"
    responses.forget(sessions[5])
    responses.rotate()
    assert [*responses] == sessions[8:]
    assert responses.find("i!", 8) is sessions[8]
    responses.rotate()
    assert [*responses] == []
    responses.raise_limit()
    for session in sessions:
        responses.add(session)
    assert [*responses] == sessions, "responses are dropped during a loss"


# Claims that an earlier worker may have handled.


@pytest.fixture
def _stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every claim a stale one."""
    claim = MemoryBus.claim

    async def stale(bus: MemoryBus, channels: Sequence[str], limit: int) -> list[Claim]:
        return [Claim(each.channel, each.id, each.entry, stale=True) for each in await claim(bus, channels, limit)]

    monkeypatch.setattr(MemoryBus, "claim", stale)


@pytest.mark.usefixtures("_stale")
@pytest.mark.parametrize("served_already", [True, False])
@pytest.mark.parametrize("kind", [HTTP, WEBSOCKET])
async def test_a_stale_claim_is_served_if_confirmed(served_already: bool, kind: str) -> None:
    runs: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        runs.append(scope["path"])
        await (hello if kind == HTTP else echo)(scope, receive, send)

    async with running(app) as interface:
        number = interface.open(kind)
        await until(lambda: (PROBE, number, 1, 0) in interface.frames(number))
        assert runs == []
        interface.post((RESET, number, 1) if served_already else (ACK, number, 1, 0))
        if served_already:
            await until(lambda: interface.worker.gauges()["sessions"] == 0)
            assert runs == []
            assert interface.events(number) == []
        else:
            await until(lambda: interface.events(number))
            assert len(runs) == 1


@pytest.mark.usefixtures("_stale")
async def test_the_app_gets_the_disconnect_of_a_client_that_has_left_before_a_stale_claim() -> None:
    app = Witness()
    app.may_return.set()
    async with running(app, resume=True) as interface:
        number = interface.open(WEBSOCKET, attempt=2, resumed=True)
        await until(lambda: (PROBE, number, 2, 0) in interface.frames(number))
        interface.post((EVENT, number, 2, 0, 0, events.WEBSOCKET_DISCONNECT, 1001, ""), (ACK, number, 2, 0))
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        assert app.codes == [1001]
        assert interface.frames(number)[-1] == (ACK, number, 2, 1)
        assert open_claims(interface) == 0


# Disconnects.


@pytest.mark.parametrize("resume", [True, False])
async def test_the_end_of_the_app_acknowledges_the_disconnect(resume: bool) -> None:
    app = Witness()
    async with running(app, resume=resume) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a")
        interface.post((EVENT, number, 1, 1, 1, events.WEBSOCKET_DISCONNECT, 1001, ""))
        await until(lambda: app.codes == [1001])
        interface.post((PROBE, number, 1, 2))
        await until(lambda: {frame[0] for frame in interface.frames(number)} & {ACK, RESET})
        cleaning_up = [(ACK, number, 1, 1)] if resume else [(RESET, number, 1)]
        assert interface.frames(number)[-1:] == cleaning_up
        app.may_return.set()
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        other = interface.open(HTTP, connection=number + 1)
        await until(lambda: interface.frames(other))
        assert ((ACK, number, 1, 2) in interface.frames(number)) is resume


@pytest.mark.parametrize("interface_lives", [True, False])
async def test_orphans_of_a_worker_are_reported_to_their_interface_server(interface_lives: bool) -> None:
    async with running(echo, concurrency=1) as interface:
        busy = await interface.accepted()
        recorder = Recorder()
        async with interface.layer.bus("worker", Recorder()) as other:
            bus = interface.bus
            async with interface.layer.bus("interface", recorder) as short_lived:
                if not interface_lives:
                    interface.bus = short_lived
                number = interface.open(WEBSOCKET, attempt=4)
                interface.bus = bus
                assert len(await other.claim(shared_channels("default"), 10)) == 1
        if interface_lives:
            await until(lambda: interface.frames(number))
            assert interface.frames(number) == [(ABANDONED, number, 4)]
        await until(lambda: interface.worker.counts().get("orphan"))
        interface.post((EVENT, busy, 1, 0, 1, events.WEBSOCKET_DISCONNECT, 1001, ""))
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        assert open_claims(interface) == 0


def open_claims(interface: Interface) -> int:
    """Return the number of claims that are not done, in a layer of this process."""
    layer: Any = interface.layer
    return sum(len(bus._claims) for bus in layer._buses.values())
