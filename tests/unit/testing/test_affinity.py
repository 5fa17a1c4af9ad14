"""Connections with one key, which go to one worker, while that worker lives and does not drain."""

import asyncio
import gzip
import re
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from asgibus.testing import Bus, VirtualWorker, WebSocket

pytestmark = pytest.mark.anyio

KEYS = ("path:/ws/{room}", "query:room", "cookie:room", "header:X-Room")


def named(name: str) -> Any:
    """Return an app that tells each client its name."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        if scope["type"] == "http":
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": name.encode()})
            return
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": name})
        while (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": name})

    return app


class Workers:
    """A factory of apps, each of which tells its clients the number of its worker."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Any:
        self.count += 1
        return named(str(self.count))


def bus(workers: int = 2, **options: Any) -> Bus:
    return Bus(Workers(), workers=workers, factory=True, affinity=KEYS, **options)


async def ask(socket: WebSocket) -> str:
    await socket.send("who?")
    return str(await socket.receive())


async def test_connections_with_one_key_go_to_one_worker() -> None:
    async with bus() as site, AsyncExitStack() as stack:
        for room in range(6):
            found = set()
            for _ in range(5):
                socket = await stack.enter_async_context(site.websocket(f"/ws/{room}"))
                found.add(await socket.receive())
            assert len(found) == 1
            found.add((await site.http.get(f"/anything?room={room}")).text)
            found.add((await site.http.get("/", headers={"cookie": f"a=b; room={room}"})).text)
            assert len(found) == 1
            posted = {(await site.http.post("/", headers={"x-room": f"{room}"}, content="x")).text for _ in range(3)}
            assert len(posted) == 1  # the name is another one, and so is the key


async def test_keys_are_spread_over_the_workers() -> None:
    async with bus(3) as site:
        served = Counter([(await site.http.get(f"/?room={room}")).text for room in range(30)])
        assert sorted(served.values()) == [10, 10, 10]
        again = Counter([(await site.http.get(f"/?room={room}")).text for room in range(30)])
        assert again == served


@pytest.mark.parametrize("end", [VirtualWorker.kill, VirtualWorker.drain])
async def test_the_keys_of_a_worker_that_ends_move_to_one_worker_each(end: Any) -> None:
    async with bus(3, resume=True) as site, AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(site.websocket("/ws/lobby")) for _ in range(4)]
        (first,) = {await socket.receive() for socket in sockets}
        await end(site.workers[int(first) - 1])
        posts = [asyncio.ensure_future(site.http.post("/?room=lobby", content=b"x")) for _ in range(5)]
        moved = {await ask(socket) for socket in sockets}
        moved |= {(await post).text for post in posts}
        moved.add(await (await stack.enter_async_context(site.websocket("/ws/lobby"))).receive())
        assert len(moved) == 1
        assert moved != {first}


async def test_what_a_dying_worker_has_not_claimed_goes_to_another() -> None:
    async with bus(2) as site:
        first = (await site.http.get("/?room=lobby")).text
        worker = site.workers[int(first) - 1]
        worker.delay(60)
        begun = asyncio.ensure_future(site.http.post("/?room=lobby", content=b"x"))
        await asyncio.sleep(0.1)  # it is claimed, and nothing else is meanwhile
        posts = [asyncio.ensure_future(site.http.post("/?room=lobby", content=b"x")) for _ in range(5)]
        await asyncio.sleep(0.1)
        await worker.kill()
        assert (await begun).status_code == 502
        answers = [await post for post in posts]
        assert [answer.status_code for answer in answers] == [200] * 5
        assert len({answer.text for answer in answers} - {first}) == 1


async def test_a_key_waits_for_a_worker() -> None:
    async with bus(0) as site:
        gets = [asyncio.ensure_future(site.http.get("/?room=lobby")) for _ in range(5)]
        posts = [asyncio.ensure_future(site.http.post("/?room=lobby", content=b"x" * 5000)) for _ in range(5)]
        await asyncio.sleep(0.1)
        for _ in range(2):
            await site.add_worker()
        assert len({(await answer).text for answer in (*gets, *posts)}) == 1


async def test_without_a_worker_a_key_times_out() -> None:
    async with bus(0, connect_timeout=0.2) as site:
        assert (await site.http.get("/?room=lobby")).status_code == 503


async def test_a_client_that_leaves_while_its_key_waits_is_not_offered() -> None:
    runs = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        runs.append(scope["path"])
        await named("x")(scope, receive, send)

    async with Bus(app, workers=0, affinity=KEYS, lifespan="off") as site:
        with pytest.raises(TimeoutError):
            async with site.websocket("/ws/gone", open_timeout=0.1):
                pass
        asking = asyncio.ensure_future(site.http.get("/?room=stays"))
        await site.add_worker()
        assert (await asking).status_code == 200
        assert (await site.http.get("/?room=gone")).text == "x"
        assert runs == ["/", "/"]


async def test_a_key_expires() -> None:
    async with bus(2, affinity_expiry=0.3) as site:
        assert (await site.http.get("/?room=a")).text == "1"
        assert (await site.http.get("/?room=b")).text == "2"
        assert (await site.http.get("/?room=c")).text == "1"
        async with site.websocket("/ws/b") as socket:  # an open socket keeps its key
            assert await socket.receive() == "2"
            await asyncio.sleep(1.0)
            assert (await site.http.get("/?room=b")).text == "2"
            assert (await site.http.get("/?room=c")).text in ("1", "2")


