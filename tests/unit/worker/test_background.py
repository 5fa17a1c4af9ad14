"""The background worker between a layer and an app."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest

from asgibus.layers import ChannelFull, ChannelLayer, InMemoryChannelLayer
from asgibus.layers.streams import StreamError, StreamState
from asgibus.worker import background as background_module
from asgibus.worker.background import BackgroundWorker
from asgibus.worker.connection import connection
from asgibus.worker.settings import WorkerSettings
from support.bus import Recorder, until

pytestmark = pytest.mark.anyio

App = Callable[[Any, Any, Any], Awaitable[None]]


class Background:
    """A worker, its layer and its stop event."""

    def __init__(self, worker: BackgroundWorker, layer: ChannelLayer) -> None:
        self.worker = worker
        self.layer = layer
        self.stop = anyio.Event()
        self.ended: asyncio.Task[None]

    async def send(self, *numbers: int, channel: str = "work", **fields: Any) -> None:
        for number in numbers:
            await self.layer.send(channel, {"type": "job", "number": number} | fields)

    async def pending(self, channel: str = "work") -> int:
        return (await self.layer.channel_statistics(channel))["messages_pending"]

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.ended, 30)

    async def count(self, kind: str, number: int = 1) -> None:
        await until(lambda: self.worker.counts().get(kind, 0) >= number, what=f"{number} of {kind}")
        assert self.worker.counts()[kind] == number


@asynccontextmanager
async def running(app: App, layer: ChannelLayer | None = None, **settings: Any) -> AsyncIterator[Background]:
    """Run a worker for the channel "work" until the context ends or the test stops the worker."""
    layer = layer or InMemoryChannelLayer()
    values: dict[str, Any] = {"channels": ("work",), "graceful_timeout": 5.0}
    background = Background(BackgroundWorker(WorkerSettings(app="test", **values | settings), app, layer), layer)
    ready = anyio.Event()
    background.ended = asyncio.create_task(background.worker.serve(background.stop, ready.set))
    await asyncio.wait_for(ready.wait(), 30)
    yield background
    await background.end()
    assert background.worker.busy == 0


class Log:
    """An app that handles one message and returns; `seen` has the numbers of the messages."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "channel"
        self.scopes.append(scope)
        message = await receive()
        await self.handle(message)
        self.seen.append(message["number"])

    async def handle(self, message: Any) -> None:
        await asyncio.sleep(0)


class Gated(Log):
    """An app that handles each message when `go` is set; `begun` has the messages in progress."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.begun: list[int] = []

    async def handle(self, message: Any) -> None:
        self.begun.append(message["number"])
        await self.go.wait()


class Failing(Log):
    """An app that raises at odd numbers, `times` times at each."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.tried: Counter[int] = Counter()

    async def handle(self, message: Any) -> None:
        number = message["number"]
        self.tried[number] += 1
        if number % 2 and self.tried[number] <= self.times:
            raise ArithmeticError(f"{number} is odd")


