"""Load for tests with a broken Redis: interface servers, workers, and clients that count messages.

with Load(processes, notes, url) as load:
    ...  # faults
    load.wait_recovered()
    outcome = load.finish()
figures(outcome)
outcome.assert_whole()
"""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from chaos.crowd import Crowd, Report
from chaos.member import Numbers
from chaos.notes import Notes
from chaos.scale import DRAIN_PERIOD, by_form
from support import admin
from support.broadcaster import NAME as PROGRAM
from support.context_stack import ContextStack
from support.deadline import HANG, in_time, wait_until
from support.processes import WORKER_READY, Process, Processes
from support.raw import RawClient
from support.websocket import ws

APP = "support.outage_app:app"

SOCKETS = by_form(40, 400)
RATE = by_form(100, 400)
ROOM_SOCKETS = by_form(20, 100)
ROOM_SIZE = 10
ROOM_RATE = by_form(40, 100)
POSTERS = by_form(8, 32)
INTERVAL = 0.1
"""Seconds between two broadcasts of the program, and of the app's ticker."""
TICKER = "ticker"

WAIT = by_form(2.5, 5.0)
"""Seconds that a broadcast of the program waits for Redis."""
CALL_SECONDS = WAIT + 1.0
"""Seconds within which a broadcast of the program during an outage must fail."""
REPORTED = "whose call failed"
SILENT = "without an error"


