"""Groups of WebSockets for apps of Starlette, in a few lines: `GroupSocket` and `Bus`.

    async def chat(websocket: WebSocket) -> None:
        socket, bus = GroupSocket.of(websocket), Bus.of(websocket)
        async with socket.joined("chat"):
            async for text in socket.iter_text():
                await bus.send("chat", text, exclude=socket)

Over asgibus a group spans all workers. On any other server, such as uvicorn, it spans the process, which is enough for
development and tests with one worker.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self

import anyio

from asgibus.layers import ChannelLayer
from asgibus.layers.contract import Message
from asgibus.layers.errors import StreamReset
from asgibus.layers.presence import CLOSE_TYPE, Announcements, Present, pack_info, require_user, user_group
from asgibus.layers.streams import BEGINNING, Stream, parse_offset
from asgibus.layers.streams.offsets import client_offset
from asgibus.layers.streams.past import KEPT, place_offset
from asgibus.protocol.events import EXCLUDE
from asgibus.protocol.followers import Delivery
from asgibus.protocol.stream_frames import EVENTS, Template, pack_template, read_template, sse_template
from asgibus.worker.connection import Connection, connection, pack_announcements, require_same_user
from asgibus.worker.local_layer import local_layer
from asgibus.worker.stream_response import stream_response

try:
    from starlette.background import BackgroundTask
    from starlette.requests import HTTPConnection
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send
    from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
except ImportError as error:
    raise ImportError("asgibus.starlette needs the package starlette: pip install starlette") from error

if TYPE_CHECKING:
    from asgibus.layers.memory import InMemoryChannelLayer

__all__ = ["Bus", "GroupSocket", "StreamResponse"]

MOST_TOLD = 200  # users of a group on another server, above which it is not told who joins and leaves
LEAVE_SECONDS = 1.0  # for a group to be left by a handler that is cancelled
_GONE: Final = (WebSocketDisconnect, OSError, RuntimeError)  # the handler learns of the end by itself


def _connection(conn: HTTPConnection) -> Connection | None:
    """Return the connection on the bus; None if another server runs the app."""
    return connection(conn.scope) if "asgibus" in (conn.scope.get("extensions") or {}) else None


class Bus:
    """Sends to groups, from any request or WebSocket of the app.

    Args:
        layer: The channel layer.
    """

    def __init__(self, layer: ChannelLayer) -> None:
        self.layer: Final = layer
        """The channel layer, for background work and other channels: `await bus.layer.send("work", {…})`."""

    @classmethod
    def of(cls, conn: HTTPConnection) -> Self:
        """Return the bus of a request or a WebSocket; that of the process if another server runs the app."""
        found = _connection(conn)
        return cls(local_layer() if found is None else found.layer)

    async def send(
        self,
        group: str,
        data: str | bytes,
        *,
        exclude: GroupSocket | None = None,
        keep: int | None = None,
        id: str | None = None,  # noqa: A002
        placeholder: str | None = None,
    ) -> bool:
        """Send a message to the WebSockets of a group.

        Args:
            group: 1 to 100 ASCII letters, digits, `.`, `-` and `_`.
            data: The message, as text or bytes.
            exclude: A member that does not get the message, such as its sender.
            keep: How many messages of the group are kept for clients that join with `after`; by default this one is
                not.
            id: An id of 1 to 200 characters: while a message with this id is kept, another one is not sent.
            placeholder: A text that occurs in `data`. It is replaced by the offset of the message where it occurs
                first, so that clients learn the offset.

        Returns:
            True if it was sent, and False if a message with that id was kept.

        Raises:
            TypeError: The name of the group is not valid, or the message is neither text nor bytes.
            ValueError: `keep`, `id` or `placeholder` is not valid, or `exclude` is given for a message that is kept.
            MessageTooLarge: The message is larger than 16 MiB.
            LayerUnavailable: The store could not be reached in time.
        """
        if not isinstance(data, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"a message is text or bytes, not {type(data).__name__}: send_json sends objects")
        event: Message = {"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data}
        if exclude is not None:
            if keep is not None:
                raise ValueError("a message that is kept goes to all members: exclude is for others")
            if exclude.member is not None:
                event[EXCLUDE] = exclude.member
        if keep is None and id is None and placeholder is None:  # the layer may be one of another package
            await self.layer.group_send(group, event)
            return True
        return await self.layer.group_send(group, event, keep=keep, id=id, placeholder=placeholder)

    async def send_json(
        self,
        group: str,
        data: Any,
        *,
        exclude: GroupSocket | None = None,
        keep: int | None = None,
        id: str | None = None,  # noqa: A002
        placeholder: str | None = None,
    ) -> bool:
        """Send an object as JSON to the WebSockets of a group. See `send`.

        The placeholder is a text in the JSON, such as `<offset>` for `{"offset": "<offset>", "said": text}`.
        """
        text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
        return await self.send(group, text, exclude=exclude, keep=keep, id=id, placeholder=placeholder)


class StreamResponse(Response):
    """The entries of a stream, as server-sent events: those that are kept, and then the further ones until its end.

    The client goes on after the `Last-Event-ID` of its request, or `?after=`. Over asgibus no worker takes part once
    the response has begun, so the client notices no deploy and no crash of a worker. See `asgibus.stream_response`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        stream: str | Stream,
        *,
        after: str | None = None,
        template: Template | None = None,
        event: str = "",
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        """Take the arguments of `asgibus.stream_response`.

        Args:
            stream: The stream, or its name.
            after: The offset of the last entry that the client has, if its request names none.
            template: What the client gets: `"raw"`, or the `data` of the events by what they are for.
            event: The type of the events of entries; by default they have none.
            headers: Further headers of the response.
            background: Runs once the response has begun; on other servers, once it has ended.

        Raises:
            ValueError: The template is not valid.
        """
        sse_template(template, event)
        self.status_code = 200
        self.background = background
        self._stream = stream
        self._after = after
        self._template = template
        self._event = event
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        await stream_response(
            scope,
            receive,
            send,
            self._stream,
            after=self._after,
            template=self._template,
            event=self._event,
            headers=self.raw_headers,
        )
        if self.background is not None:
            await self.background()


