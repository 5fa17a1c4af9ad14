"""A server is cut off from Redis for longer than its lease lasts, while all others work."""

import time
from collections.abc import Callable, Iterator

import pytest

from chaos.notes import Notes
from chaos.scale import LEASE, by_form
from support.deadline import wait_until
from support.load import SILENT, Load
from support.processes import Processes
from support.redis import RedisServer
from support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.usefixtures("short_leases")

Figures = Callable[[object], None]

CUT = by_form(LEASE + 1.5, 15.0)
"""Seconds: longer than a lease, and than a Redis may be silent."""


@pytest.fixture
def server(start_redis: Callable[..., RedisServer]) -> RedisServer:
    return start_redis()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[TcpProxy]:
    with TcpProxy(("127.0.0.1", server.port)) as proxy:
        yield proxy


@pytest.mark.parametrize("kind", by_form(["interface"], ["worker", "interface"]))
def test_a_server_without_redis_is_declared_dead(
    kind: str, proxy: TcpProxy, server: RedisServer, processes: Processes, notes: Notes, figures: Figures
) -> None:
    """A server that is cut off is declared dead; its late frames are ignored, and its sockets stay served."""
    with Load(processes, notes, server.url, **{f"first_{kind}": proxy.url}) as load:
        victim = (load.workers if kind == "worker" else load.interfaces)[0]
        untouched = [
            member
            for crowd in (load.echo, load.room)
            for index, member in enumerate(crowd.members)
            if (member.pid != victim.pid if kind == "worker" else index % 2)
        ]
        cut = time.monotonic()
        proxy.blackhole()
        wait_until(lambda: time.monotonic() > cut + CUT, CUT + 1)
        moved = len(load.echo.takeovers(cut)) if kind == "worker" else len(notes.all("disconnected", code=1006))
        proxy.heal()
        load.wait_recovered(time.monotonic(), 20)
        outcome = load.finish()
        served = {(answer["name"], answer["attempt"]) for crowd in (load.echo, load.room) for answer in crowd.probe()}
    figures(f"{moved} sockets were taken over, or given up by their apps, meanwhile; {outcome}")
    assert moved
    assert not [member for member in untouched if member.takeovers]
    assert len(served) == len(load.echo.members) + len(load.room.members)
    assert not outcome.counts[victim.name].get("group unheard", 0)
    outcome.echo.assert_whole()
    assert not outcome.room.closes
    assert not outcome.lost[SILENT], "broadcasts wait for the server, or their calls failed"
    assert not outcome.late
    assert not outcome.doubled_runs
