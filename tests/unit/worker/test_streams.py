"""Streams as apps use them: a WebSocket follows one, and a request is answered with one."""

import asyncio
from typing import Any

import pytest

import asgibus
from asgibus.layers import LayerUnavailable
from asgibus.layers.codec import unpack
from asgibus.layers.frames import EVENT
from asgibus.layers.streams import Stream
from asgibus.protocol import events
from asgibus.protocol.connect_request import EVENT_STREAMS, STREAMS
from asgibus.worker import stream_response as module
from asgibus.worker.local_layer import local_layer
from support.bus import until
from support.worker_harness import Calls, Interface, accept, running

pytestmark = pytest.mark.anyio

OFFERED = {"asgibus": {EVENT_STREAMS: True, STREAMS: True}}


# WebSockets.


async def test_a_call_waits_until_the_interface_server_follows() -> None:
    template = {"entry": {"type": "websocket.send", "text": "{text}"}, "end": None}
    app = Calls(
        lambda connection: connection.follow("answer", "1764541234567-42", template),
        lambda connection: connection.follow("answer", template="raw"),
        lambda connection: connection.unfollow("answer"),
    )
    async with running(app) as interface:
        number = await interface.accepted(extensions=OFFERED)
        await interface.last(number, events.FOLLOW)
        assert app.outcome == []
        interface.post((EVENT, number, 1, 0, 0, events.GROUP_DONE, None, "stream:answer"))
        await until(lambda: app.outcome, what="the answer")
        await until(lambda: len(interface.events(number)) == 3, what="the second call")
        interface.post((EVENT, number, 1, 1, 0, events.GROUP_DONE, "away", "stream:answer"))
        await interface.last(number, events.UNFOLLOW)
        interface.post((EVENT, number, 1, 2, 0, events.GROUP_DONE, None, "stream:answer"))
        first, second, third = await app.outcomes()
    assert (first, third) == (None, None)
    assert isinstance(second, LayerUnavailable)
    _, follow, again, _ = interface.events(number)[:4]
    assert follow[1:3] == ("answer", "1764541234567-42")
    assert unpack(follow[3]) == {"entry": "{text}", "end": None}
    assert (again[2], unpack(again[3])) == ("0", {"raw": True})


async def test_what_cannot_be_followed_raises_at_once() -> None:
    app = Calls(
        lambda connection: connection.follow("no stream"),
        lambda connection: connection.follow("answer", after=42),
        lambda connection: connection.follow("answer", template={"kind": "sse"}),
        lambda connection: connection.follow("answer", template="html"),
        lambda connection: connection.follow("answer", template={"new": "x"}),
        lambda connection: connection.follow("answer", template={"entry": {"type": "websocket.close"}}),
        lambda connection: connection.follow("answer", template={"entry": "x" * 5000}),
        lambda connection: connection.group_send("room", {"type": "websocket.send", "text": "x"}, keep=0),
    )
    async with running(app) as interface:
        number = await interface.accepted(extensions=OFFERED)
        outcomes = await app.outcomes()
        assert len(interface.events(number)) == 1
    assert [type(each) for each in outcomes] == [TypeError] + [ValueError] * 7
    assert str(outcomes[2]) == "a template has no member 'kind'"
    assert str(outcomes[-1]) == "keep is the number of messages that are kept, from 1, not 0"


async def test_a_client_may_name_any_offset() -> None:
    app = Calls(
        lambda connection: connection.follow("answer", after="../etc"),
        lambda connection: connection.group_add("room", after=""),
    )
    async with running(app) as interface:
        number = await interface.accepted(extensions=OFFERED)
        await interface.last(number, events.FOLLOW)
        interface.post((EVENT, number, 1, 0, 0, events.GROUP_DONE, None, "stream:answer"))
        await until(lambda: len(interface.events(number)) == 3, what="the second call")
    assert [event[1:3] for event in interface.events(number)[1:3]] == [("answer", "1-0"), ("group:room", "0")]


async def test_an_interface_server_of_the_last_release_follows_nothing() -> None:
    app = Calls(
        lambda connection: connection.follow("answer"),
        lambda connection: connection.unfollow("answer"),
    )
    async with running(app) as interface:
        await interface.accepted()
        refused, discarded = await app.outcomes()
    assert isinstance(refused, RuntimeError)
    assert "earlier release" in str(refused)
    assert discarded is None


