"""Background work with real processes: the guarantees of the workers of a channel, also at kills and stops."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from asgibus.layers import ChannelFull, ChannelLayer, RedisChannelLayer
from support.deadline import HANG, wait_until
from support.processes import Process

APP = "end_to_end.background_app:app"
FAST_DEATH = 15.0
"""Seconds within which the lease of a killed worker has ended and others have its messages."""

Start = Callable[..., Process]
T = TypeVar("T")


class Work:
    """The producer, and the notes of the workers."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._notes = folder / "notes"

    def on_layer(self, do: Callable[[ChannelLayer], Awaitable[T]]) -> T:
        async def once() -> T:
            layer = RedisChannelLayer(self.url)
            try:
                return await do(layer)
            finally:
                await layer.close()

        return asyncio.run(once())

    def send(self, *numbers: int, channel: str = "work", kind: str = "job", **fields: Any) -> None:
        async def all_of(layer: ChannelLayer) -> None:
            for number in numbers:
                await layer.send(channel, {"type": kind, "number": number} | fields)

        self.on_layer(all_of)

    def receive(self, channel: str, timeout: float = HANG) -> dict[str, Any]:
        return self.on_layer(lambda layer: asyncio.wait_for(layer.receive(channel), timeout))

    def pending(self, channel: str = "work") -> int:
        return self.on_layer(lambda layer: layer.channel_statistics(channel))["messages_pending"]

    def notes(self, word: str) -> list[int]:
        """Return the numbers after this word, in the order of their writing."""
        return [int(line[1]) for line in self._lines() if line[0] == word]

    def pids(self, word: str) -> set[int]:
        return {int(line[2]) for line in self._lines() if line[0] == word}

    def _lines(self) -> list[list[str]]:
        text = self._notes.read_text() if self._notes.exists() else ""
        return [line.split() for line in text.splitlines()]


@pytest.fixture
def work(redis_url: str, tmp_path: Path) -> Work:
    return Work(redis_url, tmp_path)


@pytest.fixture
def start(start_worker: Start, redis_url: str) -> Start:
    """Start a worker for the channel "work"."""

    def start(*args: object, app: str = APP, channels: tuple[str, ...] = ("work",), **kwargs: Any) -> Process:
        named = [word for channel in channels for word in ("--channel", channel)]
        return start_worker(app, "--layer", redis_url, *named, *args, **kwargs)

    return start


@pytest.mark.usefixtures("short_leases")
def test_messages_of_a_killed_worker_go_to_another(start: Start, work: Work) -> None:
    killed = start("--channel-concurrency", 5)
    work.send(*range(10), seconds=30)
    work.send(*range(10, 30))
    wait_until(lambda: len(work.notes("begun")) == 5)
    killed.kill()
    assert work.notes("done") == []
    start("--channel-concurrency", 30, "--graceful-timeout", 0.1)
    wait_until(lambda: set(work.notes("done")) == set(range(10, 30)), FAST_DEATH)
    expected = Counter([*range(5), *range(30)])
    wait_until(lambda: Counter(work.notes("begun")) >= expected, FAST_DEATH, "the killed worker's messages begin again")
    assert Counter(work.notes("begun")) == expected


def test_no_message_is_lost_with_killed_workers(start: Start, work: Work) -> None:
    workers = [start("--channel-concurrency", 3) for _ in range(2)]
    for burst in range(4):
        work.send(*range(burst * 25, burst * 25 + 25), seconds=0.02)
        wait_until(lambda burst=burst: len(work.notes("begun")) > burst * 20 + 5)
        workers.pop(0).kill()
        workers.append(start("--channel-concurrency", 3))
    wait_until(lambda: set(work.notes("done")) == set(range(100)), FAST_DEATH)
    assert work.pending() == work.pending("work.dead") == 0


def test_a_poison_message_becomes_a_dead_letter(start: Start, work: Work) -> None:
    supervisor = start("--processes", 2, "--attempts", 2, "--channel-concurrency", 1, ready=False)
    supervisor.wait_for("supervisor ready")
    work.send(0, kind="poison")
    work.send(*range(1, 20))
    assert work.receive("work.dead") == {"type": "poison", "number": 0}
    wait_until(lambda: set(work.notes("done")) == set(range(1, 20)))
    assert Counter(work.notes("begun"))[0] == 2
    supervisor.wait_for("type 'poison', goes to work.dead after 2 attempts")


def test_a_failed_message_is_repeated_later(start: Start, work: Work) -> None:
    worker = start("--attempts", 2, "--admin-port", 0, allow_traceback=True)
    admin = worker.wait_for(r"admin port on (http\S+)")[1]
    begin = time.monotonic()
    work.send(1, kind="bad")
    work.send(*range(2, 12))
    wait_until(lambda: len(work.notes("done")) == 10)
    assert work.receive("work.dead")["number"] == 1
    assert time.monotonic() - begin > 1, "the second attempt waits for a second"
    assert work.notes("begun").count(1) == 2
    worker.wait_for("ArithmeticError: no such number")
    with httpx.Client(base_url=admin, trust_env=False) as client:
        assert client.get("/readyz").status_code == 200
        metrics = client.get("/metrics").text
    assert 'asgibus_events_total{kind="message failed"} 2.0' in metrics
    assert 'asgibus_events_total{kind="dead letter"} 1.0' in metrics
    assert "asgibus_messages 0.0" in metrics