class GroupSocket(WebSocket):
    """A WebSocket that joins groups, and that leaves its handler in silence when another worker takes it over.

    At a hand-over the handler is cancelled: `finally` and `async with` run, but no `except WebSocketDisconnect`, and
    no code after `iter_text()`. The client is not gone, and the handler runs again in another worker.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of a `WebSocket` of Starlette. `of` makes one from another."""
        super().__init__(*args, **kwargs)
        self._connection = _connection(self)
        self._task = asyncio.current_task()
        self._inbox: _LocalInbox | None = None
        self._identity: tuple[str, Any] | None = None

    @classmethod
    def of(cls, websocket: WebSocket) -> Self:
        """Return the WebSocket with groups. Use it instead of the original one from then on."""
        socket = cls(websocket.scope, websocket.receive, websocket.send)
        socket.client_state = websocket.client_state
        socket.application_state = websocket.application_state
        return socket

    @property
    def connection(self) -> Connection:
        """The connection on the bus. Raises RuntimeError if another server runs the app."""
        return connection(self.scope)

    @property
    def resumed(self) -> bool:
        """Whether an earlier run of the handler has accepted this client, which must not be welcomed again."""
        return self._connection is not None and self._connection.resumed

    @property
    def member(self) -> str | None:
        """The name of this WebSocket as a member of groups; None before it has joined one on another server."""
        if self._connection is not None:
            return self._connection.reply_channel
        return None if self._inbox is None else self._inbox.channel

    async def identify(self, user: str, info: Any = None) -> None:
        """Give this WebSocket a user. See `asgibus.Connection.identify`.

        Args:
            user: The id of the user, of 1 to 200 characters.
            info: Data about the user that others may see: JSON values, at most 16 KiB when packed.

        Raises:
            TypeError: The id is no str, or the info is not of JSON values.
            ValueError: The id is empty or too long, or the info is too large.
            RuntimeError: This is the WebSocket of another user.
            LayerUnavailable: The store could not be reached in time.
        """
        if self._connection is None:
            pack_info(info)
            require_same_user(None if self._identity is None else self._identity[0], require_user(user))
            self._identity = str(user), info
            if self._inbox is not None:
                self._inbox.show_again(self._identity)
            return
        try:
            await self._connection.identify(user, info)
        except OSError:
            await self._leave_if_handed_over()
            raise

    @asynccontextmanager
    async def joined(
        self,
        *groups: str,
        present: bool = False,
        join: Message | None = None,
        leave: Message | None = None,
        after: str | None = None,
        reset: str | None = None,
        subprotocol: str | None = None,
        headers: Iterable[tuple[bytes, bytes]] | None = None,
    ) -> AsyncIterator[Self]:
        """Accept the client, unless that is done, and be a member of groups while the block lasts.

        Args:
            groups: The names of the groups: 1 to 100 ASCII letters, digits, `.`, `-` and `_` each.
            present: Whether the user of this WebSocket is shown in the groups. Call `identify` before.
            join: The event that tells the groups that a user has joined. See `asgibus.Connection.group_add`.
            leave: The event that tells the groups that a user has left.
            after: The offset of the last kept message that the client has; `"0"` for all that are kept. The client gets
                those after it, and then the further ones, without a gap and without a duplicate. See `Bus.send`.
            reset: The text of a message that the client gets in place of messages after its offset that are not kept
                any more, or if its offset is none. Without `after` it has no effect.
            subprotocol: The subprotocol to accept.
            headers: Headers of the response to the handshake.

        Raises:
            TypeError: A name is not valid.
            ValueError: An event or `reset` is not valid, or an offset is given for several groups.
            RuntimeError: `identify` was not called before.
            LayerUnavailable: The store could not be reached in time.
        """
        if len(groups) > 1 and client_offset(after) != BEGINNING:
            raise ValueError("an offset is that of one group: join each group in a block of its own")
        if self.application_state is WebSocketState.CONNECTING:
            await self.accept(subprotocol, headers)
        async with AsyncExitStack() as stack:
            for group in groups:
                await stack.enter_async_context(self._member_of(group, present, join, leave, after, reset))
            yield self

    @asynccontextmanager
    async def _member_of(
        self,
        group: str,
        present: bool,
        join: Message | None,
        leave: Message | None,
        after: str | None,
        reset: str | None,
    ) -> AsyncIterator[None]:
        if self._connection is None:
            user = None if self._identity is None else self._identity[0]
            pack_announcements(join, leave, present=present, user=user)
            if self._inbox is None:
                self._inbox = await _LocalInbox.open(self)
            shown = Announcements(join, leave, MOST_TOLD) if present else None
            past = None if after is None else _LocalPast(self, self._inbox.layer, group, after, reset)
            async with self._inbox.joined(group, self._identity, shown, past):
                yield
            return
        try:
            await self._connection.group_add(group, present=present, join=join, leave=leave, after=after, reset=reset)
        except OSError:
            await self._leave_if_handed_over()
            raise
        try:
            yield
        finally:
            # After a hand-over the client stays a member, so that it misses no broadcast until the next run.
            if WebSocketState.DISCONNECTED not in (self.client_state, self.application_state):
                with anyio.move_on_after(LEAVE_SECONDS, shield=True), suppress(OSError):  # the client may be gone now
                    await self._connection.group_discard(group)

    async def receive(self) -> Any:
        """Receive an event, as `WebSocket.receive` does. At a hand-over the handler is cancelled."""
        message: Any = await super().receive()
        if message["type"] == "websocket.disconnect":
            await self._leave_if_handed_over()
        return message

    async def send(self, message: Any) -> None:
        """Send an event, as `WebSocket.send` does. At a hand-over the handler is cancelled."""
        try:
            await super().send(message)
        except WebSocketDisconnect:
            await self._leave_if_handed_over()
            raise

    async def _leave_if_handed_over(self) -> None:
        """Cancel the handler if another run continues with the client."""
        if self._connection is not None and self._connection.handed_over and self._task is not None:
            self._task.cancel()  # the task of the handler, which may wait for that of the caller
            await asyncio.get_running_loop().create_future()


