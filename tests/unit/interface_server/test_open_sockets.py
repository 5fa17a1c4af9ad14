"""The open sockets of a server that stops."""

import logging
import math
from collections import Counter

import anyio
import pytest

from asgibus.interface_server.open_sockets import OpenSockets
from asgibus.protocol.counted_log import CountedLog

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
    return OpenSockets(10, CountedLog(Counter(), logging.getLogger("asgibus.interface"), lambda: 0.0))


async def test_every_socket_is_shut_down_once() -> None:
    sockets = open_sockets()
    first, second, third = Socket(), Socket(), Socket()
    sockets.admit(first)
    sockets.admit(second)
    await sockets.drain(0.01, lambda holder: holder is second)
    sockets.admit(third)
    await anyio.sleep(0.01)
    assert [each.calls for each in (first, second, third)] == [["shut down"]] * 3


async def test_a_former_holder_does_not_shut_a_socket_down() -> None:
    sockets = open_sockets()
    await sockets.drain(0, lambda holder: False)
    http, websocket = Socket(), Socket()
    sockets.admit(http)
    sockets.forget(http)
    sockets.register(websocket)
    await anyio.sleep(0.01)
    assert http.calls == []
    assert websocket.calls == ["shut down"]
