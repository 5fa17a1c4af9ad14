"""The open sockets of a server that stops."""

import math
from collections import Counter

import anyio
import pytest

from asgibus.interface_server.open_sockets import OpenSockets
from asgibus.interface_server.rejections import Rejections

pytestmark = pytest.mark.anyio


class Socket:
    deadline = math.inf

    def __init__(self) -> None:
        self.calls: list[str] = []

    def expire(self, now: float) -> None:
        self.calls.append("expire")

    def shut_down(self) -> None:
        self.calls.append("shut down")

    def abort(self) -> None:
        self.calls.append("abort")


def open_sockets() -> OpenSockets:
    counts: Counter[str] = Counter()
    return OpenSockets(10, counts, Rejections(counts))


async def test_every_socket_is_shut_down_once() -> None:
    sockets = open_sockets()
    early, late, new = Socket(), Socket(), Socket()
    sockets.admit(early)
    sockets.admit(late)
    await sockets.drain(0.01, lambda holder: holder is late)
    sockets.admit(new)
    await anyio.sleep(0.01)
    assert [each.calls for each in (early, late, new)] == [["shut down"]] * 3


async def test_a_socket_that_was_handed_over_is_not_shut_down_by_its_former_holder() -> None:
    sockets = open_sockets()
    await sockets.drain(0, lambda holder: False)
    http, websocket = Socket(), Socket()
    sockets.admit(http)
    sockets.forget(http)
    sockets.register(websocket)
    await anyio.sleep(0.01)
    assert http.calls == []
    assert websocket.calls == ["shut down"]
