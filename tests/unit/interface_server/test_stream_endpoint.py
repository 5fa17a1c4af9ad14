"""Streams over HTTP: a whole interface server over a layer in memory, without a worker."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import httpx
import pytest

from asgibus.interface_server.connections import followers
from asgibus.interface_server.server import Server
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers import InMemoryChannelLayer, LayerUnavailable
from asgibus.layers.settings import StreamLimits
from asgibus.protocol import durable_streams as durable
from asgibus.protocol.stream_names import sign_name
from support.bus import until

pytestmark = pytest.mark.anyio

KEY = "0123456789abcdef"
FAR = 2**40  # a time that has not come


class Served:
    """A server, and a client of it."""

    def __init__(self, server: Server, layer: InMemoryChannelLayer, url: str, client: httpx.AsyncClient) -> None:
        self.server = server
        self.layer = layer
        self.url = url
        self.client = client

    async def get(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        return await self.client.request(method, f"/streams/{path}", headers=headers)

    @property
    def readers(self) -> int:
        assert self.server.streams is not None
        return len(self.server.streams.readers)

    @property
    def following(self) -> int:
        return len(self.server.connections.followers)


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Served]:
    layer = InMemoryChannelLayer()
    options = {"streams_unsigned": True, "graceful_timeout": 1, "drain_period": 0, "access_log": False} | settings
    server = Server(InterfaceSettings(port=0, streams="/streams", **options), layer)
    stop, listening = anyio.Event(), anyio.Event()
    urls: list[str] = []

    def ready(url: str) -> None:
        urls.append(url)
        listening.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, stop, ready)
        with anyio.fail_after(10):
            await listening.wait()
        try:
            async with httpx.AsyncClient(base_url=urls[0], trust_env=False, timeout=10) as client:
                yield Served(server, layer, urls[0], client)
        finally:
            stop.set()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


async def write(served: Served, *items: Any, name: str = "log", content_type: str = "") -> str:
    """Write a whole stream, and return its last offset."""
    async with served.layer.stream(name).writer(content_type=content_type) as out:
        for item in items:
            await out.append(item)
    return out.offset


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.split("\n\n")[:-1]:
        if block != ":":
            kind, data = block.split("\n", 1)
            found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data:"))))
    return found


# What is there.


async def test_a_stream_is_read_in_pages(served: Served) -> None:
    await write(served, *range(1200))
    items: list[int] = []
    query, pages = "", 0
    while True:
        response = await served.get(f"log{query}")
        items += response.json()
        pages += 1
        query = f"?offset={response.headers['stream-next-offset']}"
        if response.headers.get("stream-closed"):
            break
    assert items == [*range(1200)]
    assert pages == 3


async def test_an_offset_of_the_app_is_one_of_the_protocol(served: Served) -> None:
    async with served.layer.stream("log").writer() as out:
        offset = await out.append("a")
        await out.append("b")
        await out.flush()
        assert (await served.get(f"log?offset={offset}")).json() == ["b"]


async def test_the_content_type_is_that_of_the_writer(served: Served) -> None:
    await write(served, "a", b"\xff", content_type="application/x-log")
    response = await served.get("log")
    assert response.headers["content-type"] == "application/x-log"
    assert response.content == b"a\xff"
    with pytest.raises(ValueError, match="is one such as text/plain, not 'text'"):
        served.layer.stream("log").writer(content_type="text")


async def test_no_stream(served: Served) -> None:
    for path in (
        "log",
        "log?offset=now",
        "log?offset=-1&live=long-poll",
        "log?offset=-1&live=sse",
        "a/b",
        "%c3%a9",
        "",
    ):
        assert (await served.get(path)).status_code == 404
    assert (await served.get("log", "HEAD")).status_code == 404


async def test_requests_of_one_socket_are_answered_one_after_another(served: Served) -> None:
    await write(served, "a")
    host, port = served.url.removeprefix("http://").split(":")
    async with await anyio.connect_tcp(host, int(port)) as client:
        await client.send(b"HEAD /streams/log HTTP/1.1\r\nHost: a\r\n\r\nGET /streams/log HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.send(b"GET /streams/other HTTP/1.0\r\n\r\n")
        received = b""
        with anyio.fail_after(10):
            async for data in client:
                received += data
    heads = [part.split(b"\r\n")[0] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert heads == [b"200 OK", b"200 OK", b"404 Not Found"]
    assert received.count(b'["a"]') == 1


async def test_what_writes_is_for_the_app() -> None:
    async with serving(connect_timeout=0.2) as served:
        for method in ("PUT", "POST", "DELETE", "OPTIONS"):
            response = await served.get("log", method)
            assert (response.status_code, response.text) == (503, "No worker is ready for this request.\n")
        preflight = await served.get("log", "OPTIONS", **{"access-control-request-method": "GET"})
        assert preflight.status_code == 204
        assert (await served.client.get("/streamsx/log")).status_code == 503


async def test_a_layer_that_is_away(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(name: str) -> Any:
        raise LayerUnavailable("Redis is away")

    monkeypatch.setattr(served.layer, "stream", away)
    response = await served.get("log")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


# Signatures.


async def test_a_stream_is_read_with_its_signature_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asgibus.access")
    async with serving(
        streams_unsigned=False, streams_keys=("another key of 32 bytes", KEY), access_log=True
    ) as served:
        await write(served, "a")
        signed, expired = sign_name("log", KEY, FAR), sign_name("log", KEY, 1)
        assert (await served.get(signed)).json() == ["a"]
        assert (await served.get(signed + "&offset=now")).json() == []
        assert (await served.get(signed, "HEAD")).status_code == 200
        assert (await served.get(signed.replace("signature", "%73ignature"))).json() == ["a"]
        unsigned = "log", "other", "a/b", signed.replace("log", "other", 1), signed[:-1]
        refused = [await served.get(each) for each in unsigned]
        assert {(each.status_code, each.text) for each in refused} == {
            (403, "The signature of this stream is missing or wrong.\n")
        }
        assert (await served.get(expired)).text == "The signature of this stream has expired.\n"
        assert served.server.counts()["stream refused"] == 6
        await served.get(signed, "OPTIONS", **{"access-control-request-method": "GET"})
        with suppress(httpx.ReadTimeout):  # there is no app
            await served.client.request("POST", f"/streams/{signed}", timeout=0.05)
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert f"GET /streams/log?expires={FAR}&signature=...&offset=now HTTP/1.1" in logged
    assert f"OPTIONS /streams/log?expires={FAR}&signature=... HTTP/1.1" in logged
    assert f"POST /streams/log?expires={FAR}&signature=... HTTP/1.1" in logged
    assert signed.rpartition("=")[2][:20] not in logged


# Long polls.


async def test_long_polls_get_what_is_appended(served: Served) -> None:
    found: list[tuple[Any, ...]] = []

    async def poll(offset: str) -> None:
        response = await served.get(f"log?offset={offset}&live=long-poll")
        found.append((response.status_code, response.json(), response.headers["stream-next-offset"][-2:]))

    async with served.layer.stream("log").writer() as out:
        await out.append("a")
        await out.flush()
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(poll, out.offset)
                tasks.start_soon(poll, "now")
            await until(lambda: served.following == 40)
            await out.append("b")
    assert found == [(200, ["b"], "02")] * 40
    assert served.readers == served.following == 0


async def test_the_group_of_a_stream_is_kept_between_two_polls(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "KEEP_SECONDS", 0.3)
    async with served.layer.stream("log").writer() as out, anyio.create_task_group() as tasks:
        tasks.start_soon(served.get, "log?offset=now&live=long-poll")
        await until(lambda: served.following == 1)
        await out.append("a")
        await until(lambda: served.following == 0)
        assert served.server.connections.followers.streams == 1
        await until(lambda: served.server.connections.followers.streams == 0)


@pytest.mark.parametrize("live", ["", "?offset=-1&live=sse"])
async def test_readers_of_one_page_share_a_read(served: Served, monkeypatch: pytest.MonkeyPatch, live: str) -> None:
    await write(served, *range(10))
    stream, going_on = served.layer.stream("log"), anyio.Event()
    reads = encoded = 0
    data_event = durable.data_event

    def count(batch: Any) -> bytes:
        nonlocal encoded
        encoded += 1
        return data_event(batch)

    class Slow:
        async def page(self, *arguments: Any) -> Any:
            nonlocal reads
            reads += 1
            await going_on.wait()
            return await stream.page(*arguments)

    monkeypatch.setattr(served.layer, "stream", lambda name: Slow())
    monkeypatch.setattr(durable, "data_event", count)
    found: list[httpx.Response] = []

    async def read() -> None:
        found.append(await served.get(f"log{live}"))

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(read)
        await until(lambda: served.readers == 50)
        going_on.set()
    bodies = [events(each.text)[0][1] if live else each.json() for each in found]
    assert bodies == [[*range(10)]] * 50
    assert reads <= 2
    assert encoded <= (2 if live else 0)


async def test_a_long_poll_waits_no_longer_than_the_option_says() -> None:
    async with serving(streams_poll_timeout=0.1) as served, served.layer.stream("log").writer() as out:
        response = await served.get("log?offset=now&live=long-poll")
        assert response.status_code == 204
        assert response.headers["stream-up-to-date"] == "true"
        await out.append("a")
        again = await served.get(f"log?offset={response.headers['stream-next-offset']}&live=long-poll")
        assert again.json() == ["a"]


async def test_a_long_poll_learns_of_the_end(served: Served) -> None:
    responses: list[httpx.Response] = []

    async def poll() -> None:
        responses.append(await served.get("log?offset=now&live=long-poll"))

    async with anyio.create_task_group() as tasks, served.layer.stream("log").writer() as out:
        tasks.start_soon(poll)
        await until(lambda: served.following == 1)
    assert responses[0].status_code == 204
    assert responses[0].headers["stream-closed"] == "true"
    assert out.offset.endswith("-0")


@pytest.mark.parametrize("what", ["failed", "begun anew", "deleted"])
async def test_a_long_poll_learns_of_a_stream_that_does_not_go_on(served: Served, what: str) -> None:
    responses: list[httpx.Response] = []

    async def poll() -> None:
        responses.append(await served.get("log?offset=now&live=long-poll"))

    stream = served.layer.stream("log")
    async with anyio.create_task_group() as tasks:
        with pytest.raises(Exception, match=r"another|deleted|stop here"):
            async with stream.writer() as out:
                await out.append("a")
                await out.flush()
                tasks.start_soon(poll)
                await until(lambda: served.following == 1)
                if what == "failed":
                    raise ValueError("stop here")
                if what == "deleted":
                    await stream.delete()
                else:
                    async with stream.writer(restart=True) as other:
                        await other.append("b")
    [response] = responses
    status = {"failed": 424, "begun anew": 410, "deleted": 404}[what]
    assert response.status_code == status
    assert response.headers.get("stream-error") == ("ValueError" if what == "failed" else None)
    if what == "begun anew":
        again = await served.get(f"log?offset={response.headers['stream-earliest-offset']}")
        assert again.json() == ["b"]


async def test_a_client_that_leaves_is_forgotten(served: Served) -> None:
    async with served.layer.stream("log").writer():
        for live in ("long-poll", "sse"):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(served.get, f"log?offset=now&live={live}")
                    await until(lambda: served.following == 1)
                    scope.cancel()
            await until(lambda: served.following == served.readers == 0)


async def test_a_client_that_sends_no_more_gets_what_is_there(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    async with served.layer.stream("log").writer(), await anyio.connect_tcp(host, int(port)) as client:
        await client.send(2 * b"GET /streams/log?offset=now&live=long-poll HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: served.following == 1)
        await client.send_eof()
        received = b""
        with anyio.fail_after(10):
            async for data in client:
                received += data
        assert received.count(b"HTTP/1.1 204 ") == 2


# Server-sent events.


async def test_events_are_what_is_there_and_then_what_is_appended(served: Served) -> None:
    async with anyio.create_task_group() as tasks, served.layer.stream("log").writer() as out:
        await out.append("a")
        await out.flush()
        received: list[str] = []

        async def read() -> None:
            async with served.client.stream("GET", "/streams/log?offset=-1&live=sse") as response:
                assert response.headers["content-type"] == "text/event-stream"
                async for text in response.aiter_text():
                    received.append(text)  # noqa: PERF401 # the test looks at it meanwhile

        tasks.start_soon(read)
        await until(lambda: served.following == 1)
        await out.append({"b": "\n"})
        await until(lambda: len(received) == 2)
        await out.append("c")
    found = events("".join(received))
    assert [data for kind, data in found if kind == "data"] == [["a"], [{"b": "\n"}], ["c"]]
    controls = [data for kind, data in found if kind == "control"]
    assert [data["streamNextOffset"][-1] for data in controls[:3]] == ["1", "2", "3"]
    assert all(data["streamNextOffset"][-1] == "3" for data in controls[3:]), "the end comes with it, or alone"
    assert all(data["upToDate"] for data in controls)
    assert found[-1][1]["streamClosed"] is True
    assert "streamCursor" not in found[-1][1]


async def test_events_of_a_long_stream_come_without_a_gap(served: Served) -> None:
    await write(served, *range(1200))
    response = await served.get("log?offset=-1&live=sse")
    found = events(response.text)
    assert [item for kind, data in found if kind == "data" for item in data] == [*range(1200)]
    controls = [data for kind, data in found if kind == "control"]
    assert [control.get("streamClosed", False) for control in controls] == [False] * (len(controls) - 1) + [True]


async def test_events_end_with_a_failure_and_a_status_follows(served: Served) -> None:
    with pytest.raises(ValueError, match="stop"):
        async with served.layer.stream("log").writer() as out:
            await out.append("a")
            raise ValueError("stop")
    found = events((await served.get("log?offset=-1&live=sse")).text)
    assert [kind for kind, _ in found] == ["data", "control"]
    assert "streamClosed" not in found[1][1]
    again = await served.get(f"log?offset={found[1][1]['streamNextOffset']}&live=sse")
    assert (again.status_code, again.headers["stream-error"]) == (424, "ValueError")


async def test_a_slow_client_gets_every_entry(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    entry = "x" * 50_000
    stream = served.layer.stream("log", StreamLimits(bytes=2**26))
    loop = asyncio.get_running_loop()
    with socket.socket() as client:  # one that reads what the test takes, and no more
        client.setblocking(False)
        await loop.sock_connect(client, (host, int(port)))
        async with stream.writer(content_type="text/plain") as out:
            await loop.sock_sendall(client, b"GET /streams/log?offset=-1&live=sse HTTP/1.1\r\nHost: a\r\n\r\n")
            await until(lambda: served.following == 1)
            for number in range(300):  # 15 MB, more than the kernel buffers
                await out.append(f"<{number}>{entry}")
                if number % 10 == 9:
                    await out.flush()
            assert served.server.streams is not None
            [reader] = served.server.streams.readers
            assert reader.write_paused
        received = b""
        with anyio.fail_after(30):
            while b'"streamClosed"' not in received[-200:]:
                received += await loop.sock_recv(client, 1_000_000)
    assert [received.count(f"<{number}>".encode()) for number in range(300)] == [1] * 300


# The end of the server.


async def test_live_answers_end_when_the_server_stops() -> None:
    responses: list[httpx.Response] = []
    async with anyio.create_task_group() as tasks:
        async with serving() as served:
            client = httpx.AsyncClient(base_url=served.url, trust_env=False, timeout=10)

            async def read(live: str) -> None:
                responses.append(await client.get(f"/streams/log?offset=now&live={live}"))

            writer = served.layer.stream("log").writer()
            await writer.__aenter__()
            tasks.start_soon(read, "long-poll")
            tasks.start_soon(read, "sse")
            await until(lambda: served.following == 2)
        with anyio.fail_after(5):
            await until(lambda: len(responses) == 2)
    await writer.__aexit__(None, None, None)
    await client.aclose()
    assert sorted(each.status_code for each in responses) == [200, 204]
