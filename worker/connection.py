"""The API of the bus for apps: `asgibus.connection(scope)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from asgibus.layers.contract import ChannelLayer, Message
from asgibus.layers.names import require_group, require_stream
from asgibus.layers.streams import Stream, parse_offset
from asgibus.protocol.connect_request import reply_channel
from asgibus.protocol.events import EXCLUDE, GROUP_ADD, GROUP_DISCARD
from asgibus.protocol.stream_frames import Template, pack_template, websocket_template


class SessionApi(Protocol):
    """The session behind a `Connection`. Members without a docstring are those of `Connection`."""

    peer: str
    """The mailbox of the interface server."""
    number: int
    """The interface server's number of the connection."""
    resumed: bool
    received: int

    @property
    def attempt(self) -> int: ...

    @property
    def handed_over(self) -> bool: ...

    @property
    def draining(self) -> bool: ...

    @property
    def layer(self) -> ChannelLayer: ...

    @property
    def state(self) -> dict[str, Any]: ...

    async def save_state(self) -> None: ...

    def announce(self) -> None:
        """Name this worker as the owner of the connection, unless an event has done so already."""

    async def change_group(self, code: int, group: str) -> None:
        """Add the connection to a group (GROUP_ADD) or remove it, and wait until that is done."""

    async def follow(self, stream: str, after: str, template: bytes) -> None:
        """Have the client follow a stream, and wait until no entry can be missed."""

    async def unfollow(self, stream: str) -> None:
        """Have the client follow a stream no more."""

    @property
    def may_detach(self) -> bool:
        """Whether the interface server can go on with the response."""

    def detach(self, stream: str, after: str, template: bytes) -> None:
        """End this run, and have the interface server send the entries of a stream as the rest of the response."""


class Connection:
    """The connection that the app serves: its groups, its reply channel and its state.

    `asgibus.connection(scope)` returns it. A copy of the scope refers to the same connection. The connection of a
    pickled scope raises RuntimeError when it is used.
    """

    __slots__ = ("_session",)

    def __init__(self, session: SessionApi) -> None:
        self._session = session

    def __copy__(self) -> Connection:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Connection:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, ()

    @property
    def reply_channel(self) -> str:
        """The channel name of this connection.

        An ASGI event that any process sends to this channel goes to this client.
        """
        self._session.announce()  # a process that gets the name from the app can then send to it
        return reply_channel(self._session.peer, self._session.number)

    @property
    def layer(self) -> ChannelLayer:
        """The channel layer of the worker, for `await connection.layer.send(channel, event)` and so on."""
        return self._session.layer

    @property
    def attempt(self) -> int:
        """The number of this run of the app for this connection, from 1."""
        return self._session.attempt

    @property
    def resumed(self) -> bool:
        """Whether an earlier run has accepted this client, or has begun this event stream.

        If so, this run continues, and its `websocket.accept` or `http.response.start` sends nothing to the client.
        """
        return self._session.resumed

    @property
    def received(self) -> int:
        """The number, from 1, of the client's event that `receive` returned last; 0 before the first one.

        The count continues over all runs of the app. An event that is delivered again, because the worker died before
        the app had handled it, has the same number in the next run.
        """
        return self._session.received

    @property
    def handed_over(self) -> bool:
        """Whether this run ends because another run continues with the client.

        It turns true with the `websocket.disconnect` event (code 1012), or the `http.disconnect` of an event stream,
        that announces the hand-over, or with the cancellation of the app where that is silent: the worker stops, or its
        lease expired and another worker has taken the connection over. An interface server that stops uses the same
        code, but then the client is gone and this is false.
        """
        return self._session.handed_over

    @property
    def draining(self) -> bool:
        """Whether the worker stops, so that this run is to end soon.

        It turns true before any run is ended. A response that lasts, such as an event stream, may end itself then.
        """
        return self._session.draining

    @property
    def state(self) -> dict[str, Any]:
        """Values that the app stores with the connection, at most 16 KiB when packed.

        `save_state` stores them at the interface server, and so does a hand-over. The next run of the app finds them
        here.
        """
        return self._session.state

    async def save_state(self) -> None:
        """Store `state` at the interface server, where it outlives this worker.

        Raises:
            TypeError: The state holds a value that a message cannot hold.
            MessageTooLarge: The packed state is larger than 16 KiB.
            OSError: The client is gone.
        """
        await self._session.save_state()

    async def group_add(self, group: str) -> None:
        """Add this connection to a group.

        Once this returns, every `group_send` from any process reaches the connection. The membership ends with the
        connection.

        Args:
            group: 1 to 100 ASCII letters, digits, `.`, `-` and `_`.

        Raises:
            TypeError: The name is not valid.
            OSError: The client is gone.
            LayerUnavailable: The store could not be reached in time.
        """
        await self._session.change_group(GROUP_ADD, require_group(group))

    async def group_discard(self, group: str) -> None:
        """Remove this connection from a group; do nothing if it is not a member.

        Raises:
            TypeError: The name is not valid.
            OSError: The client is gone.
            LayerUnavailable: The store could not be reached in time.
        """
        await self._session.change_group(GROUP_DISCARD, require_group(group))

    async def group_send(self, group: str, event: Message, *, exclude: str | None = None) -> None:
        """Send an ASGI event, such as `{"type": "websocket.send", "text": "…"}`, to every member of a group.

        The event goes straight to the interface servers that hold the members' sockets. No app code runs there.

        Args:
            group: The name of the group.
            event: An ASGI event for clients: `websocket.send`, or `http.response.body` with `more_body`.
            exclude: The reply channel of a member that does not get the event, such as its sender.

        Raises:
            TypeError: The name is not valid, or the event holds a value that a message cannot hold.
            MessageTooLarge: The packed event is larger than 16 MiB.
            LayerUnavailable: The store could not be reached in time.
        """
        if exclude is not None:
            event = {**event, EXCLUDE: exclude}
        await self._session.layer.group_send(group, event)

    # Streams.

    def stream(self, name: str) -> Stream:
        """Return the stream of that name: `connection.layer.stream(name)`.

        Raises:
            TypeError: The name is not valid.
        """
        return self._session.layer.stream(name)

    async def follow(self, stream: str, after: str | None = None, template: Template | None = None) -> None:
        """Have the client of a WebSocket follow a stream: it gets the entries that are kept, and all that come.

        The interface server reads and writes them. No code of the app runs for an entry, so the client goes on to get
        them while workers are replaced. Once this returns, no entry can be missed. A client that follows the stream
        already, because an earlier run of the app has called this, goes on where it is: nothing is sent twice.

        Args:
            stream: The name of the stream.
            after: The offset of the last entry that the client has, as it got it; None for the beginning.
            template: What the client gets; by default JSON. See the page "Keep and follow a stream".

        Raises:
            TypeError: The name of the stream is not valid.
            ValueError: The offset or the template is not valid.
            RuntimeError: The client is not accepted yet, or its interface server is of an earlier release.
            OSError: The client is gone.
            LayerUnavailable: The store could not be reached in time, or the client follows as many streams as the
                interface server allows.
        """
        packed = pack_template(websocket_template(template))
        await self._session.follow(require_stream(stream), str(parse_offset(after)), packed)

    async def unfollow(self, stream: str) -> None:
        """Have the client follow a stream no more; do nothing if it does not. Its offset is forgotten.

        Raises:
            TypeError: The name is not valid.
            OSError: The client is gone.
        """
        await self._session.unfollow(require_stream(stream))


