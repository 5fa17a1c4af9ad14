"""Test presence while processes and Redis are killed, and while clients come and go."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil
import pytest
import redis
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from asgibus.layers import RedisChannelLayer
from chaos.churn import Churn
from chaos.scale import LONG, NOTICED, by_form
from support.deadline import HANG, in_time, wait_until
from support.in_place import InPlace
from support.processes import Process
from support.redis import RedisServer
from support.websocket import ws

APP = "chaos.presence_app:app"

Start = Callable[..., Process]
StartRedis = Callable[..., RedisServer]
Figures = Callable[[object], None]

GRACE = 0.5
BACK = 3.0
"""Seconds after a loss of data within which everybody is shown again."""
MEMBERS = by_form(100, 5000)
CHURN = by_form(50, 200)
"""Clients that leave, and as many that come, per second."""
CHURN_SECONDS = by_form(4.0, 60.0)


def present(url: str, group: str = "room") -> dict[str, int]:
    """Return the users of a group, with the numbers of their connections."""

    async def read() -> dict[str, int]:
        layer = RedisChannelLayer(url)
        try:
            found: dict[str, int] = {}
            page = await layer.present(group)
            while True:
                found |= {each.user: each.connections for each in page.users}
                if page.cursor is None:
                    return found
                page = await layer.present(group, page.cursor)
        finally:
            await layer.close()

    return asyncio.run(read())


def present_count(url: str, group: str = "room") -> tuple[int, ...]:
    """Return the number of users of a group, and of their connections."""

    async def read() -> tuple[int, ...]:
        layer = RedisChannelLayer(url)
        try:
            return tuple(await layer.present_count(group))
        finally:
            await layer.close()

    return asyncio.run(read())


@contextmanager
def member(server: Process, user: str, **query: object) -> Iterator[ClientConnection]:
    """Open a WebSocket of a user who is present."""
    with ws(server, "/", query={"user": user, **query}, max_queue=None) as client:
        while told(client) != ["ready"]:
            pass
        yield client


def told(client: ClientConnection, timeout: float = HANG) -> Any:
    return json.loads(client.recv(timeout=timeout))


def told_until(client: ClientConnection, last: list[str]) -> list[list[str]]:
    """Return what a member is told up to and with this."""
    every = [told(client)]
    while every[-1] != last:
        every.append(told(client))
    return every


def come_and_go(server: Process, watch: ClientConnection) -> list[list[str]]:
    """Have another user come, and return what the watcher was told until then."""
    with member(server, "marker", quiet=1):
        return told_until(watch, ["join", "marker"])[:-1]


@pytest.fixture
def servers(start_interface: Start, start_worker: Start, redis_url: str) -> tuple[Process, Process]:
    """Provide two interface servers and two workers."""
    start_worker(APP, "--layer", redis_url, "--resume")
    start_worker(APP, "--layer", redis_url, "--resume")
    options = ("--layer", redis_url, "--presence-grace", GRACE, "--ping-interval", 600)  # `Churn` answers no pings
    return start_interface(*options), start_interface(*options)


@pytest.mark.usefixtures("short_leases")
def test_an_interface_server_is_killed(
    start_interface: Start, start_worker: Start, redis_url: str, figures: Figures
) -> None:
    start_worker(APP, "--layer", redis_url, "--resume")
    stays, dies = (start_interface("--layer", redis_url, "--presence-grace", GRACE) for _ in range(2))
    with ExitStack() as stack:
        watch = stack.enter_context(member(stays, "watch"))
        for user in ("ann", "bob", "eve"):
            stack.enter_context(member(dies, user, will=user))
        stack.enter_context(member(stays, "bob", quiet=1))
        assert sorted(told(watch) for _ in range(3)) == [["join", "ann"], ["join", "bob"], ["join", "eve"]]
        assert present(redis_url) == {"watch": 1, "ann": 1, "bob": 2, "eve": 1}
        killed = time.monotonic()
        dies.kill()
        stack.enter_context(member(stays, "eve", quiet=1))  # she is back at once
        heard = sorted(told(watch, NOTICED + HANG) for _ in range(4))
        ended = time.monotonic() - killed
        assert heard == [["leave", "ann"], ["will", "ann"], ["will", "bob"], ["will", "eve"]]
        assert present(redis_url) == {"watch": 1, "bob": 1, "eve": 1}
        assert come_and_go(stays, watch) == [], "nothing is told twice"
        figures(f"the leaves were told, and the wills sent, {ended:.2f} s after the kill")
        in_time(ended, NOTICED)
    with redis.Redis.from_url(redis_url, protocol=2, decode_responses=True) as admin:
        wait_until(lambda: present(redis_url) == {}, what="an empty group")
        kinds = (":users:", ":present:", ":presence:", ":wills:")
        wait_until(lambda: not [key for key in admin.keys("*") if any(kind in key for kind in kinds)], what="no keys")


@pytest.mark.long
@pytest.mark.usefixtures("short_leases")
def test_two_interface_servers_are_killed(start_interface: Start, start_worker: Start, redis_url: str) -> None:
    start_worker(APP, "--layer", redis_url, "--resume")
    stays, *die = (start_interface("--layer", redis_url, "--presence-grace", GRACE) for _ in range(3))
    with ExitStack() as stack:
        watch = stack.enter_context(member(stays, "watch"))
        for number in range(60):
            user = f"user{number // 2}"  # at both
            stack.enter_context(member(die[number % 2], user, will=number))
            if not number % 2:
                assert told(watch) == ["join", user]
        for each in die:
            each.kill()
        heard = [tuple(told(watch, NOTICED + HANG)) for _ in range(90)]
        assert sorted(heard) == sorted(
            [("leave", f"user{number}") for number in range(30)] + [("will", str(number)) for number in range(60)]
        )
        assert come_and_go(stays, watch) == []
        assert present(redis_url) == {"watch": 1, "marker": 0}


@pytest.mark.parametrize("limit", [pytest.param("oldest", marks=pytest.mark.long), "newest"])
def test_many_devices_come_at_once(limit: str, start_interface: Start, start_worker: Start, redis_url: str) -> None:
    start_worker(APP, "--layer", redis_url, "--resume")
    options = ("--layer", redis_url, "--max-connections-per-user", 3, "--user-limit", limit)
    servers = [start_interface(*options) for _ in range(2)]
    query = {"user": "ann", "quiet": 1}
    with ExitStack() as stack:
        clients = [stack.enter_context(ws(servers[number % 2], "/", query=query)) for number in range(16)]

        def ended() -> bool:
            for client in clients:
                with suppress(TimeoutError, ConnectionClosed):
                    client.recv(timeout=0.01)
            return sum(client.close_code == 4429 for client in clients) == 13

        wait_until(ended, what="the end of 13 connections")
        wait_until(lambda: present(redis_url) == {"ann": 3}, what="three connections")
        assert [client.close_code for client in clients].count(None) == 3


@pytest.mark.parametrize("ending", [pytest.param("kill", marks=pytest.mark.long), "terminate"])
def test_a_worker_ends(ending: str, start_interface: Start, start_worker: Start, redis_url: str) -> None:
    interface = start_interface("--layer", redis_url, "--presence-grace", GRACE)
    workers = [start_worker(APP, "--layer", redis_url, "--resume") for _ in range(2)]
    with member(interface, "watch") as watch, member(interface, "ann", will="ann") as ann:
        assert told(watch) == ["join", "ann"]
        ann.send("?")
        _, attempt, pid, user = told_until_known(ann)
        assert (attempt, user) == (1, "ann")
        worker = next(each for each in workers if each.pid == pid)
        worker.kill() if ending == "kill" else worker.terminate()

        def has_moved() -> bool:
            ann.send("?")
            known = told_until_known(ann)
            return known[1] == 2 and known[3] == "ann"

        wait_until(has_moved, what="another run")
        assert come_and_go(interface, watch) == []
        assert present(redis_url)["ann"] == 1


def told_until_known(client: ClientConnection) -> list[Any]:
    while (answer := told(client))[0] != "known":
        pass
    return list(answer)


@pytest.mark.parametrize("loss", ["flush", pytest.param("restart", marks=pytest.mark.long)])
def test_redis_loses_its_data(
    loss: str, start_redis: StartRedis, start_interface: Start, start_worker: Start, figures: Figures
) -> None:
    server = start_redis()
    one, two = (start_interface("--layer", server.url, "--presence-grace", GRACE) for _ in range(2))
    start_worker(APP, "--layer", server.url, "--resume")
    with ExitStack() as stack:
        watch = stack.enter_context(member(one, "watch"))
        users = [f"user{number}" for number in range(20)]
        members = [stack.enter_context(member((one, two)[n % 2], user, will=user)) for n, user in enumerate(users)]
        members.append(stack.enter_context(member(two, users[0], quiet=1)))
        for user in users:
            assert told(watch) == ["join", user]
        expected = present(server.url)
        assert len(expected) == 21
        if loss == "flush":
            with redis.Redis.from_url(server.url, protocol=2) as admin:
                admin.flushall()
        else:
            server.kill()
            server.start()
        lost = time.monotonic()
        wait_until(lambda: present(server.url) == expected, BACK + HANG, "all users")
        seconds = time.monotonic() - lost
        figures(f"all users were back after {seconds:.2f} s")
        assert come_and_go(one, watch) == [], "a join storm"
        members.pop(1).close()
        assert told_until(watch, ["leave", "user1"]) in (
            [["leave", "marker"], ["will", "user1"], ["leave", "user1"]],
            [["will", "user1"], ["leave", "marker"], ["leave", "user1"]],
            [["will", "user1"], ["leave", "user1"]],
        )
        in_time(seconds, BACK)
        wait_until(lambda: present_count(server.url) == (20, 21), what="the numbers")


def test_an_interface_server_moves(start_interface: Start, start_worker: Start, redis_url: str) -> None:
    start_worker(APP, "--layer", redis_url, "--resume")
    stays = start_interface("--layer", redis_url, "--presence-grace", GRACE)
    moves = start_interface("--layer", redis_url, "--presence-grace", GRACE)
    with ExitStack() as stack:
        watch = stack.enter_context(member(stays, "watch"))
        in_place = stack.enter_context(InPlace(moves))
        ann = stack.enter_context(member(moves, "ann", will="ann"))
        again = stack.enter_context(member(moves, "ann", quiet=1))
        bob = stack.enter_context(member(moves, "bob", quiet=1))
        assert [told(watch), told(watch)] == [["join", "ann"], ["join", "bob"]]
        bob.close()  # his grace goes on in the new process, or has ended in the old one
        for _ in range(2):
            in_place.move()
        assert present(redis_url) | {"bob": 0} == {"watch": 1, "ann": 2, "bob": 0}
        ann.close()
        assert told_until(watch, ["will", "ann"]) in ([["leave", "bob"], ["will", "ann"]], [["will", "ann"]])
        wait_until(lambda: present(redis_url) == {"watch": 1, "ann": 1}, what="one connection")
        again.close()
        assert told_until(watch, ["leave", "ann"])[-1] == ["leave", "ann"]
        assert come_and_go(stays, watch) == []


@pytest.mark.long
@pytest.mark.usefixtures("short_leases")
def test_an_interface_server_is_paused(start_interface: Start, start_worker: Start, redis_url: str) -> None:
    """Expect its users to leave, and to join when it is back; its wills were sent, and are not sent again."""
    start_worker(APP, "--layer", redis_url, "--resume")
    stays, paused = (start_interface("--layer", redis_url, "--presence-grace", GRACE) for _ in range(2))
    with member(stays, "watch") as watch, member(paused, "ann", will="ann") as ann:
        assert told(watch) == ["join", "ann"]
        paused.pause()
        assert sorted([told(watch, NOTICED + HANG), told(watch)]) == [["leave", "ann"], ["will", "ann"]]
        assert present(redis_url) == {"watch": 1}
        paused.resume()
        assert told(watch) == ["join", "ann"]
        assert present(redis_url) == {"watch": 1, "ann": 1}
        ann.close()
        assert told(watch) == ["leave", "ann"]
        assert come_and_go(stays, watch) == []


def test_an_interface_server_stops(servers: tuple[Process, Process], redis_url: str) -> None:
    stays, stops = servers
    with member(stays, "watch") as watch, member(stops, "ann", will="ann"), member(stops, "bob", quiet=1):
        assert [told(watch), told(watch)] == [["join", "ann"], ["join", "bob"]]
        stops.terminate()
        with member(stays, "bob", quiet=1):  # his client comes back at once
            assert told_until(watch, ["leave", "ann"]) == [["will", "ann"], ["leave", "ann"]]
            assert present(redis_url) == {"watch": 1, "bob": 1}
            assert come_and_go(stays, watch) == []


@pytest.mark.long
def test_clients_come_and_go(servers: tuple[Process, Process], redis_url: str, figures: Figures) -> None:
    """Check that who is present is exact afterwards, and that neither memory nor keys grow."""
    with redis.Redis.from_url(redis_url, protocol=2) as admin, Churn(servers, "/", MEMBERS) as churn:
        wait_until(lambda: present(redis_url) == churn.users(), what="all users")

        def size() -> tuple[float, int, float]:
            memory = sum(psutil.Process(each.pid).memory_info().rss for each in servers) / 1e6
            return memory, admin.dbsize(), admin.info("memory")["used_memory"] / 1e6

        sizes = [size()]
        for _ in range(3):
            rate = churn.run(CHURN, CHURN_SECONDS / 3)
            figures(f"{rate:.0f} clients left, and as many came, per second")
            wait_until(lambda: present(redis_url) == churn.users(), what="the users that are left")
            assert present_count(redis_url) == (MEMBERS, MEMBERS)
            sizes.append(size())
        for memory, keys, redis_memory in sizes:
            figures(f"servers {memory:.0f} MB, {keys} keys, Redis {redis_memory:.1f} MB")
        figures(f"{churn.opened} connections were opened, {MEMBERS} at a time; {churn.slowest:.2f} s the slowest")
        (_, keys, _), (memory, *_), (last, keys_at_the_end, _) = sizes[0], sizes[1], sizes[-1]
        assert keys_at_the_end <= keys + 10
        assert last < 1.1 * memory + 10
        if LONG:
            in_time(churn.slowest, 10)
    wait_until(lambda: present(redis_url) == {}, what="an empty group")