async def test_other_routes_have_no_key() -> None:
    async with Bus(named("x"), affinity=("/chat=query:room",)) as site:
        assert (await site.http.get("/?room=1")).text == "x"
        assert (await site.http.get("/chat?room=1")).text == "x"


class Maker:
    """A factory of apps that make a session in one process, and know it in no other.

    A request with an id of a session gets the worker's number if it has made the session, else 404.
    """

    def __init__(self, start: Any) -> None:
        self.count = 0
        self.start = start

    def __call__(self) -> Any:
        self.count += 1
        number, sessions = self.count, set[bytes]()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert scope["type"] != "lifespan"
            session = dict(scope["headers"]).get(b"session") or scope["query_string"].partition(b"sid=")[2]
            status, headers, parts = 404, [], [b"no session"]
            if session in sessions:
                status, parts = 200, [b"%d" % number]
            elif not session:
                new = b"s%d-%d" % (number, len(sessions))
                sessions.add(new)
                status, headers, parts = 201, *self.start(new)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body"})

        return app


STARTS: dict[str, Any] = {
    "header": ("header:Session", lambda sid: ([(b"session", sid)], [b"{}"])),
    "cookie": ("cookie:sid", lambda sid: ([(b"set-cookie", b"sid=%b; Path=/" % sid)], [b"{}"])),
    "Socket.IO": ("query:sid", lambda sid: ([], [b'0{"sid":"%b","upgrades":[]}' % sid])),
    "a link": ("query:sid", lambda sid: ([], [b"event: endpoint\ndata: /messages?sid=%b\n\n" % sid])),
    "the end": ("query:sid", lambda sid: ([], [b"go to /?sid=%b" % sid])),
    "two parts": ("query:sid", lambda sid: ([], [b'{"sid": "%b' % sid[:2], b'%b", "x": 1}' % sid[2:]])),
    "a page": ("query:sid", lambda sid: ([], [b"<p>" * 50_000, b"let query = {'sid': '%b'}" % sid])),
    "gzip": (
        "query:sid",
        lambda sid: ([(b"content-encoding", b"gzip")], [gzip.compress(b"<p>" * 50_000 + b'{"sid": "%b"}' % sid)]),
    ),
}


@pytest.mark.parametrize("name", STARTS)
async def test_an_id_that_the_app_makes_is_learned(name: str) -> None:
    key, start = STARTS[name]
    async with Bus(Maker(start), workers=3, factory=True, affinity=(f"learn:{key}",)) as site:
        for _ in range(6):
            began = await site.http.get("/")
            assert began.status_code == 201
            sid = began.headers.get("session") or re.findall(r"s\d-\d+", began.text + str(began.cookies))[0]
            site.http.cookies.clear()
            sent = {"header": {"session": sid}, "cookie": {"cookie": f"sid={sid}", "session": sid}}.get(name, {})
            for _ in range(5):
                answer = await site.http.post("/", headers=sent, params={} if sent else {"sid": sid})
                assert answer.status_code == 200, sid


@pytest.mark.parametrize(
    "start",
    [
        lambda sid: ([(b"content-type", b"image/png")], [b"sid=%b " % sid]),
        lambda sid: ([(b"content-encoding", b"br")], [b"sid=%b " % sid]),
        lambda sid: ([(b"content-encoding", b"gzip")], [b"sid=%b " % sid]),
        lambda sid: ([], [b"x" * 300_000, b"sid=%b " % sid]),
        lambda sid: ([], [b"asid=%b " % sid]),
        lambda sid: ([], [b"sid "]),
        lambda sid: ([(b"sid", sid)], []),
    ],
)
async def test_nothing_is_learned_from_other_answers(start: Any) -> None:
    def begin(sid: bytes) -> Any:
        headers, parts = start(sid)
        return [*headers, (b"x-sid", sid)], parts

    async with Bus(Maker(begin), workers=1, factory=True, affinity=("learn:query:sid",)) as site:
        request = site.http.build_request("GET", "/")
        began = await site.http.send(request, stream=True)
        assert b"".join([part async for part in began.aiter_raw()]) is not None
        assert (await site.http.get("/", params={"sid": began.headers["x-sid"]})).status_code == 200
        assert not site.errors


async def test_a_cookie_is_set() -> None:
    async with Bus(Workers(), workers=2, factory=True, affinity=("/app=sticky:place",)) as site:
        workers = set()
        for _ in range(6):
            first = await site.http.get("/app")
            assert re.fullmatch("place=[0-9a-f]{32}; Path=/; HttpOnly; SameSite=Lax", first.headers["set-cookie"])
            again = {(await site.http.post("/app", content=b"x")).text for _ in range(4)}  # with the cookie
            assert again == {first.text}
            headers = {"cookie": f"place={site.http.cookies['place']}"}
            async with site.websocket("/app/ws", additional_headers=headers) as socket:
                assert await socket.receive() == first.text
                assert socket.client.response is not None
                assert "set-cookie" not in socket.client.response.headers
            site.http.cookies.clear()
            workers.add(first.text)
        assert len(workers) == 2
        assert "set-cookie" not in (await site.http.get("/other")).headers
        async with site.websocket("/app/ws") as socket:
            assert socket.client.response is not None
            assert "set-cookie" in socket.client.response.headers


async def test_an_id_that_was_not_learned_is_waited_for_once() -> None:
    async with Bus(Workers(), workers=2, factory=True, affinity=("learn:query:sid",)) as site:
        answers = {(await site.http.get("/?sid=made-elsewhere")).text for _ in range(5)}
        assert len(answers) == 1
