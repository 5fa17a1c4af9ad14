"""The disconnect of a client ends its session at the worker at once."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.deadline import in_time, wait_until
from support.processes import Process
from support.raw import RawClient
from support.servers import LAYERS, serving
from support.websocket import handshake

APP = "end_to_end.disconnect_app:app"
figures = logging.getLogger("figures")  # shown by `pytest -rP --log-level=info`

AT_ONCE = 0.5  # seconds; a few milliseconds on an idle machine


@pytest.fixture(scope="module", params=LAYERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path]]:
    """Provide an interface server, and the folder with the notes of its app."""
    folder = tmp_path_factory.mktemp("notes")
    patch = pytest.MonkeyPatch()
    patch.setenv("NOTES", str(folder))
    try:
        with serving(request, APP, layer=request.param) as running:
            yield running.interfaces[0], folder
    finally:
        patch.undo()


HTTP = ["stream", "flood", "poll", "poll_beside", "upload"]
WEBSOCKET = ["listen", "push", "hesitate"]


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("path", HTTP + WEBSOCKET)
def test_a_disconnect_reaches_the_app_at_once(server: tuple[Process, Path], path: str, leave: str) -> None:
    interface, folder = server
    name = f"{path}-{leave}"
    target = f"/{path}?name={name}"
    with RawClient(interface) as client:
        if path in WEBSOCKET:
            client.send(handshake(target))
        elif path == "upload":
            client.send(f"POST {target} HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\nabc".encode())
        else:
            client.send(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        if path == "stream":
            client.read_until(b"tick")
        else:
            wait_until((folder / f"{name}.sending").exists, what="the first note of the app")
        disconnected = time.monotonic()
        getattr(client, leave)()
    ended = folder / f"{name}.ended"
    wait_until(ended.exists, what="the end of the app")
    ended_at, outcome = ended.read_text().split()
    delay = float(ended_at) - disconnected
    figures.info("%s: %.1f ms, %s", name, delay * 1000, outcome)
    assert delay >= 0
    in_time(delay, AT_ONCE)
    assert outcome == ("ClientDisconnected" if path in ("stream", "flood", "push") else "returned")


@pytest.mark.parametrize("leave", ["close", "reset"])
def test_a_disconnect_reaches_the_app_in_spite_of_a_pipelined_request(server: tuple[Process, Path], leave: str) -> None:
    interface, folder = server
    names = [f"ahead-{leave}-{number}" for number in range(2)]
    with RawClient(interface) as client:
        for name in names:
            client.send(f"GET /poll?name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        wait_until((folder / f"{names[0]}.sending").exists, what="the first note of the app")
        getattr(client, leave)()
    wait_until((folder / f"{names[0]}.ended").exists, what="the end of the app")
