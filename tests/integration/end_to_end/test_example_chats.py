"""The chats of examples/ for FastAPI, Starlette and Channels: on uvicorn, on one process, and over hand-overs."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from support.processes import Process, Processes
from support.websocket import ws

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
APPS = {"fastapi": "app:app", "starlette": "app:app", "channels": "app:application"}

Start = Callable[..., Process]


@pytest.fixture(params=APPS)
def example(request: pytest.FixtureRequest) -> str:
    """Return the framework of an example."""
    name: str = request.param
    return name


def env_of(example: str, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(EXAMPLES / f"{example}_chat"), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path.rstrip(os.pathsep), **more}


@pytest.fixture(params=["uvicorn", "memory"])
def one_process(request: pytest.FixtureRequest, example: str, processes: Processes) -> Iterator[Process]:
    """Provide the example in one process without Redis."""
    if request.param == "memory":
        yield processes.start_interface(app=APPS[example], env=env_of(example))
        return
    command = [sys.executable, "-P", "-m", "uvicorn", APPS[example], "--port", "0", "--lifespan", "off"]
    server = processes.start("uvicorn", command, ready=None, env=env_of(example))
    server.url = server.wait_for(r"running on (http://\S+)")[1]
    yield server


def join(stack: ExitStack, server: Process, example: str, name: str, room: str = "r") -> ClientConnection:
    """Return a client that has joined, which it knows by its first message."""
    path = f"/rooms/{room}/{name}" if example == "channels" else f"/rooms/{room}?name={name}"
    client = stack.enter_context(ws(server, path))
    if example == "channels":  # a consumer's group has no message that excludes the sender
        assert client.recv(timeout=30) == f"{name} has joined"
    client.send("hello")
    assert client.recv(timeout=30) == f"{name}: hello"
    return client


def expect(text: str, *clients: ClientConnection) -> None:
    assert [client.recv(timeout=30) for client in clients] == [text] * len(clients)


def skip_to(client: ClientConnection, text: str) -> list[object]:
    """Return the messages before one."""
    return list(iter(lambda: client.recv(timeout=30), text))


def await_answers(clients: list[ClientConnection]) -> None:
    """Wait until each client has had an answer: a consumer of Channels has joined its group again by then."""
    for number, client in enumerate(clients):
        client.send("back")
        assert all(": back" in str(text) for text in skip_to(client, f"c{number}: back"))


def expect_nothing(*clients: ClientConnection) -> None:
    for client in clients:
        with pytest.raises(TimeoutError):
            client.recv(timeout=0)


def test_a_chat_in_one_process(example: str, one_process: Process) -> None:
    with ExitStack() as stack:
        ann = join(stack, one_process, example, "ann")
        elsewhere = join(stack, one_process, example, "else", "elsewhere")
        bob = join(stack, one_process, example, "bob")
        expect("bob has joined", ann)
        expect("bob: hello", ann)
        ann.send("hi")
        expect("ann: hi", ann, bob)
        bob.close()
        expect("bob has left", ann)
        if example != "channels":
            httpx.post(f"{one_process.url}/rooms/r?text=news", content=b"news").raise_for_status()
            expect("news", ann)
            with pytest.raises(InvalidStatus) as denied:
                ws(one_process, "/rooms/no%20room?name=ann")
            assert denied.value.response.status_code == 403
        expect_nothing(ann, elsewhere)
    assert " ERROR " not in one_process.log()


@pytest.mark.redis
@pytest.mark.parametrize("handover", ["tell", "silent"])
def test_nobody_leaves_at_deploys(
    example: str, start_interface: Start, start_worker: Start, redis_url: str, handover: str
) -> None:
    """Six members, two workers that are replaced: nobody joins or leaves, and each message arrives once."""
    layer = ("--layer", redis_url)
    env = env_of(example, REDIS_URL=redis_url)

    def start_two() -> list[Process]:
        options = (*layer, "--resume", "--handover", handover)
        started = [start_worker(APPS[example], *options, env=env, ready=False) for _ in range(2)]
        for worker in started:
            worker.wait_for("worker ready")
        return started

    old = start_two()
    interface = start_interface(*layer)
    with ExitStack() as stack:
        clients: list[ClientConnection] = []
        for number in range(6):
            member = join(stack, interface, example, f"c{number}")
            expect(f"c{number} has joined", *clients)
            expect(f"c{number}: hello", *clients)
            clients.append(member)
        new = start_two()
        for worker in old:
            worker.terminate()
            assert worker.wait() == 0
        await_answers(clients)
        clients[0].send("the last message")
        for client in clients:
            assert all(": back" in str(text) for text in skip_to(client, "c0: the last message"))
        expect_nothing(*clients)
        clients.pop().close()
        expect("c5 has left", *clients)
    for worker in (*old, *new):
        assert " ERROR " not in worker.log()