@dataclass
class Outcome:
    """Results of all clients, and the notes of the app."""

    echo: Report
    room: Report
    recovery: float | None
    """Seconds until every socket had an answer again, direct and through its room."""
    lost: Counter[str]
    """Broadcasts that a member missed, by whether the call of the sender had failed."""
    late: list[tuple[str, int]]
    """Lost broadcasts that were sent after the recovery."""
    failed: list[float]
    """Seconds of each call of the app that raised LayerUnavailable."""
    program_failed: list[float]
    program_lost: Counter[str]
    """Lost broadcasts of a program beside the servers, counted like `lost`."""
    ticker_lost: Counter[str]
    """Lost broadcasts of the ticker of the app, counted like `lost`."""
    posts: Counter[str]
    runs: Counter[int]
    """Number of POSTs by the number of runs that each had."""
    doubled_runs: list[str]
    attempts: Counter[int]
    disconnects: Counter[int]
    """`websocket.disconnect` events that the app got before the clients left."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        recovery = "" if self.recovery is None else f"recovered after {self.recovery:.2f} s; "
        lost = _describe(self.lost)
        program, ticker = _describe(self.program_lost), _describe(self.ticker_lost)
        return (
            f"{recovery}echo: {self.echo}; room: {self.room}; lost broadcasts: {lost}; of a ticker: {ticker}; "
            f"of a program: {program}; "
            f"calls that failed: {len(self.failed)} in at most {max(self.failed, default=0):.2f} s, of the program "
            f"{len(self.program_failed)} in at most {max(self.program_failed, default=0):.2f} s; "
            f"POSTs: {dict(self.posts)}, runs of each: {dict(self.runs)}; attempts: {dict(self.attempts)}; "
            f"disconnects: {dict(self.disconnects)}; counts: {self.counts}"
        )

    def assert_whole(self) -> None:
        """Assert that no socket closed, each direct message arrived once and in order, and all groups work again.

        Assert further that no POST ran twice, and that the call for each lost broadcast failed.
        """
        self.echo.assert_whole()
        assert not self.room.closes, self
        assert self.room.doubled == self.room.disordered == self.room.backward == 0, self
        assert not self.late, self
        assert not self.disconnects, self
        assert self.attempts.keys() <= {1}, self  # no live worker was declared dead
        in_time(max(self.failed + self.program_failed, default=0), CALL_SECONDS)
        assert self.posts["200"] > 0, self
        assert not self.doubled_runs, self
        assert self.lost[SILENT] + self.ticker_lost[SILENT] + self.program_lost[SILENT] == 0, self


class Load(ContextStack):
    """A context manager: entering starts the servers and the clients, leaving ends the clients."""

    def __init__(
        self,
        processes: Processes,
        notes: Notes,
        url: str,
        *worker_options: str,
        env: Mapping[str, str] | None = None,
        interfaces: int = 2,
        workers: int = 2,
        first_worker: str | None = None,
        first_interface: str | None = None,
    ) -> None:
        """`env`: additions to the environment of the servers. All have an admin port.

        `first_worker`, `first_interface`: the URL of Redis for the first of them, if it differs.
        """
        super().__init__()
        self.url = url
        self.notes = notes
        self._processes = processes
        self._env = dict(env or {})
        self._worker_options = worker_options
        self._worker_urls = [first_worker or url, *([url] * (workers - 1))]
        self._interface_urls = [first_interface or url, *([url] * (interfaces - 1))]
        self.interfaces: list[Process] = []
        self.workers: list[Process] = []
        self._recovery: float | None = None
        self._marks: dict[str, int] | None = None

    @property
    def servers(self) -> list[Process]:
        return [*self.interfaces, *self.workers]

    def _start_worker(self, url: str) -> None:
        arguments = ("--layer", url, "--resume", "--drain-period", DRAIN_PERIOD, "--admin-port", 0)
        env = self.notes.env | self._env
        self.workers.append(self._processes.start_worker(APP, *arguments, *self._worker_options, env=env, ready=False))

    def _start_interface(self, url: str) -> None:
        arguments = ("--layer", url, "--no-access-log", "--admin-port", 0)
        self.interfaces.append(self._processes.start_interface(*arguments, env=self._env))

    def _open(self) -> None:
        for url in self._worker_urls:
            self._start_worker(url)
        self.program = self._processes.start(
            "program",
            [sys.executable, "-m", "support.broadcaster", self.url, "room.0", str(INTERVAL), str(WAIT)],
            ready=None,
        )
        for url in self._interface_urls:
            self._start_interface(url)
        for worker in self.workers:
            worker.wait_for(WORKER_READY)
        self.echo = self._stack.enter_context(Crowd(self.interfaces, "/echo", sockets=SOCKETS, rate=RATE))
        self.room = self._stack.enter_context(
            Crowd(self.interfaces, "/room", sockets=ROOM_SOCKETS, rate=ROOM_RATE, room_size=ROOM_SIZE)
        )
        self.posts = self._stack.enter_context(Posts(self.interfaces))
        self.program.wait_for(r'"number"')
        ticker = {"name": TICKER, "room": "room.0", "interval": INTERVAL}
        self.ticker = self._stack.enter_context(ws(self.interfaces[-1], "/ticker", query=ticker))
        self.echo.begin()
        self.room.begin()
        self.echo.wait_answered(RATE // 2)
        self.room.wait_each_answered()
        self.posts.wait_answered(POSTERS)

    def wait_recovered(self, since: float, timeout: float = HANG) -> float:
        """Wait until every socket got an answer, direct and through its room, and all rooms are whole again.

        Return the seconds since `since` (of the monotonic clock). Later broadcasts may not be lost. Fails with
        AssertionError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        self.echo.wait_each_answered(timeout)
        while True:
            began = time.monotonic()
            marks = {member.name: member.sent for member in self.room.members}
            self.room.wait_each_answered(max(0.1, deadline - time.monotonic()))
            answered = {member.name: member.answered for member in self.room.members}
            try:  # a message that returned to its sender reaches the others a moment later
                wait_until(lambda m=marks, h=answered: not self._missed(m, h), 1.0)
                break
            except AssertionError:
                assert time.monotonic() < deadline, f"rooms are not whole: {self._missed(marks, answered)[:5]}"
        # Messages that were held back are sent together.
        backlog = [(member, member.sent) for member in self.room.members]
        wait_until(lambda: all(member.answered >= sent for member, sent in backlog), what="the backlog to be sent")
        self._recovery = began - since
        self._marks = marks
        return self._recovery

    def _missed(self, low: Mapping[str, int], high: Mapping[str, int]) -> list[tuple[str, str, int]]:
        """Return (member, sender, number) for each missed broadcast from `low` on and below `high`."""
        missed = []
        for index, member in enumerate(self.room.members):
            first = index - index % ROOM_SIZE
            for sender in self.room.members[first : first + ROOM_SIZE]:
                seen = member.seen.get(sender.name)
                begin, end = low.get(sender.name, 0), high[sender.name]
                if seen is None:
                    missed += [(member.name, sender.name, number) for number in range(begin, end)]
                else:
                    missed += [(member.name, sender.name, n) for n in list(seen.missing) if begin <= n < end]
                    missed += [(member.name, sender.name, n) for n in range(max(begin, seen.expected), end)]
        return missed

    def ready(self, server: Process) -> tuple[int, str]:
        """Return the answer of /readyz of a server: the status and the reason."""
        return admin.readiness(server)

    def wait_ready(self, status: int, timeout: float) -> float:
        """Wait until /readyz of all servers answers with this status. Return the seconds of the wait."""
        began = time.monotonic()
        wait_until(lambda: {self.ready(server)[0] for server in self.servers} == {status}, timeout, f"/readyz {status}")
        return time.monotonic() - began

    def counts(self, server: Process) -> dict[str, int]:
        """Return the counts above 0 from the admin port of a server."""
        return admin.counts(server)

    def failed(self) -> dict[tuple[str, int], float]:
        """Return (sender, number) of each broadcast whose call raised, with the seconds that the call took."""
        return {(each["name"], each["number"]): each["seconds"] for each in self.notes.all("broadcast failed")}

    def finish(self, *, seconds: float = by_form(0.5, 1.0)) -> Outcome:
        """Continue for `seconds`, stop, wait for messages under way, and return the results."""
        self.echo.wait_answered(int(RATE * seconds))
        program = self._program_calls()
        self.ticker.close()
        tickers = self.notes.wait("ticked")
        self.program.terminate()
        self.program.wait()
        self.posts.stop()
        self.room.pause()
        sent = {member.name: member.sent for member in self.room.members}
        with suppress(AssertionError):  # the outcome has them
            wait_until(lambda: self._missed_of(sent) <= self.failed().keys(), 2.0)
        failed = self.failed()
        missed = self._missed({}, sent)
        late = self._missed(self._marks, sent) if self._marks is not None else []
        lost = Counter(REPORTED if key[1:] in failed else SILENT for key in missed)
        runs = Counter(each["name"] for each in self.notes.all("posted"))
        return Outcome(
            echo=self.echo.finish(),
            room=self.room.report(),
            recovery=self._recovery,
            lost=lost,
            late=sorted({(of, number) for _, of, number in late}),
            failed=list(failed.values()),
            program_failed=[call["seconds"] for call in program if call["error"]],
            program_lost=self._lost_of(PROGRAM, len(program), {each["number"] for each in program if each["error"]}),
            ticker_lost=sum(
                (
                    self._lost_of(each["name"], each["count"], {n for name, n in failed if name == each["name"]})
                    for each in tickers
                ),
                Counter(),
            ),
            posts=Counter(self.posts.answers.values()),
            runs=Counter(runs.values()),
            doubled_runs=[name for name, count in runs.items() if count > 1],
            attempts=Counter(each["attempt"] for each in self.notes.all("connected")),
            disconnects=Counter(each["code"] for each in self.notes.all("disconnected")),
            counts={server.name: self.counts(server) for server in self.servers if server.running},
        )

    def _missed_of(self, sent: Mapping[str, int]) -> set[tuple[str, int]]:
        return {(of, number) for _, of, number in self._missed({}, sent)}

    def _program_calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.program.log().splitlines() if line.startswith("{")]

    def _lost_of(self, sender: str, count: int, failed: set[int]) -> Counter[str]:
        """Return the number of broadcasts of `sender` that members of the first room missed after their first one."""
        lost: Counter[str] = Counter()
        for member in self.room.members[:ROOM_SIZE]:
            seen = member.seen.get(sender, Numbers())
            first = min((n for n in range(seen.expected) if n not in seen.missing), default=0)
            for number in range(first, count):
                if number in seen.missing or number >= seen.expected:
                    lost[REPORTED if number in failed else SILENT] += 1
        return lost


def _describe(lost: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(lost.items())) or "none"


class Posts:
    """Threads that POST without pause, each request once and under a name of its own. A context manager."""

    def __init__(self, interfaces: list[Process]) -> None:
        self.answers: dict[str, str] = {}
        """By the name of the request: the status, or the name of the error."""
        self._interfaces = interfaces
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._post, args=(number,), name=f"post {number}", daemon=True)
            for number in range(POSTERS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Wait for the answers under way, and end."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(40)

    def wait_answered(self, count: int) -> None:
        aim = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= aim, 10, f"{count} more answers to POSTs")

    def _post(self, number: int) -> None:
        interface = self._interfaces[number % len(self._interfaces)]
        count = 0
        while not self._stopped.is_set():
            name = f"{number}.{count}"
            count += 1
            try:
                with RawClient(interface, timeout=30) as client:
                    response = client.request("POST", f"/post?name={name}", body=b"x")
                self.answers[name] = str(response.status)
                assert response.status != 200 or response.text == name, response
            except (OSError, EOFError) as error:
                self.answers[name] = type(error).__name__
                self._stopped.wait(0.1)