class _LocalInbox:
    """The channel of a WebSocket on another server. While the WebSocket is in a group, a task writes its messages."""

    def __init__(self, socket: GroupSocket, layer: InMemoryChannelLayer, channel: str) -> None:
        self._socket = socket
        self.layer = layer
        self._presence = layer.presence_of(channel)
        self.channel = channel
        self._groups = 0
        self._shown: dict[str, float] = {}  # the groups that show the user, and since when
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, socket: GroupSocket) -> _LocalInbox:
        layer = local_layer()
        return cls(socket, layer, await layer.new_channel())

    @asynccontextmanager
    async def joined(
        self, group: str, identity: tuple[str, Any] | None, shown: Announcements | None, past: _LocalPast | None
    ) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if past is None:
                await self.layer.group_add(group, self.channel)
            else:  # a channel of its own, to tell the messages of this group from those of others
                own = await self.layer.new_channel()
                await self.layer.group_add(group, own)
                stack.push_async_callback(self.layer.group_discard, group, own)
                for writing in (past.write(), self._write(own, with_kept=False)):
                    stack.callback(asyncio.create_task(writing, name=f"messages of {group} for {own}").cancel)
            self._groups += 1
            if identity is not None and self._groups == 1:
                self.layer.follow(user_group(identity[0]), self.channel)
                self._show(user_group(identity[0]), (self.channel, identity[1]))
            if identity is not None and shown is not None:
                self._presence.announce(group, shown)
                self._show(group, identity)
            if self._task is None:
                writing = self._write(self.channel, with_kept=True)
                self._task = asyncio.create_task(writing, name=f"messages of groups for {self.channel}")
            try:
                yield
            finally:
                self._groups -= 1
                if identity is not None:
                    self._shown.pop(group, None)
                    self._presence.hide(group, identity[0])
                if not self._groups:
                    self._task.cancel()
                    self._task = None
                    if identity is not None:
                        self.layer.unfollow(user_group(identity[0]), self.channel)
                        self._presence.hide(user_group(identity[0]), self.channel)
                        self._shown.clear()
                await self.layer.group_discard(group, self.channel)

    def show_again(self, identity: tuple[str, Any]) -> None:
        """Show another info about the user."""
        for group in self._shown:
            self._show(group, (self.channel, identity[1]) if group == user_group(identity[0]) else identity)

    def _show(self, group: str, identity: tuple[str, Any]) -> None:
        present = Present(*identity, self._shown.setdefault(group, time.time()), 1)
        self._presence.show(group, present, join={EXCLUDE: self.channel})

    async def _write(self, channel: str, *, with_kept: bool) -> None:
        with suppress(*_GONE):
            while True:
                event = await self.layer.receive(channel)
                if event.get("type") == CLOSE_TYPE:
                    await self._socket.close(event["code"], event["reason"])
                elif event.pop(EXCLUDE, None) != self.channel and (event.pop(KEPT, None) is None or with_kept):
                    await self._socket.send(event)


class _LocalPast:
    """The kept messages of a group, for a WebSocket on another server that has joined with an offset."""

    def __init__(
        self, socket: GroupSocket, layer: InMemoryChannelLayer, group: str, after: str, reset: str | None
    ) -> None:
        self._socket = socket
        self._stream = layer.group_past(group)
        self._offset = str(client_offset(after))
        self._frames = read_template(pack_template({"kind": EVENTS, "reset": reset}))

    async def write(self) -> None:
        """Write the messages after the offset, and the further ones, to the socket."""
        with suppress(*_GONE):
            while True:
                try:
                    async for offset, message in self._stream.read(self._offset):
                        self._offset = offset
                        await self._socket.send(place_offset(message, parse_offset(offset)))
                except StreamReset as error:
                    self._offset = error.resume
                    reset = Delivery[Any]((), parse_offset(self._offset), (), None, "", parse_offset(self._offset))
                    for event in self._frames.events(self._stream.name, reset, []):
                        await self._socket.send_text(event[1])
