"""Litestar: a handler, and a listener, whose `on_disconnect` Litestar calls from a `finally`."""

from litestar import Litestar, WebSocket, websocket, websocket_listener
from litestar.exceptions import WebSocketDisconnect

from frameworks.moving.notes import note

connected: set[WebSocket] = set()


@websocket("/chat/{name:str}")
async def chat(socket: WebSocket, name: str) -> None:
    await socket.accept()
    connected.add(socket)
    try:
        while True:
            text = await socket.receive_text()
            await socket.send_text(f"you: {text}")
            for each in [*connected]:
                await each.send_text(f"{name}: {text}")
    except WebSocketDisconnect:
        connected.discard(socket)
        note(f"left {name}")
        for each in [*connected]:
            await each.send_text(f"{name} left the chat")
    finally:
        note(f"cleaned up {name}")


async def on_disconnect(socket: WebSocket) -> None:
    name = socket.path_params["name"]
    note(f"left {name}")
    note(f"cleaned up {name}")


@websocket_listener("/listener/{name:str}", on_disconnect=on_disconnect)
async def listener(data: str, name: str) -> str:
    return f"you: {data}"


app = Litestar([chat, listener])
