"""An interface server is killed: the apps get the disconnects of its clients, and its keys are deleted."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis

from chaos.crowd import Crowd
from chaos.notes import Notes
from chaos.scale import LONG, NOTICED, RATE, RETURN
from support.deadline import in_time, wait_until
from support.processes import Process
from support.raw import RawClient

pytestmark = pytest.mark.usefixtures("short_leases")

Start = Callable[..., Process]
Figures = Callable[[object], None]
SOCKETS = 1000 if LONG else 50


@pytest.fixture
def admin(redis_url: str) -> Iterator["redis.Redis[str]"]:
    with redis.Redis.from_url(redis_url, protocol=2, decode_responses=True, socket_timeout=30) as client:
        yield client


def mailboxes(admin: Any, role: str) -> set[str]:
    """Return the mailboxes of that role that are in Redis, as `role.…!`."""
    return {key.partition(":mailbox:")[2] for key in admin.keys(f"*:mailbox:{role}.*")}


def traces(admin: Any, mailbox: str) -> list[str]:
    """Return each key that names a mailbox, and each member or consumer of any key that does.

    The list of processes is left out: an ended lease stays there for a minute, so that every process notices.
    """
    leftovers = [key for key in admin.keys("*") if mailbox in key]
    for key in admin.keys("*"):
        kind = admin.type(key)
        if kind == "zset" and not key.endswith(":processes"):
            leftovers += [f"{key}: {member}" for member in admin.zrange(key, 0, -1) if mailbox in member]
        elif kind == "stream" and ":mailbox:" not in key:
            for group in admin.xinfo_groups(key):
                consumers = admin.xinfo_consumers(key, group["name"])
                leftovers += [f"{key}: {consumer}" for consumer in consumers if mailbox in consumer["name"]]
    return leftovers


def shape(admin: Any) -> dict[str, Any]:
    """Return the lasting data in Redis: keys, members, waiting and unacknowledged entries."""
    shape: dict[str, Any] = {}
    for key in admin.keys("*"):
        kind = admin.type(key)
        if key.endswith(":processes"):
            now = admin.time()[0] * 1000
            shape[key] = {name for name, end in admin.zrange(key, 0, -1, withscores=True) if end > now and "!" in name}
        elif kind == "zset":
            shape[key] = set(admin.zrange(key, 0, -1))
        elif kind == "stream" and ":mailbox:" not in key:
            shape[key] = (
                admin.xlen(key),
                {group["name"]: (group["pending"], group["consumers"]) for group in admin.xinfo_groups(key)},
            )
        else:
            shape[key] = kind
    return shape


def test_sessions_of_a_killed_interface_end_and_its_keys_are_deleted(
    start_chaos_interface: Start,
    start_chaos_worker: Start,
    notes: Notes,
    figures: Figures,
    admin: "redis.Redis[str]",
) -> None:
    for _ in range(2):
        start_chaos_worker("--resume")
    stays = start_chaos_interface()
    with Crowd(stays, "/room", sockets=20, rate=50, label="stays") as staying:
        staying.begin()
        staying.wait_each_answered()
        before, known = shape(admin), mailboxes(admin, "interface")
        dies = start_chaos_interface()
        (mailbox,) = mailboxes(admin, "interface") - known
        with (
            Crowd(dies, "/echo", sockets=SOCKETS, rate=RATE / 2, label="echo") as echo,
            Crowd(dies, "/room", sockets=SOCKETS, rate=RATE / 2, label="room") as room,
            RawClient(dies) as waits,
            RawClient(dies) as streams,
        ):
            waits.send(b"POST /slow?gate=never&name=waits HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n")
            streams.send(b"GET /stream?gate=never&name=streams HTTP/1.1\r\nHost: test\r\n\r\n")
            notes.wait("request", 2)
            for crowd in (echo, room):
                crowd.begin()
                crowd.wait_each_answered()
            assert len(traces(admin, mailbox)) > SOCKETS // 10, "its mailbox and its groups"
            killed = time.monotonic()
            dies.kill()
            notes.wait("disconnected", 2 * SOCKETS, NOTICED + 3, code=1006)
            notes.wait("left", 2, event="http.disconnect")
            ended = [note["at"] - killed for note in notes.all("disconnected", code=1006) + notes.all("left")]
        try:
            wait_until(lambda: not traces(admin, mailbox), RETURN + 2, "a Redis without the killed server")
        except AssertionError:
            raise AssertionError(f"still in Redis: {traces(admin, mailbox)}") from None
        forgotten = time.monotonic() - killed
        notes.wait("cleaned", 2 * SOCKETS)
        wait_until(lambda: shape(admin) == before, what="Redis as it was before")
        figures(
            f"{len(ended)} apps got the disconnect after {min(ended):.2f} to {max(ended):.2f} s; "
            f"Redis was as before after {time.monotonic() - killed:.2f} s (no name left after {forgotten:.2f} s)"
        )
        in_time(max(ended), NOTICED)
        if LONG:
            ended_lease = partial(admin.zscore, "asgibus:processes", mailbox)
            wait_until(lambda: ended_lease() is None, 70, "the end of the listing of its lease")
        report = staying.finish()
        figures(f"clients of the other server: {report}")
        report.assert_whole()


def test_a_request_offered_by_a_killed_interface_ends(
    start_chaos_interface: Start, start_chaos_worker: Start, notes: Notes, admin: "redis.Redis[str]", figures: Figures
) -> None:
    start_chaos_worker("--resume", "--concurrency", 1)
    stays, dies = start_chaos_interface(), start_chaos_interface()
    with RawClient(stays) as holds, RawClient(dies) as waits, Crowd(dies, "/echo", sockets=0, rate=1):
        holds.send(b"GET /slow?gate=open&name=holds HTTP/1.1\r\nHost: test\r\n\r\n")
        notes.wait("request", name="holds")
        waits.send(b"GET /slow?gate=never&name=waits HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_until(lambda: any(admin.xlen(key) > 0 for key in admin.keys("*:shared:http*")))
        killed = time.monotonic()
        dies.kill()
        notes.open_gate("open")
        assert holds.read_response().status == 200
        # The worker claims the request, since it cannot know of the kill; then the app gets the disconnect.
        wait_until(
            lambda: notes.all("left", name="waits") or not notes.all("request", name="waits"), NOTICED, "the app's end"
        )
        wait_until(lambda: all(admin.xlen(key) == 0 for key in admin.keys("*:shared:*")), NOTICED, "empty streams")
        figures(f"the app of a request that nobody reads ended after {time.monotonic() - killed:.2f} s")
        with RawClient(stays) as client:
            assert client.request("GET", "/fast").status == 200, "the worker is free again"
