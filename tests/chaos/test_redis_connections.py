"""Connections to Redis break, one kind after the other, while clients send messages."""

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import redis

from chaos.notes import Notes
from chaos.scale import by_form
from support.deadline import in_time, wait_until
from support.load import SILENT, Load
from support.processes import Processes
from support.redis import RedisServer
from support.tcp_proxy import TcpProxy

Figures = Callable[[object], None]

KINDS = ("writer", "mailbox", "claims")
ROUNDS = by_form(1, 12)
RECOVERED = 2.0


@pytest.fixture
def server(start_redis: Callable[..., RedisServer]) -> RedisServer:
    return start_redis()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[TcpProxy]:
    with TcpProxy(("127.0.0.1", server.port)) as proxy:
        yield proxy


def test_connections_are_reset_in_the_middle_of_replies(
    proxy: TcpProxy, processes: Processes, notes: Notes, figures: Figures
) -> None:
    recoveries: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with Load(processes, notes, proxy.url) as load:
        for _ in range(ROUNDS):
            for kind in KINDS:
                for _ in range(2):
                    proxy.cut_reply(kind, least=20)
                wait_cut(proxy)
                recoveries[kind].append(load.wait_recovered(time.monotonic()))
        outcome = load.finish()
    cuts: Counter[str] = Counter()
    for name, count in proxy.cuts.items():
        cuts[next(kind for kind in KINDS if name.endswith(kind))] += count
    longest = {kind: round(max(times), 2) for kind, times in recoveries.items()}
    figures(f"cuts: {dict(cuts)}, longest recovery by kind: {longest}; {outcome}")
    assert cuts == dict.fromkeys(KINDS, 2 * ROUNDS)
    outcome.assert_whole()
    in_time(max(max(times) for times in recoveries.values()), RECOVERED)
    # Only broadcasts in the broken connection may be lost, and their calls fail.
    assert (outcome.lost + outcome.ticker_lost + outcome.program_lost)[SILENT] == 0


def test_connections_are_killed_by_name(
    server: RedisServer, processes: Processes, notes: Notes, figures: Figures
) -> None:
    killed: Counter[str] = Counter()
    recoveries = []
    with (
        Load(processes, notes, server.url) as load,
        redis.Redis.from_url(server.url, protocol=2, socket_timeout=30) as admin,
    ):
        for _ in range(ROUNDS):
            for kind in (*KINDS, ""):
                for client in admin.client_list():
                    if client["name"] and client["name"].endswith(kind):
                        killed[kind or "all"] += int(admin.client_kill_filter(_id=client["id"]))
                recoveries.append(load.wait_recovered(time.monotonic()))
        outcome = load.finish()
    figures(f"killed: {dict(killed)}, longest recovery {max(recoveries):.2f} s; {outcome}")
    outcome.assert_whole()
    assert min(killed[kind] for kind in KINDS) >= 2 * ROUNDS
    in_time(max(recoveries), RECOVERED)
    assert (outcome.lost + outcome.ticker_lost + outcome.program_lost)[SILENT] == 0


def wait_cut(proxy: TcpProxy) -> None:
    wait_until(lambda: proxy.armed() == 0, what="the reset")
