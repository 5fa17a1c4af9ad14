"""The log at the level DEBUG: types and sizes of messages, without their content."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from support.processes import Process
from support.websocket import ws

SECRET = "s3cret"
Start = Callable[..., Process]

ECHO = """
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept", "headers": [(b"set-cookie", b"s3cret")]})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event.get("text") or event["bytes"].decode()})
        return
    assert scope["type"] == "http", "no lifespan"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"set-cookie", b"s3cret")]})
    await send({"type": "http.response.body", "body": b"s3cret"})
    await send("s3cret" if scope["path"] == "/text" else {"text": "s3cret"} if scope["path"] == "/dict" else BAD)
BAD = {"type": "http.response.trailers", "headers": [(b"set-cookie", b"s3cret\\n")]}
"""


@pytest.mark.parametrize("mode", ["embedded", "split"])
def test_no_content_is_logged(
    request: pytest.FixtureRequest, start_interface: Start, start_worker: Start, tmp_path: Path, mode: str
) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    debug = ("--log-level", "debug")
    if mode == "embedded":
        processes = [start_interface(*debug, app="echo:app", allow_traceback=True)]
    else:
        url = request.getfixturevalue("redis_url")
        worker = start_worker("echo:app", "--layer", url, *debug, allow_traceback=True)
        processes = [start_interface("--layer", url, *debug), worker]
    headers = {"Authorization": SECRET, "Cookie": f"session={SECRET}"}
    with ws(processes[0], "/", additional_headers=headers) as socket:
        for message in (SECRET, SECRET.encode()):
            socket.send(message)
            assert socket.recv(5) == SECRET
        assert socket.ping(SECRET).wait(5)
        socket.close(4000, SECRET)
    for path in ("/", "/text", "/dict"):
        httpx.post(f"{processes[0].url}{path}", content=SECRET, headers=headers, trust_env=False)
    processes[0].wait_for(r"< TEXT \[6 bytes\]")
    processes[0].wait_for(r"< CLOSE \[8 bytes\]")
    for process in processes:
        process.terminate()
        process.wait()
        # A traceback shows lines of the app, and no values of arguments.
        shown = [line for line in process.log().splitlines() if SECRET in line and not line.startswith("    ")]
        assert shown == []
