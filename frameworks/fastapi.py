"""Groups of WebSockets for apps of FastAPI, as dependencies: `GroupSocket` and `BusDep`.

    @app.websocket("/rooms/{room}")
    async def chat(socket: GroupSocket, room: str, bus: BusDep) -> None:
        async with socket.joined(f"room.{room}"):
            async for text in socket.iter_text():
                await bus.send(f"room.{room}", text, exclude=socket)

Over asgibus a group spans all workers. On any other server, such as uvicorn, it spans the process, which is enough for
development and tests with one worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from asgibus.starlette import Bus, StreamResponse
from asgibus.starlette import GroupSocket as _GroupSocket

try:
    from fastapi import Depends
    from starlette.requests import HTTPConnection
    from starlette.websockets import WebSocket
except ImportError as error:
    raise ImportError("asgibus.fastapi needs the package fastapi: pip install fastapi") from error

__all__ = ["Bus", "BusDep", "GroupSocket", "StreamResponse"]


async def _bus(conn: HTTPConnection) -> Bus:
    return Bus.of(conn)


async def _group_socket(websocket: WebSocket) -> _GroupSocket:
    return _GroupSocket.of(websocket)


BusDep = Annotated[Bus, Depends(_bus)]
"""The bus, for parameters of any handler or dependency: `bus: BusDep`."""

if TYPE_CHECKING:
    GroupSocket = _GroupSocket
else:
    # FastAPI passes its own WebSocket to parameters of a subclass of WebSocket, and refuses a dependency for them.
    GroupSocket = Annotated[Any, Depends(_group_socket)]
    """The WebSocket, for a parameter of a WebSocket handler: `socket: GroupSocket`."""