def test_excess_messages_stay_in_the_layer_up_to_its_capacity(start: Start, work: Work) -> None:
    work.send(*range(100), seconds=60)
    start("--channel-concurrency", 2, "--graceful-timeout", 0.1)
    wait_until(lambda: len(work.notes("begun")) == 2)
    work.send(100, 101, seconds=60)
    with pytest.raises(ChannelFull):
        work.send(102)
    assert work.pending() == 100
    assert work.notes("begun") == [0, 1]


def test_one_instance_keeps_the_order(start: Start, work: Work) -> None:
    start("--channel-concurrency", 1)
    work.send(*range(50))
    wait_until(lambda: len(work.notes("done")) == 50)
    assert work.notes("done") == list(range(50))


def test_a_stopped_worker_loses_no_message(start: Start, work: Work) -> None:
    first = start("--channel-concurrency", 4, "--graceful-timeout", 1)
    work.send(0, 1, seconds=0.5)
    work.send(2, 3, seconds=30)
    work.send(*range(4, 20), seconds=0)
    wait_until(lambda: len(work.notes("begun")) >= 4)
    first.interrupt()
    assert first.wait() == 0
    assert {0, 1} <= set(work.notes("done"))
    first.wait_for("2 messages were not handled within 1 s and are given back")
    second = start("--graceful-timeout", 0.1)
    wait_until(lambda: set(work.notes("done")) >= {0, 1, *range(4, 20)})
    wait_until(lambda: Counter(work.notes("begun")) == Counter([*range(20), 2, 3]))
    second.terminate()
    assert second.wait() == 0
    assert work.pending() == 2


def test_a_delayed_message_is_handled_when_it_is_due(start: Start, work: Work) -> None:
    start()
    begin = time.monotonic()
    work.on_layer(lambda layer: layer.send("work", {"type": "job", "number": 1}, delay=1))
    wait_until(lambda: work.notes("done"))
    assert time.monotonic() - begin >= 0.95


def test_at_most_once_drops_messages_of_a_killed_worker(start: Start, work: Work) -> None:
    killed = start("--at-most-once", "--channel-concurrency", 2)
    work.send(0, 1, 2, seconds=1)
    wait_until(lambda: len(work.notes("begun")) == 2)
    killed.kill()
    start("--at-most-once")
    wait_until(lambda: work.notes("done") == [2])
    assert sorted(work.notes("begun")) == [0, 1, 2]


def test_the_expiry_of_the_sender_applies(start: Start, work: Work) -> None:
    """The expiry of the sender applies: with the expiry of the worker, messages would be dropped."""
    start("--expiry", 1, "--channel-concurrency", 1)
    work.send(0, seconds=1.5)
    work.send(1)
    wait_until(lambda: work.notes("done") == [0])
    wait_until(lambda: work.pending() == 0)
    assert work.notes("begun") == [0]


def test_a_channels_project_works_unmodified(start: Start, work: Work, redis_url: str) -> None:
    worker = start(
        *("--channel-concurrency", 1, "--attempts", 1),
        app="end_to_end.channels_app:app",
        channels=("thumbnails", "mails"),
        env={"REDIS": redis_url},
        allow_traceback=True,
    )

    async def talk(layer: ChannelLayer) -> list[dict[str, Any]]:
        reply = await layer.new_channel()
        answers = []

        async def ask(channel: str, kind: str, **fields: Any) -> None:
            await layer.send(channel, {"type": kind, "reply": reply} | fields)
            answers.append(await asyncio.wait_for(layer.receive(reply), 30))

        await ask("thumbnails", "thumbnail.make", name="a")
        await ask("thumbnails", "thumbnail.make", name="b")
        await layer.send("thumbnails", {"type": "thumbnail.break"})
        await layer.send("thumbnails", {"no": "type"})
        await ask("thumbnails", "thumbnail.make", name="c")
        await ask("mails", "mail.send", to="x")
        await ask("mails", "mail.send", to="y")
        return answers

    assert work.on_layer(talk) == [
        {"type": "thumbnail.made", "name": "a", "made": 1},
        {"type": "thumbnail.made", "name": "b", "made": 2},
        {"type": "thumbnail.made", "name": "c", "made": 1},
        {"type": "mail.sent", "to": "x"},
        {"type": "mail.sent", "to": "y"},
    ]
    assert work.receive("thumbnails.dead") == {"type": "thumbnail.break"}
    assert work.receive("thumbnails.dead") == {"no": "type"}
    before = worker.log()
    worker.terminate()
    assert worker.wait() == 0
    assert "Error" not in worker.log().removeprefix(before), "consumers that wait end in silence"
