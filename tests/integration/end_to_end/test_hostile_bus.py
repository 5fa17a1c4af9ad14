"""Malformed data in the store: no process ends, and valid data is processed."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from asgibus.layers import RedisChannelLayer
from asgibus.layers.frames import ABANDONED, ACK, CLAIMED, EVENT, EVENT_OFFSET, PROBE, RESEND, RESET, SUPERSEDED
from asgibus.protocol import events
from asgibus.protocol.channels import shared_channel
from asgibus.protocol.connect_request import HTTP, REQUEST_VERSION, ConnectRequest
from support.admin import counts
from support.bus import Recorder
from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.websocket import ws

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

Start = Callable[..., Process]

APP = """
import asgibus

async def app(scope, receive, send):
    name = asgibus.connection(scope).reply_channel if scope["type"] != "lifespan" else None
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": name})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
    else:
        raise ValueError
"""

ODD: list[Any] = [None, True, -1, 2**62, 1.5, "a\r\nb", b"a\r\nb", [], [1], {}, {"type": []}, "x" * 200]


def bad_frames(number: int) -> list[tuple[Any, ...]]:
    """Return malformed frames for a connection: of each kind, with each field odd, too many and too few."""
    good: list[tuple[Any, ...]] = [
        *((kind, number, 1) for kind in (CLAIMED, RESET, ABANDONED, SUPERSEDED)),
        *((kind, number, 1, 0) for kind in (ACK, RESEND, PROBE)),
        *((EVENT, number, 1, 99, 0, code, "field", "field") for code in (*events.NAMES, 99)),
        (EVENT, number, 1, 1, 0, events.GROUP_ADD, "bad name!"),
        (EVENT, number, 1, 1, 0, events.RESPONSE, 99999, b"", b"body"),
        (EVENT, number, 1, 1, 0, events.RESPONSE_START, 200, b"a\r\nSet-Cookie: b: c\r\n"),
    ]
    bad: list[tuple[Any, ...]] = [(), (None,), (99,), ("EVENT",), (0, 5, {}), (1, "room", []), (2, None, None)]
    for frame in good:
        bad.append((*frame, 1, 2, 3))
        for at in range(1 if frame[0] != EVENT else EVENT_OFFSET, len(frame)):
            bad += [(*frame[:at], odd, *frame[at + 1 :]) for odd in ODD[:1] + ODD[4:]]
    return bad


def bad_openings(interface: str) -> list[Any]:
    good = ConnectRequest(
        REQUEST_VERSION, interface, 2**40, 1, False, 0, 1000, HTTP, events=((events.REQUEST_END, b""),)
    )
    values = {None: "nothing", 5: "five"}
    return [
        *values,
        b"bytes",
        (),
        (REQUEST_VERSION,),
        tuple(good)[:-1],
        *(tuple(good._replace(**{name: odd})) for name in ConnectRequest._fields[1:] for odd in ODD),
    ]


async def test_malformed_bus_data_ends_no_process(
    start_interface: Start, start_worker: Start, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "echo.py").write_text(APP)
    admin = ("--admin-port", "0", "--graceful-timeout", "0.5")
    worker = start_worker("echo:app", "--layer", redis_url, *admin)
    interface = start_interface("--layer", redis_url, *admin)
    layer = RedisChannelLayer(redis_url)
    with ws(interface, "/") as socket:
        mailbox, _, number = str(socket.recv(10)).rpartition("!")
        mailbox += "!"
        try:
            async with layer.bus("hostile", Recorder()) as bus:
                frames = bad_frames(int(number))
                for frame in frames:
                    bus.post(mailbox, frame)
                offered = 0
                for entry in bad_openings(mailbox):
                    with suppress(TypeError):  # a frame that cannot be packed cannot arrive
                        bus.offer(shared_channel(HTTP, "default"), entry)
                        offered += 1
                await bus.drain()
                wait_until(
                    lambda: counts(interface).get("bad frame", 0) > len(frames) / 2, what="the frames to be refused"
                )
                wait_until(
                    lambda: counts(worker).get("bad opening", 0) > offered / 2, what="the openings to be refused"
                )
        finally:
            await layer.close()
        socket.send("still here")
        assert socket.recv(10) == "still here"
    with RawClient(interface) as client:
        assert client.request("GET").body == b"ok"
    assert interface.running
    assert worker.running
    assert "Traceback" not in interface.log()
    assert "Traceback" not in worker.log()
