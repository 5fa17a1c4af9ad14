"""Rooms and events of Socket.IO, shared by all workers over its own Redis manager."""

import os

import socketio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

sio = socketio.AsyncServer(
    async_mode="asgi",
    cors_allowed_origins="*",
    transports=os.environ.get("TRANSPORTS", "websocket").split(),
    client_manager=socketio.AsyncRedisManager(os.environ["REDIS_URL"]),
    # A poll of a client that has closed goes on for both times together, on every server.
    ping_interval=0.5,
    ping_timeout=2,
)


@sio.event
async def connect(sid, environ, auth):
    if auth == {"token": "wrong"}:
        raise socketio.exceptions.ConnectionRefusedError("members only")
    await sio.save_session(sid, {"name": (auth or {}).get("name", "nobody"), "path": environ["PATH_INFO"]})


@sio.event
async def enter(sid, room):
    await sio.enter_room(sid, room)
    return os.getpid()


@sio.event
async def leave(sid, room):
    await sio.leave_room(sid, room)
    await sio.emit("left", {"room": room}, to=sid)


@sio.event
async def say(sid, data):
    session = await sio.get_session(sid)
    await sio.emit("said", {"by": session["name"], "text": data["text"]}, room=data["room"], skip_sid=sid)


@sio.event
async def sum_of(sid, *numbers):
    return sum(numbers), "done"


@sio.event
async def echo_bytes(sid, data):
    return data[::-1]


@sio.event
async def disconnect(sid, reason):
    session = await sio.get_session(sid)
    await sio.emit("gone", session["name"])


class Feed(socketio.AsyncNamespace):
    """Events by a class, in a namespace of its own."""

    async def on_connect(self, sid, environ, auth):
        await self.emit("hello", {"sid": sid}, to=sid)

    async def on_ask(self, sid, count):
        for number in range(count):
            await self.emit("number", number, to=sid)


sio.register_namespace(Feed("/feed"))


async def home(request):
    return PlainTextResponse("the site beside it")


app = socketio.ASGIApp(sio, Starlette(routes=[Route("/", home)]))
