"""The chat of FastAPI's documentation, with a ConnectionManager in the process, for each room."""

import os

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()


class ConnectionManager:
    def __init__(self):
        self.active_connections: list[WebSocket] = []

    async def connect(self, websocket: WebSocket):
        await websocket.accept()
        self.active_connections.append(websocket)

    def disconnect(self, websocket: WebSocket):
        self.active_connections.remove(websocket)

    async def broadcast(self, message: str):
        for connection in self.active_connections:
            await connection.send_text(message)


managers: dict[str, ConnectionManager] = {}


@app.websocket("/ws/{room}/{client_id}")
async def websocket_endpoint(websocket: WebSocket, room: str, client_id: int):
    manager = managers.setdefault(room, ConnectionManager())
    await manager.connect(websocket)
    try:
        while True:
            data = await websocket.receive_text()
            await manager.broadcast(f"Client #{client_id} says: {data}")
    except WebSocketDisconnect:
        manager.disconnect(websocket)
        await manager.broadcast(f"Client #{client_id} left the chat")


@app.post("/rooms/{room}")
async def announce(room: str, text: str):
    manager = managers.get(room, ConnectionManager())
    await manager.broadcast(text)
    return {"pid": os.getpid(), "reached": len(manager.active_connections)}
