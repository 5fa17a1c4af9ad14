"""The end of accepting: clients that the kernel has connected, and no process has accepted yet."""

import asyncio
import logging
import socket
from collections import Counter
from typing import Any

import pytest

from asgibus.interface_server.acceptor import Acceptor
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.tls import Tls
from asgibus.protocol.counted_log import CountedLog

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("inherited", [False, True])
async def test_waiting_clients_are_left_to_idle_processes(inherited: bool) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    protocols: list[asyncio.Protocol] = []

    def factory(*_: Any, **__: Any) -> asyncio.Protocol:
        protocols.append(asyncio.Protocol())
        return protocols[-1]

    settings = InterfaceSettings(fd=listening.fileno() if inherited else None)
    log = CountedLog(Counter(), logging.getLogger("asgibus.interface"), lambda: 0.0)
    acceptor = Acceptor(settings, listening, Tls(settings), factory, log, lambda: 0)
    with listening.dup() as sibling, socket.socket() as client:
        sibling.settimeout(1)
        async with acceptor.accepting():
            client.connect(sibling.getsockname())
        assert len(protocols) == (not inherited)
        if inherited:
            sibling.accept()[0].close()