async def test_a_client_is_accepted_before_it_follows() -> None:
    raised: list[RuntimeError] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        try:
            await asgibus.connection(scope).follow("answer")
        except RuntimeError as error:
            raised.append(error)
        await accept(scope, receive, send)

    async with running(app) as interface:
        await interface.accepted(extensions=OFFERED)
    assert "websocket.accept" in str(raised[0])


async def test_a_request_is_answered_with_a_stream_instead() -> None:
    raised: list[RuntimeError] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        try:
            await asgibus.connection(scope).follow("answer")
        except RuntimeError as error:
            raised.append(error)
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    async with running(app) as interface:
        await interface.answer(interface.open(extensions=OFFERED))
    assert "stream_response" in str(raised[0])


async def test_a_connection_has_the_streams_of_its_layer() -> None:
    app = Calls(lambda connection: asyncio.sleep(0, connection.stream("answer")))
    async with running(app) as interface:
        await interface.accepted()
        [stream] = await app.outcomes()
        assert stream.shares_store_with(interface.layer.stream("answer"))


# Responses.


class Answers:
    """An app that answers with a stream, perhaps through middleware that adds headers."""

    def __init__(self, *headers: tuple[bytes, bytes], **options: Any) -> None:
        self.headers = headers
        self.options = options
        self.ended = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"

        async def send_more(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.headers]}
            await send(message)

        await asgibus.stream_response(scope, receive, send_more, "answer", **self.options)
        self.ended += 1


async def write(stream: Stream, *items: Any) -> list[str]:
    """Write a whole stream, and return the offsets."""
    async with stream.writer() as out:
        return [await out.append(item) for item in items]


def body_of(interface: Interface, number: int) -> bytes:
    codes = (events.RESPONSE, events.RESPONSE_BODY, events.RESPONSE_END)
    return b"".join(event[-1] for event in interface.events(number) if event[0] in codes)


@pytest.mark.parametrize("resume", [True, False])
async def test_the_run_ends_when_the_response_has_begun(resume: bool) -> None:
    app = Answers((b"x-mine", b"1"), event="token", template={"end": "[DONE]"})
    async with running(app, resume=resume) as interface:
        number = interface.open(extensions=OFFERED, query_string=b"after=1764541234567-42")
        await interface.last(number, events.DETACH)
        await until(lambda: app.ended, what="the end of the run")
    head, comment, detach = interface.events(number)
    assert head[0] == (events.EVENT_STREAM if resume else events.RESPONSE_START)
    assert b"content-type: text/event-stream\r\n" in head[2]
    assert b"x-mine: 1\r\n" in head[2]
    assert comment == (events.RESPONSE_BODY, b":\n\n")
    assert detach[1:3] == ("answer", "1764541234567-42")
    assert unpack(detach[3]) == {"kind": "sse", "event": "token", "end": "[DONE]"}


@pytest.mark.parametrize(
    ("given", "after"),
    [
        ({"headers": ((b"last-event-id", b"1764541234567-7"),), "query_string": b"after=1-1"}, "1764541234567-7"),
        ({"headers": ((b"last-event-id", b"of another app"),)}, "1-0"),
        ({"query_string": b"a=1&after=0"}, "0"),
        ({"query_string": b"after=%FF"}, "1-0"),
        ({}, "1764541234567-1"),
    ],
)
async def test_the_client_says_where_it_is(given: Any, after: str) -> None:
    async with running(Answers(after="1764541234567-1")) as interface:
        number = interface.open(extensions=OFFERED, **given)
        await interface.last(number, events.DETACH)
    assert interface.events(number)[-1][2] == after


async def test_a_client_that_has_the_end_is_told_to_stop() -> None:
    async with running(Answers()) as interface:
        offsets = await write(interface.layer.stream("answer"), 1, 2)
        numbers = [
            interface.open(extensions=OFFERED, headers=((b"last-event-id", offset.encode()),)) for offset in offsets
        ]
        numbers.append(interface.open(extensions=OFFERED, query_string=b"after=" + offsets[1].encode()))
        for number, code in zip(numbers, (events.DETACH, events.RESPONSE, events.DETACH), strict=True):
            await interface.last(number, code)
    assert interface.events(numbers[1]) == [(events.RESPONSE, 204, b"cache-control: no-store\r\n", b"")]


