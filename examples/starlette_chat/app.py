"""A chat with rooms for Starlette, in which nobody leaves when a worker is replaced.

    uvicorn app:app                                          # to develop, one process without Redis
    asgi-interface --layer redis://127.0.0.1:6379            # in production
    asgi-worker --resume app:app --layer redis://127.0.0.1:6379

The clients of a worker that stops continue in another one.
"""

import re

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgibus.starlette import Bus, GroupSocket

ROOM = re.compile(r"[A-Za-z0-9_-]{1,50}")


async def chat(websocket: WebSocket) -> None:
    socket, bus = GroupSocket.of(websocket), Bus.of(websocket)
    room, name = socket.path_params["room"], socket.query_params.get("name")
    if not ROOM.fullmatch(room) or not name:
        await socket.close()  # before it is accepted: the client gets 403
        return
    async with socket.joined(room):
        if not socket.resumed:
            await bus.send(room, f"{name} has joined", exclude=socket)
        async for text in socket.iter_text():
            await bus.send(room, f"{name}: {text}")
        await bus.send(room, f"{name} has left")  # the client is gone: at a deploy this is not reached


async def announce(request: Request) -> Response:
    room = request.path_params["room"]
    if not ROOM.fullmatch(room):
        return Response(status_code=404)
    await Bus.of(request).send(room, (await request.body()).decode())
    return Response()


app = Starlette(routes=[WebSocketRoute("/rooms/{room}", chat), Route("/rooms/{room}", announce, methods=["POST"])])
