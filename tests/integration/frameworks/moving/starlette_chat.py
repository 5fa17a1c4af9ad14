"""Starlette: endpoints, which call `on_disconnect` from a `finally`, with and without a task for each socket."""

import asyncio

from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.routing import WebSocketRoute

from frameworks.moving.notes import note


class Chat(WebSocketEndpoint):
    encoding = "text"

    async def on_receive(self, websocket, data):
        await websocket.send_text(f"you: {data}")

    async def on_disconnect(self, websocket, close_code):
        note(f"left {websocket.path_params['name']}")
        note(f"cleaned up {websocket.path_params['name']}")


class Ticking(Chat):
    """Also sends ticks, from a task that the end of the run cancels."""

    async def on_connect(self, websocket):
        await super().on_connect(websocket)
        self.ticking = asyncio.create_task(self.tick(websocket))

    async def tick(self, websocket):
        try:
            while True:
                await websocket.send_text("tick")
                await asyncio.sleep(0.02)
        finally:
            note(f"ticked {websocket.path_params['name']}")

    async def on_disconnect(self, websocket, close_code):
        self.ticking.cancel()
        await super().on_disconnect(websocket, close_code)


app = Starlette(routes=[WebSocketRoute("/endpoint/{name}", Chat), WebSocketRoute("/ticking/{name}", Ticking)])