@pytest.fixture
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the delays of retries to milliseconds."""
    monkeypatch.setattr(background_module, "RETRY_SECONDS", 0.01)


async def test_each_message_is_handled_once_and_acknowledged() -> None:
    app = Log()
    async with running(app) as background:
        await background.send(*range(50))
        await until(lambda: len(app.seen) == 50)
        await until(lambda: background.worker.busy == 0)
        await background.end()
        assert sorted(app.seen) == list(range(50))
        assert await background.pending() == 0, "nothing is given back"
        assert background.worker.counts() == {}


async def test_the_scope_names_the_channel_and_has_the_state_of_the_lifespan() -> None:
    scopes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["started"] = True
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        assert await receive() == {"type": "job", "number": 1, "data": b"x"}
        scope["state"]["mine"] = True
        scopes.append(scope)

    async with running(app, channels=("work", "more"), channel_concurrency=1) as background:
        await background.send(1, channel="more", data=b"x")
        await until(lambda: len(scopes) == 1)
        await background.send(1, data=b"x")
        await until(lambda: len(scopes) == 2)
        assert [scope["channel"] for scope in scopes] == ["more", "work"]
        assert scopes[1]["asgi"]["version"] == "3.0"
        assert scopes[1]["state"] == {"started": True, "mine": True}
        assert scopes[1]["state"] is not scopes[0]["state"], "each instance has a copy"
        assert scopes[1]["extensions"]["asgibus"]["layer"] is background.layer
        with pytest.raises(RuntimeError, match="no connection behind a channel scope"):
            connection(scopes[1])


async def test_an_instance_receives_further_messages() -> None:
    instances: list[list[int]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "channel"
        mine: list[int] = []
        instances.append(mine)
        while True:
            mine.append((await receive())["number"])

    async with running(app, channel_concurrency=1) as background:
        await background.send(*range(20))
        await until(lambda: instances and len(instances[0]) == 20)
        await until(lambda: background.worker.busy == 0)
        await background.end()
        assert instances == [list(range(20))], "in order, by one instance"
        assert await background.pending() == 0


async def test_the_concurrency_bounds_received_messages() -> None:
    app = Gated()
    layer = InMemoryChannelLayer(capacity=5)
    for number in range(5):
        await layer.send("work", {"number": number})
    async with running(app, layer, channel_concurrency=3) as background:
        await until(lambda: len(app.begun) == 3)
        await background.send(*range(5, 8))
        with pytest.raises(ChannelFull):
            await background.send(8)
        assert app.begun == [0, 1, 2]
        assert background.worker.gauges()["messages"] == 3
        app.go.set()
        await until(lambda: len(app.seen) == 8)


async def test_a_slow_channel_delays_no_other() -> None:
    slow = Gated()
    fast = Log()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (slow if scope.get("channel") == "slow" else fast)(scope, receive, send)

    async with running(app, channels=("slow", "work"), channel_concurrency=1) as background:
        await background.send(1, 2, channel="slow")
        await until(lambda: slow.begun)
        await background.send(*range(10))
        await until(lambda: len(fast.seen) == 10)
        slow.go.set()
        await until(lambda: len(slow.seen) == 2)


@pytest.mark.usefixtures("short_retries")
async def test_a_failed_message_is_repeated_and_delays_no_other(caplog: pytest.LogCaptureFixture) -> None:
    app = Failing(2)
    async with running(app, channel_concurrency=1) as background:
        await background.send(*range(4))
        await until(lambda: len(app.seen) == 4)
        assert set(app.seen[:2]) == {0, 2}, "the others wait for nothing"
        assert app.tried == {0: 1, 1: 3, 2: 1, 3: 3}
        await background.count("message failed", 4)
    assert "the app raised on a message of work, type 'job': attempt 1 of 5, again in 0.01 s" in caplog.text


async def test_retry_delays_grow_to_a_limit() -> None:
    assert [background_module.retry_delay(attempt) for attempt in (1, 2, 3, 6, 7, 10_000)] == [1, 2, 4, 32, 60, 60]


async def test_a_failed_message_waits_before_its_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_module, "RETRY_SECONDS", 0.2)
    app = Failing(1)
    async with running(app) as background:
        start = asyncio.get_running_loop().time()
        await background.send(1)
        await until(lambda: app.tried[1] == 2)
        assert asyncio.get_running_loop().time() - start > 0.19


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(("option", "channel"), [({}, "work.dead"), ({"dead_letter": "graveyard"}, "graveyard")])
async def test_a_message_is_a_dead_letter_after_its_last_attempt(
    option: dict[str, str], channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Failing(1000)
    async with running(app, attempts=3, **option) as background:
        await background.send(1, 2, data=b"kept")
        assert await background.layer.receive(channel) == {"type": "job", "number": 1, "data": b"kept"}
        await background.count("dead letter")
        assert app.tried == {1: 3, 2: 1}
        await background.end()
        assert await background.pending() == await background.pending(channel) == 0
    lines = [record for record in caplog.records if "goes to" in record.message]
    assert [line.message for line in lines] == [
        f"a message of work, type 'job', goes to {channel} after 3 attempts (the app raised)"
    ]


async def test_a_dropped_dead_letter_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    app = Failing(1000)
    layer = InMemoryChannelLayer(channel_capacity={"*.dead": 1})
    async with running(app, layer, attempts=1) as background:
        await background.send(1, 3)
        await background.count("dead letter dropped")
        await background.count("dead letter")
        assert await background.pending() == 0
    assert "is lost after 1 attempts (the app raised): channel 'work.dead' is at its capacity" in caplog.text


async def test_a_message_of_killed_workers_becomes_a_dead_letter() -> None:
    layer = InMemoryChannelLayer()
    await layer.send("work", {"type": "job", "number": 1})
    for attempt in (1, 2):
        async with layer.bus("worker", Recorder()) as dying:
            (delivery,) = await dying.take("work", 1)
            assert delivery.attempt == attempt
    last = Log()
    async with running(last, layer, attempts=2) as background:
        assert (await layer.receive("work.dead"))["number"] == 1
        await background.count("dead letter")
        assert last.seen == []


@pytest.mark.usefixtures("short_retries")
async def test_an_unreceived_message_is_not_handled() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        """Answer HTTP requests only."""

    async with running(app, attempts=2) as background:
        await background.send(1)
        await background.count("dead letter")
        await background.count("message failed", 2)


async def test_a_message_during_the_return_goes_to_the_next_instance() -> None:
    seen = []
    waits, leave = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "channel"
        seen.append((await receive())["number"])
        with suppress(TimeoutError):
            await asyncio.wait_for(receive(), 0.001)
        waits.set()
        await leave.wait()

    async with running(app, channel_concurrency=1) as background:
        await background.send(1)
        await waits.wait()
        await background.send(2)
        await until(lambda: background.worker.busy)
        leave.set()
        await until(lambda: seen == [1, 2])
        assert background.worker.counts() == {}


async def test_an_error_between_two_messages_affects_no_message(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "channel"
        seen.append((await receive())["number"])
        async with asyncio.timeout(0.005):
            await receive()

    async with running(app) as background:
        await background.send(1)
        await until(lambda: "the app raised between two messages of work" in caplog.text)
        await background.send(2)
        await until(lambda: seen == [1, 2])
        assert background.worker.counts() == {}


@pytest.mark.usefixtures("short_retries")
async def test_a_cancelled_error_of_the_app_is_a_failure() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if (await receive())["number"] == 1:
            raise asyncio.CancelledError
        seen.append(2)

    seen: list[int] = []
    async with running(app, attempts=2, lifespan="off") as background:
        await background.send(1, 2)
        await background.count("dead letter")
        assert seen == [2]


async def test_send_raises_without_a_client() -> None:
    raised = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "channel"
        await receive()
        try:
            await send({"type": "http.response.start"})
        except RuntimeError as error:
            raised.append(str(error))

    async with running(app) as background:
        await background.send(1)
        await until(lambda: raised)
        assert "'http.response.start' cannot be sent" in raised[0]
        assert "use the channel layer" in raised[0]


async def test_a_message_without_a_type_is_delivered() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "channel"
        seen.append(await receive())

    async with running(app) as background:
        await background.layer.send("work", {"no": "type"})
        await until(lambda: seen == [{"no": "type"}])


async def test_at_most_once_repeats_no_message(caplog: pytest.LogCaptureFixture) -> None:
    app = Failing(1)
    async with running(app, at_most_once=True) as background:
        await background.send(0, 1, 2)
        await background.count("message lost")
        await until(lambda: len(app.seen) == 2)
        await background.end()
        assert app.tried == {0: 1, 1: 1, 2: 1}
        assert await background.pending() == await background.pending("work.dead") == 0
    assert "the app raised on a message of work, type 'job': it is lost" in caplog.text


async def test_a_drain_finishes_begun_messages_and_takes_no_more() -> None:
    app = Gated()
    async with running(app, channel_concurrency=2) as background:
        await background.send(*range(5))
        await until(lambda: len(app.begun) == 2)
        background.stop.set()
        await until(lambda: background.worker.ready() == "stopping: no new messages are taken")
        assert not background.ended.done()
        app.go.set()
        await asyncio.wait_for(background.ended, 30)
        assert sorted(app.seen) == [0, 1]
        assert await background.pending() == 3


async def test_a_drain_gives_messages_back_before_the_shut_down() -> None:
    begun, shut_down = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["type"] == "channel":
            begun.set()
            await asyncio.sleep(60)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await shut_down.wait()
        await send({"type": "lifespan.shutdown.complete"})

    async with running(app, graceful_timeout=0.01) as background:
        await background.send(1)
        await begun.wait()
        background.stop.set()
        assert (await asyncio.wait_for(background.layer.receive("work"), 30))["number"] == 1
        shut_down.set()


@pytest.mark.parametrize("once", [False, True])
async def test_a_drain_gives_cancelled_messages_back(once: bool, caplog: pytest.LogCaptureFixture) -> None:
    app = Gated()
    layer = InMemoryChannelLayer()
    async with running(app, layer, graceful_timeout=0.05, at_most_once=once) as background:
        await background.send(1, 2)
        await until(lambda: len(app.begun) == 2)
        await background.end()
        assert app.seen == []
        assert await background.pending() == (0 if once else 2)
        assert background.worker.counts() == {"message lost" if once else "message cut": 2}
    assert f"2 messages were not handled within 0.05 s and are {'lost' if once else 'given back'}" in caplog.text
    if not once:
        second = Log()
        async with running(second, layer):
            await until(lambda: sorted(second.seen) == [1, 2])


async def test_waiting_instances_end_without_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ends = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "channel"
        try:
            while True:
                await receive()
        finally:
            ends.append(scope["channel"])

    async with running(app) as background:
        await background.send(1)
        await until(lambda: background.worker._consumers[0]._idle)
        await background.end()
    assert ends == ["work"]
    assert [record.message for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_a_worker_retires_after_max_requests_messages() -> None:
    app = Log()
    async with running(app, max_requests=20, channel_concurrency=1) as background:
        await background.send(*range(40))
        await asyncio.wait_for(background.ended, 30)
        assert 18 <= len(app.seen) <= 23
        assert await background.pending() == 40 - len(app.seen)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"dead_letter": "work"}, "which this worker handles itself"),
        ({"channels": ("a" * 96,)}, "more than 100 characters: name another"),
    ],
)
async def test_dead_letters_need_a_channel(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        BackgroundWorker(WorkerSettings(app="x", **{"channels": ("work",)} | settings), Log(), InMemoryChannelLayer())


class Answering(Log):
    """An app that writes a stream for each message, and fails at the first attempts."""

    def __init__(self, failures: int, restart: bool = True) -> None:
        super().__init__()
        self.failures = failures
        self.restart = restart
        self.attempts = 0

    async def handle(self, message: Any) -> None:
        layer = self.scopes[0]["extensions"]["asgibus"]["layer"]
        self.attempts += 1
        async with layer.stream("answer").writer(restart=self.restart) as out:
            await out.append(self.attempts)
            if self.attempts <= self.failures:
                raise ArithmeticError("a secret")


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(("restart", "items"), [(True, [2]), (False, [1, 2])])
async def test_the_next_delivery_goes_on_with_a_stream(restart: bool, items: list[int]) -> None:
    app = Answering(1, restart)
    async with running(app) as background:
        stream = background.layer.stream("answer")
        await background.send(1)
        await until(lambda: app.attempts == 2)
        await until(lambda: app.seen == [1])
    page = await stream.page()
    assert (page.state, [item for _, item in page.items]) == (StreamState.ENDED, items)


async def test_a_stream_is_open_between_two_deliveries() -> None:
    app = Answering(1)
    async with running(app) as background:
        await background.send(1)
        await background.count("message failed")
        page = await background.layer.stream("answer").info()
        assert page.state is StreamState.OPEN
        assert page.left is not None
        assert 25 < page.left <= 31


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_stream_fails_at_once_if_its_handler_has_caught_the_error(goes_on: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "channel"
        while True:
            await receive()
            with suppress(ArithmeticError):
                async with scope["extensions"]["asgibus"]["layer"].stream("answer").writer():
                    raise ArithmeticError
            if not goes_on:
                return

    async with running(app) as background:
        await background.send(1)
        reading = anext(background.layer.stream("answer").read())
        with pytest.raises(StreamError, match="ArithmeticError"):
            await asyncio.wait_for(reading, 5)


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize("settings", [{"attempts": 2}, {"at_most_once": True}])
async def test_a_stream_fails_with_the_last_attempt(settings: dict[str, Any]) -> None:
    app = Answering(9)
    async with running(app, **settings) as background:
        await background.send(1)
        await background.count("message failed", 1 if settings.get("at_most_once") else 2)
        await until(lambda: app.attempts == (1 if settings.get("at_most_once") else 2))
        page = await background.layer.stream("answer").info()
    assert (page.state, page.error) == (StreamState.FAILED, "ArithmeticError")