async def test_a_head_request_gets_the_head() -> None:
    async with running(Answers()) as interface:
        number = interface.open(extensions=OFFERED, method="HEAD")
        [answer] = await interface.answer(number)
    assert answer[:2] == (events.RESPONSE, 200)
    assert answer[3] == b""


@pytest.mark.parametrize(
    ("app", "extensions"),
    [
        (Answers(), {}),
        (Answers((b"content-encoding", b"br")), OFFERED),
        (Answers((b"content-length", b"9999")), OFFERED),
    ],
    ids=["an earlier release", "compressed", "of a length"],
)
async def test_the_app_reads_where_the_interface_server_cannot(app: Answers, extensions: Any) -> None:
    async with running(app) as interface:
        await write(interface.layer.stream("answer"), "a")
        number = interface.open(extensions=extensions, window=100_000)
        await until(lambda: b"event: end" in body_of(interface, number), what="the end of the stream")
    assert b'data: "a"\n\n' in body_of(interface, number)
    assert events.DETACH not in [event[0] for event in interface.events(number)]


# Other servers.


class Server:
    """A server that knows nothing of asgibus."""

    def __init__(self, *, method: str = "GET", last: str = "") -> None:
        headers = [(b"last-event-id", last.encode())] if last else []
        self.scope = {"type": "http", "method": method, "headers": headers, "query_string": b""}
        self.sent: list[Any] = []
        self.gone = asyncio.Event()

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self, stream: str | Stream, **options: Any) -> bytes:
        await asgibus.stream_response(self.scope, self.receive, self.send, stream, **options)
        return self.body

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def test_another_server_reads_in_the_process() -> None:
    server = Server()
    async with local_layer().stream("answer").writer() as out:
        first = await out.append("a")
        await out.flush()
        running = asyncio.create_task(server.run("answer", template="raw"))
        await until(lambda: b"data: a" in server.body, what="what is kept")
        second = await out.append("b\nc")
    assert await running == (
        f":\n\nid: {first}\ndata: a\n\nid: {second}\ndata: b\ndata: c\n\nid: {second}\nevent: end\ndata: \n\n".encode()
    )
    assert server.sent[-1] == {"type": "http.response.body"}
    again = Server(last=second)
    await again.run("answer")
    assert again.sent[0]["status"] == 204


async def test_a_client_that_names_the_stream_gets_no_messages_of_groups() -> None:
    app = Calls(
        lambda connection: connection.follow("group:room"), lambda connection: connection.unfollow("group:room")
    )
    async with running(app) as interface:
        await interface.accepted(extensions=OFFERED)
        outcomes = await app.outcomes()
    scope = {"type": "http", "method": "GET", "headers": [], "query_string": b""}
    with pytest.raises(TypeError, match="kept messages of a group") as raised:
        await module.stream_response(scope, pytest.fail, pytest.fail, "group:room")
    assert [str(each) for each in outcomes] == [str(raised.value)] * 2


async def test_a_websocket_is_not_answered_with_a_response() -> None:
    with pytest.raises(RuntimeError, match=r"connection\(scope\)\.follow"):
        await module.stream_response({"type": "websocket", "headers": []}, pytest.fail, pytest.fail, "answer")


async def test_another_server_tells_an_error_and_what_is_gone() -> None:
    stream = local_layer().stream("answer")
    server = Server(last="1-5")
    with pytest.raises(ValueError, match="x"):
        async with stream.writer() as out:
            offset = await out.append("a")
            raise ValueError("x")
    epoch = offset.partition("-")[0]
    assert await server.run(stream) == (
        f':\n\nid: {epoch}-0\nevent: reset\ndata: null\n\nid: {offset}\ndata: "a"\n\n'
        f'id: {offset}\nevent: error\ndata: "ValueError"\n\n'.encode()
    )


async def test_another_server_keeps_a_silent_stream_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", 0.01)
    server = Server()
    running = asyncio.create_task(server.run("answer"))
    await until(lambda: server.body.count(b":\n\n") > 2, what="comments")
    server.gone.set()
    await running
