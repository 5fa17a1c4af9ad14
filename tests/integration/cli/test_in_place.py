"""SIGUSR2 to `asgi-interface`: a new process goes on, or the old one does."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import anyio
import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from asgibus.cli import control_pipe
from asgibus.cli.version import FORM
from asgibus.interface_server import move
from asgibus.interface_server.move import MoveChannel, MoveError
from asgibus.layers import open_layer
from end_to_end.test_event_streams import APP as EVENTS
from end_to_end.test_event_streams import Reader
from support.admin import ADMIN
from support.bus import until
from support.deadline import HANG, wait_until
from support.in_place import InPlace
from support.processes import Process, environment
from support.raw import RawClient
from support.udp import Peer
from support.websocket import ws

APP = "cli.echo_app:app"
ROOT = Path(__file__).parents[3]
Start = Callable[..., Process]


@pytest.fixture
def worker(start_worker: Start, redis_url: str) -> Process:
    return start_worker(APP, "--layer", redis_url, "--resume")


def check(*sockets: ClientConnection) -> None:
    """Check that each WebSocket gets answers and broadcasts, each once."""
    for each in sockets:
        each.send("mine")
        assert each.recv(10) == "mine"
    sockets[0].send("all of us")
    for each in sockets:
        assert each.recv(10) == "all of us"


def test_a_new_process_goes_on(worker: Process, start_interface: Start, redis_url: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    interface = start_interface("--layer", redis_url, "--admin-port", 0, "--keep-alive-timeout", 60)
    with InPlace(interface) as in_place, ws(interface, "/1") as one, ws(interface, "/2") as two:
        with RawClient(interface) as client:
            check(one, two)
            assert client.request("GET").status == 200
            one.send("on its way")
            _, what = in_place.move()
            assert what == "2 websocket, 1 http sockets moved"
            assert one.recv(10) == "on its way"
            check(one, two)
            assert client.request("GET").status == 200
            with ws(interface, "/3") as three:
                check(one, two, three)
                in_place.move()
                check(one, two, three)
        assert psutil.pid_exists(in_place.pid)
    assert not path.exists()
    assert "left with 1006" not in worker.log()
    assert len({*re.findall(r"mailbox (\S+)", interface.log())}) == 1


def test_slow_downloads_go_on(worker: Process, start_interface: Start, redis_url: str) -> None:
    """The clients read all the time, and there is always something to be written to one of them."""
    interface = start_interface("--layer", redis_url)
    with InPlace(interface) as in_place, ExitStack() as stack, ThreadPoolExecutor(1) as threads:
        clients = [stack.enter_context(RawClient(interface, receive_buffer=20_000)) for _ in range(4)]
        for client in clients:
            client.send(b"GET /?100 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            client.read_head()
        move = threads.submit(in_place.move)
        while not move.done():
            for client in clients:
                client.socket.recv(4_000)
            time.sleep(0.01)  # the clients are slow
        assert move.result()[1] == "4 http sockets moved"
        for client in clients:
            assert client.read_until_close(HANG).endswith(b"hello\r\n0\r\n\r\n")


@pytest.mark.anyio
async def test_reads_of_streams_go_on(start_interface: Start, redis_url: str) -> None:
    options = ("--streams", "/streams", "--streams-unsigned", "--admin-port", 0)
    interface = start_interface("--layer", redis_url, *options)
    metrics = f"{interface.wait_for(ADMIN)[1]}/metrics"
    layer = open_layer(redis_url)
    with InPlace(interface) as in_place, anyio.fail_after(HANG):
        async with (
            httpx.AsyncClient(base_url=interface.url, trust_env=False, timeout=HANG) as client,
            anyio.create_task_group() as tasks,
        ):
            answers: dict[str, httpx.Response] = {}

            async def read(live: str) -> None:
                answers[live] = await client.get(f"/streams/log?offset=-1&live={live}")

            async with layer.stream("log").writer() as out:
                tasks.start_soon(read, "long-poll")
                tasks.start_soon(read, "sse")
                await anyio.to_thread.run_sync(wait_until, lambda: "asgibus_followers 2.0" in httpx.get(metrics).text)
                _, what = await anyio.to_thread.run_sync(in_place.move)
                assert what == "2 http sockets moved"
                await out.append("a")
                await until(lambda: "long-poll" in answers)
                await anyio.to_thread.run_sync(in_place.move)
                await out.append("b")
    await layer.close()
    assert answers["long-poll"].json() == ["a"]
    data = re.findall("event: data\ndata:(.*)\n", answers["sse"].text)
    assert data == ['["a"]', '["b"]']
    assert '"streamClosed":true' in answers["sse"].text


def test_udp_moves_with_its_peers(start_worker: Start, start_interface: Start, redis_url: str) -> None:
    start_worker("interface_server.udp_app:app", "--layer", redis_url, "--protocol", "udp")
    interface = start_interface("--layer", redis_url, "--udp", "127.0.0.1:0", "--admin-port", 0)
    with InPlace(interface) as in_place, Peer(interface) as peer:
        run = peer.ask(b"0")["run"]
        peer.send(b"1")
        in_place.move()
        assert json.loads(peer.receive())["count"] == 2
        again = peer.ask(b"2")
        assert (again["run"], again["count"]) == (run, 3)
        with Peer(interface) as other:
            assert other.ask(b"0")["count"] == 1
        in_place.move()
        assert peer.ask(b"3")["count"] == 4


@pytest.mark.skipif(FORM != "compiled", reason="asgibus is not compiled")
def test_pure_and_compiled_processes_replace_each_other(
    start_worker: Start, start_interface: Start, redis_url: str, tmp_path: Path
) -> None:
    """A release may be installed without a compiler, and the one before with one."""
    bus = ("--layer", redis_url)
    start_worker(APP, *bus, "--resume")
    start_worker(EVENTS, *bus, "--resume", "--pool", "events")
    source = tmp_path / "source"  # what the link names comes before the installed modules
    path = os.pathsep.join([str(source), environment()["PYTHONPATH"]])
    interface = start_interface(*bus, "--route", "/numbers=events", env={"PYTHONPATH": path})
    with InPlace(interface) as in_place, ExitStack() as stack:
        one, two = [stack.enter_context(ws(interface, f"/{number}")) for number in (1, 2)]
        idle, client = [stack.enter_context(RawClient(interface)) for _ in range(2)]
        reader = Reader(client)
        for form in ("compiled", "pure Python", "compiled", "pure Python"):
            if form_of(in_place.pid) != form:
                source.unlink() if form == "compiled" else source.symlink_to(ROOT / "src")
                one.send("on its way")
                in_place.move()
                assert one.recv(10) == "on its way"
            assert form_of(in_place.pid) == form
            check(one, two)
            assert idle.request("GET").status == 200
            count = len(reader.events) + 5
            reader.read_until(lambda events, least=count: len(events) >= least)
        numbers = [number for _, number in reader.events]
        assert numbers == list(range(1, len(numbers) + 1)), "every event once, in order"


def form_of(pid: int) -> str:
    """Return the form of the modules that a process has loaded, as `FORM` names it."""
    compiled = any("asgibus" in each.path and each.path.endswith(".so") for each in psutil.Process(pid).memory_maps())
    return "compiled" if compiled else "pure Python"


def test_each_process_of_a_supervisor_moves(worker: Process, start_interface: Start, redis_url: str) -> None:
    interface = start_interface("--layer", redis_url, "--processes", 2)
    interface.wait_for("supervisor ready")
    before = interface.children()
    with ExitStack() as stack:
        sockets = [stack.enter_context(ws(interface, f"/{number}")) for number in range(12)]
        check(*sockets)
        interface.send_signal(signal.SIGUSR2)
        interface.wait_for("all processes have moved")
        check(*sockets)
        wait_until(lambda: len(interface.children()) == 2)
        assert not {*before} & {*interface.children()}
        assert len({*re.findall(r"interface server ready, mailbox (\S+)", interface.log())}) == 2
        check(stack.enter_context(ws(interface, "/new")), *sockets)
    assert "declared dead" not in worker.log()


def test_a_process_that_is_starting_moves_when_it_serves(start_interface: Start, redis_url: str) -> None:
    interface = start_interface("--layer", redis_url, "--processes", 2)
    interface.wait_for("supervisor ready")
    killed, *rest = interface.children()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len({*interface.children()} - {killed, *rest}) == 1, what="the start of another process")
    before = interface.children()
    interface.send_signal(signal.SIGUSR2)
    interface.wait_for("all processes have moved")
    wait_until(lambda: len(interface.children()) == 2)
    assert not {*before} & {*interface.children()}


def test_a_rolling_restart_waits_for_a_move(start_interface: Start, redis_url: str) -> None:
    interface = start_interface("--layer", redis_url, "--processes", 2)
    interface.wait_for("supervisor ready")
    interface.send_signal(signal.SIGUSR2)
    interface.wait_for("moving one process after another")
    wait_until(lambda: len(interface.children()) == 3, what="the start of a successor")
    interface.send_signal(signal.SIGHUP)
    interface.wait_for("all processes have moved")
    interface.wait_for("all processes are replaced")
    assert interface.log().count("interface server ready") == 6, "each has moved, and was replaced then"


def test_a_process_with_an_app_says_that_it_cannot_move(start_interface: Start) -> None:
    interface = start_interface(app=APP)
    with ws(interface, "/") as one:
        check(one)
        interface.send_signal(signal.SIGUSR2)
        interface.wait_for("this process is not replaced, and goes on: the app runs in the same process")
        check(one)


def test_a_new_process_that_cannot_start(
    worker: Process, start_interface: Start, redis_url: str, tmp_path: Path
) -> None:
    variables = tmp_path / "variables"
    variables.write_text("ASGIBUS_WINDOW=100000\n")
    interface = start_interface("--layer", redis_url, "--env-file", variables)
    with ws(interface, "/") as one:
        check(one)
        variables.write_text("ASGIBUS_WINDOW=a great many\n")
        interface.send_signal(signal.SIGUSR2)
        interface.wait_for("the move to a new process has failed, and this one goes on: the other process has ended")
        check(one)
        variables.write_text("ASGIBUS_PREFIX=another\n")
        interface.send_signal(signal.SIGUSR2)
        interface.wait_for("have the same --layer and --prefix")
        check(one)
        variables.write_text("ASGIBUS_WINDOW=100001\n")
        with InPlace(interface) as in_place:
            in_place.move()
            check(one)


class Supervised:
    """An interface server, with the test as its supervisor."""

    def __init__(self, folder: Path, layer: str) -> None:
        self._pipe, theirs = socket.socketpair()
        self._log = folder / "supervised.log"
        options = ("--host", "127.0.0.1", "--port", "0", "--layer", layer)
        with theirs, self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "asgibus.cli.interface", *options],
                env={**environment(), control_pipe.VARIABLE: str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                stdout=log,
                stderr=log,
            )
        assert self._pipe.recv(100).startswith(b"ready ")
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        port = next(each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN)
        self.url = self.ws_url = f"ws://127.0.0.1:{port}"
        self.port = port
        self.uds = ""

    def move(self) -> MoveChannel:
        """Ask the process to move, and return the end of the successor."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._pipe, [control_pipe.MOVE], [theirs.fileno()])
        return MoveChannel(ours)

    def log(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        self._pipe.close()
        self.process.wait(30)


@pytest.fixture
def supervised(tmp_path: Path, redis_url: str) -> Iterator[Supervised]:
    server = Supervised(tmp_path, redis_url)
    yield server
    server.end()


async def prepare(channel: MoveChannel, pid: int = 0, version: int = move.VERSION) -> None:
    await channel.receive(move.OFFER)
    await channel.send(move.PREPARED, {"version": version, "pid": pid})


async def receive_states(channel: MoveChannel) -> None:
    while (message := await channel.receive_any()).kind != move.END:
        for descriptor in message.descriptors:
            os.close(descriptor)


@pytest.mark.timeout(90)
def test_a_successor_that_dies_at_any_moment(worker: Process, supervised: Supervised) -> None:
    async def at_once(channel: MoveChannel) -> None:
        """End before the offer is read."""

    async def foreign_version(channel: MoveChannel) -> None:
        await prepare(channel, version=move.VERSION + 1)
        with pytest.raises(MoveError):
            await channel.receive_any()

    async def while_prepared(channel: MoveChannel) -> None:
        await prepare(channel)

    async def amid_states(channel: MoveChannel) -> None:
        await prepare(channel)
        for descriptor in (await channel.receive_any()).descriptors:
            os.close(descriptor)  # an open one would keep the client's connection open

    async def refusal(channel: MoveChannel) -> None:
        await prepare(channel)
        await receive_states(channel)
        await channel.send(move.REFUSED, {"reason": "no room for so many sockets"})

    async def before_ready(channel: MoveChannel) -> None:
        await prepare(channel)
        await receive_states(channel)

    async def after_ready(channel: MoveChannel) -> None:
        await prepare(channel)
        await receive_states(channel)
        await channel.send(move.READY)

    async def after_go(channel: MoveChannel) -> None:
        await after_ready(channel)
        await channel.receive(move.GO)

    phases = (
        (at_once, "ended"),
        (foreign_version, "speaks version 2"),
        (while_prepared, "ended"),
        (amid_states, "ended"),
        (refusal, "no room for so many sockets"),
        (before_ready, "ended"),
        (after_ready, "ended"),
        (after_go, "ended before it took over"),
    )
    with ws(supervised, "/1") as one, ws(supervised, "/2") as two, RawClient(supervised) as client:  # type: ignore[arg-type]
        check(one, two)
        for number, (phase, reason) in enumerate(phases):
            channel = supervised.move()
            two.send("on its way")
            anyio.run(phase, channel)
            channel.close()
            wait_until(lambda: supervised.log().count("this one goes on") > number)  # noqa: B023
            assert re.search(reason, supervised.log().splitlines()[-1]), phase.__name__
            assert two.recv(10) == "on its way"
            check(one, two)
            assert client.request("GET").status == 200
            with ws(supervised, "/new") as new:  # type: ignore[arg-type]
                check(new, one, two)


def test_a_successor_that_hangs_is_killed(worker: Process, supervised: Supervised) -> None:
    with ws(supervised, "/1") as one, subprocess.Popen(["sleep", "300"]) as hanging:  # type: ignore[arg-type]
        check(one)
        channel = supervised.move()

        async def hang() -> None:
            await prepare(channel, hanging.pid)
            await receive_states(channel)
            await channel.send(move.READY)
            await channel.receive(move.GO)

        anyio.run(hang)
        assert hanging.wait(30) == -signal.SIGKILL
        channel.close()
        wait_until(lambda: "this one goes on" in supervised.log())
        check(one)


def test_sockets_with_tls_are_drained(worker: Process, start_interface: Start, redis_url: str, tmp_path: Path) -> None:
    run = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-days", "2", "-keyout", tmp_path / "key", "-out", tmp_path / "cert"]
    subprocess.run([*run, *names], check=True, capture_output=True)
    tls = ("--ssl-certfile", tmp_path / "cert", "--ssl-keyfile", tmp_path / "key")
    interface = start_interface("--layer", redis_url, "--drain-period", 0.1, *tls)
    trusting = ssl._create_unverified_context()
    with (
        InPlace(interface) as in_place,
        ws(interface, "/1", ssl=trusting) as one,
        RawClient(interface, tls=trusting, receive_buffer=20_000) as download,
    ):
        check(one)
        download.send(b"GET /?100 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        download.read_head()
        in_place.signal()
        interface.wait_for("2 sockets with TLS cannot be moved, and are closed as at any other stop")
        in_place.signal()  # to the old process, which has to send the rest
        interface.wait_for(r"SIGUSR2: process \d+ serves in the place of this one already")
        assert download.read_until_close(HANG).endswith(b"hello\r\n0\r\n\r\n")
        assert interface.wait() == 0
        in_place.pid = int(in_place.moves()[-1][0])
        with pytest.raises(ConnectionClosed) as closed:
            one.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        with ws(interface, "/2", ssl=trusting) as two:
            check(two)