class _NoSession:
    """Replace the session of a connection whose scope was pickled."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("this scope was pickled: only the run of the app that serves a connection can use it")


def _unpickled() -> Connection:
    return Connection(cast(SessionApi, _NoSession()))


class Extension(dict[str, Any]):
    """The value of `scope["extensions"]["asgibus"]`: plain values and the connection."""

    __slots__ = ("_connection", "_session")

    def __init__(self, session: SessionApi, attempt: int, resumed: bool) -> None:
        self["attempt"] = attempt
        self["resumed"] = resumed
        self._session = session
        self._connection: Connection | None = None  # until the app asks for it

    @property
    def session(self) -> SessionApi:
        """The session behind the connection."""
        return self._session

    @property
    def connection(self) -> Connection:
        """The connection: the same object each time."""
        if self._connection is None:
            self._connection = Connection(self._session)
        return self._connection

    def __copy__(self) -> Extension:
        copied = Extension(self._session, self["attempt"], self["resumed"])
        copied._connection = self.connection
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Extension:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled_extension, (self["attempt"], self["resumed"])


def _unpickled_extension(attempt: int, resumed: bool) -> Extension:
    return Extension(cast(SessionApi, _NoSession()), attempt, resumed)


def connection(scope: Mapping[str, Any]) -> Connection:
    """Return the connection on the bus that an ASGI scope belongs to.

    Args:
        scope: The scope of an HTTP request, a WebSocket or another connection, as the app got it, or a copy.

    Returns:
        The connection, for groups, the reply channel and the state.

    Raises:
        RuntimeError: The scope has no connection: another server runs the app, or the scope is that of a lifespan or of
            background work. The text says which.
    """
    extension = (scope.get("extensions") or {}).get("asgibus")
    if extension is None:
        raise RuntimeError(
            f"this {scope.get('type', 'unknown')} scope did not come over asgibus: "
            "run the app with asgi-interface APP, or with asgi-interface and asgi-worker APP"
        )
    if not isinstance(extension, Extension):
        raise RuntimeError(
            f"there is no connection behind a {scope.get('type')} scope; "
            'its channel layer is scope["extensions"]["asgibus"]["layer"]'
        )
    return extension.connection
