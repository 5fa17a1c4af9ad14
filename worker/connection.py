"""The API of the bus for apps: `asgibus.connection(scope)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, cast

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.codec import pack_message
from asgibus.layers.contract import Message
from asgibus.layers.names import require_group, require_stream, stream_group
from asgibus.layers.presence import Present, fill, pack_info, user_group
from asgibus.layers.streams import Stream
from asgibus.layers.streams.offsets import client_offset
from asgibus.layers.streams.past import group_past
from asgibus.protocol.checks import MAX_KEPT_EVENT_BYTES
from asgibus.protocol.connect_request import PRESENCE, STREAMS, reply_channel
from asgibus.protocol.events import (
    EXCLUDE,
    FOLLOW,
    GROUP_ADD,
    GROUP_DISCARD,
    IDENTIFY,
    PRESENT,
    SET_WILL,
    UNFOLLOW,
    WILL_SET,
    Event,
    encode,
)
from asgibus.protocol.stream_frames import EVENTS, Template, pack_template, websocket_template

# What the interface server keeps, in the texts of errors.
_MEMBERSHIPS: Final = "its memberships"
_FOLLOWED: Final = "what it follows"


class SessionApi(Protocol):
    """The session behind a `Connection`. Members without a docstring are those of `Connection`."""

    peer: str
    """The mailbox of the interface server."""
    number: int
    """The interface server's number of the connection."""
    is_http: bool
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

    def offers(self, feature: str) -> bool:
        """Return whether the interface server has a feature, such as STREAMS. Those of earlier releases may lack it."""

    @property
    def earlier_user(self) -> str | None:
        """The user whose connection this was when the run began."""

    @property
    def may_follow(self) -> bool:
        """Whether the client can get entries of streams."""

    async def change(self, name: str, event: Event, what: str, *, removes: bool = False) -> None:
        """Have the interface server change what it keeps for the client, and wait until it has done so."""

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

    __slots__ = ("_session", "_user")

    def __init__(self, session: SessionApi) -> None:
        self._session = session
        self._user: str | None = None  # None until someone asks for it or identifies the user

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

    async def group_add(
        self,
        group: str,
        *,
        present: bool = False,
        join: Message | None = None,
        leave: Message | None = None,
        after: str | None = None,
        reset: str | None = None,
    ) -> None:
        """Add this connection to a group.

        Once this returns, every `group_send` from any process reaches the connection. The membership ends with the
        connection.

        Args:
            group: 1 to 100 ASCII letters, digits, `.`, `-` and `_`.
            present: Whether the user of this connection is shown in the group: see `layer.present`. Call `identify`
                before.
            join: An ASGI event, such as `{"type": "websocket.send", "text": '{"joined": {user}}'}`, that the group gets
                when a user joins whom it did not have. `{user}`, `{info}`, `{count}` and `{at}` in its text become
                JSON: the id of the user, the info, the number of users in the group, and when the user has joined, in
                microseconds by the clock of the store.
            leave: Such an event, for a user whose last connection has left for longer than `--presence-grace`. The
                events that an interface server got last for a group count. Neither is sent above `--presence-events`
                users.
            after: The offset of the last kept message that the client has; `"0"` for all that are kept. The client gets
                those behind it, and then what comes, without a gap and without a duplicate. See `group_send`.
            reset: The text of a WebSocket message that the client gets in place of messages behind its offset that are
                not kept any more, or if its offset is none. Without `after` it has no effect.

        Raises:
            TypeError: The name is not valid, or an event holds a value that a message cannot hold.
            ValueError: An event or `reset` is not valid, an event is larger than 16 KiB, or the offset is no text.
            RuntimeError: `identify` was not called before, or the interface server is of an earlier release.
            OSError: The client is gone.
            LayerUnavailable: The store could not be reached in time.
        """
        require_group(group)
        templates = pack_announcements(join, leave, present=present, user=self.user)
        if after is not None:
            # It follows first: from then on it gets kept messages from there alone.
            template = pack_template({"kind": EVENTS, "reset": reset})
            await self._follow(group_past(group), str(client_offset(after)), template)
        if not present:
            await self._session.change(group, (GROUP_ADD, group), _MEMBERSHIPS)
            return
        await self._change_presence(group, (PRESENT, group, *templates))

    async def group_discard(self, group: str) -> None:
        """Remove this connection from a group; do nothing if it is not a member.

        Raises:
            TypeError: The name is not valid.
            OSError: The client is gone.
            LayerUnavailable: The store could not be reached in time.
        """
        require_group(group)
        await self._session.change(group, (GROUP_DISCARD, group), _MEMBERSHIPS, removes=True)

    # Users.

    @property
    def user(self) -> str | None:
        """The id of the user whose connection this is; None until `identify` was called, by this run or an earlier."""
        if self._user is None:
            self._user = self._session.earlier_user
        return self._user

    async def identify(self, user: str, info: Any = None) -> None:
        """Say whose connection this is, once. The interface server keeps that until the connection ends.

        From then on `layer.user_send`, `user_close` and `user_connections` of this user include the connection, and
        `group_add` can show the user to others. A further run of the app need not call this again, and may. Another
        call of the same user replaces the info, also where the user is shown.

        Args:
            user: The id of the user, of 1 to 200 characters.
            info: What others may know about the user, such as a name: JSON values, at most 16 KiB when packed, of at
                most 100 levels.

        Raises:
            TypeError: The id is no str, or the info is not of JSON values.
            ValueError: The id is empty or too long, or the info is too large.
            RuntimeError: This is the connection of another user, or the interface server is of an earlier release.
            OSError: The client is gone, or has too many connections: see `--max-connections-per-user`.
            LayerUnavailable: The store could not be reached in time; or this is an HTTP request, and the user has too
                many connections.
        """
        group = user_group(user)
        require_same_user(self.user, user)
        user = str(user)
        await self._change_presence(group, (IDENTIFY, user, pack_info(info)))
        self._user = user

    async def set_will(self, group: str, event: Message) -> None:
        """Leave an event that a group gets once, when this connection ends for whatever reason.

        It is also sent when the interface server dies. It is not sent when a worker dies or stops and another run of
        the app goes on with the client. A later call replaces the event.

        Args:
            group: The name of the group.
            event: An ASGI event for clients, as in `group_send`.

        Raises:
            TypeError: The name is not valid, or the event holds a value that a message cannot hold.
            ValueError: The event is not valid, or larger than 16 KiB.
            RuntimeError: The interface server is of an earlier release.
            OSError: The client is gone.
            LayerUnavailable: The store could not be reached in time.
        """
        await self._change_presence(WILL_SET, (SET_WILL, require_group(group), _pack_event(event)))

    async def clear_will(self) -> None:
        """Take the will back. Do nothing if there is none. Raises as `set_will`."""
        await self._change_presence(WILL_SET, (SET_WILL, "none", b""))

    async def _change_presence(self, name: str, event: Event) -> None:
        """Change the user, where the user is present, or the will.

        Args:
            name: The name in the reply.
            event: IDENTIFY, PRESENT or SET_WILL.
        """
        if not self._session.offers(PRESENCE):
            raise RuntimeError("this connection can have no user: its interface server is of an earlier release")
        await self._session.change(name, event, "its user")

    async def group_send(
        self,
        group: str,
        event: Message,
        *,
        exclude: str | None = None,
        keep: int | None = None,
        id: str | None = None,  # noqa: A002
        placeholder: str | None = None,
    ) -> bool:
        """Send an ASGI event, such as `{"type": "websocket.send", "text": "…"}`, to every member of a group.

        The event goes straight to the interface servers that hold the members' sockets. No app code runs there.

        Args:
            group: The name of the group.
            event: An ASGI event for clients: `websocket.send`, or `http.response.body` with `more_body`.
            exclude: The reply channel of a member that does not get the event, such as its sender.
            keep: How many events of the group are kept for clients that join with `after`; by default this one is not.
            id: An id of 1 to 200 characters: while an event with this id is kept, another one is not sent. So an app
                that repeats a call after a crash is heard once.
            placeholder: A text that occurs in `event["text"]`. It is replaced by the offset of the event where it
                occurs first, so that clients learn the offset.

        Returns:
            True if it was sent, and False if an event with that id was kept.

        Raises:
            ValueError: `keep`, `id` or `placeholder` is not valid, or `exclude` is given for an event that is kept.
            TypeError: The name is not valid, or the event holds a value that a message cannot hold.
            MessageTooLarge: The packed event is larger than 16 MiB.
            LayerUnavailable: The store could not be reached in time.
        """
        if exclude is not None:
            if keep is not None:
                raise ValueError("an event that is kept goes to all members: exclude is for others")
            event = {**event, EXCLUDE: exclude}
        if keep is None and id is None and placeholder is None:  # the layer may be one of another package
            await self._session.layer.group_send(group, event)
            return True
        return await self._session.layer.group_send(group, event, keep=keep, id=id, placeholder=placeholder)

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
            after: The offset of the last entry that the client has, as it got it; None or "" for the beginning. Any
                other text is answered with a reset, and all that is kept.
            template: What the client gets; by default JSON. See the page "Keep and follow a stream".

        Raises:
            TypeError: The name of the stream is not valid.
            ValueError: The template is not valid, or the offset is no text.
            RuntimeError: The client is not accepted yet, has no WebSocket, or its interface server is of an earlier
                release.
            OSError: The client is gone.
            LayerUnavailable: The store could not be reached in time, or the client follows as many streams as the
                interface server allows.
        """
        packed = pack_template(websocket_template(template))
        if self._session.is_http:
            raise RuntimeError("only WebSockets follow streams: answer a request with asgibus.stream_response")
        await self._follow(require_stream(stream), str(client_offset(after)), packed)

    async def unfollow(self, stream: str) -> None:
        """Have the client follow a stream no more; do nothing if it does not. Its offset is forgotten.

        Raises:
            TypeError: The name is not valid.
            OSError: The client is gone.
        """
        require_stream(stream)
        if self._session.offers(STREAMS):
            await self._session.change(stream_group(stream), (UNFOLLOW, stream), _FOLLOWED, removes=True)

    async def _follow(self, stream: str, after: str, template: bytes) -> None:
        """Have the client follow a stream, or the past of a group.

        Args:
            stream: The stream.
            after: The offset of the last entry that the client has.
            template: The packed template.
        """
        if not self._session.offers(STREAMS):
            raise RuntimeError("this client cannot follow streams: its interface server is of an earlier release")
        if not self._session.may_follow:
            raise RuntimeError("a client follows streams once it is accepted: send websocket.accept first")
        await self._session.change(stream_group(stream), (FOLLOW, stream, after, template), _FOLLOWED)


def require_same_user(user: str | None, other: str) -> None:
    """Raise RuntimeError if a connection has a user, and is to get another one."""
    if user not in (None, other):
        raise RuntimeError(f"this is the connection of {user!r}: a connection has one user")


def pack_announcements(
    join: Message | None, leave: Message | None, *, present: bool, user: str | None
) -> tuple[bytes, bytes]:
    """Check how a connection joins a group, and pack the events for joins and leaves.

    Args:
        join: The event for joins; None for none.
        leave: The event for leaves; None for none.
        present: Whether the user is shown in the group.
        user: The user of the connection; None for none.

    Raises:
        TypeError: An event holds a value that a message cannot hold.
        ValueError: An event is not valid, larger than 16 KiB, or given without `present`.
        RuntimeError: There is no user to be shown.
    """
    if not present and (join is not None or leave is not None):
        raise ValueError("the events join and leave need present=True")
    if present and user is None:
        raise RuntimeError("nobody is known to be present: call `identify` before")
    return _pack_event(join, is_template=True), _pack_event(leave, is_template=True)


def _pack_event(event: Message | None, *, is_template: bool = False) -> bytes:
    """Check an event that is kept at the interface server, and pack it.

    Args:
        event: The event; None for none.
        is_template: Whether it has placeholders.

    Raises:
        TypeError: The event holds a value that a message cannot hold.
        ValueError: The event is not valid, or larger than 16 KiB.
    """
    if event is None:
        return b""
    packed = pack_message(event)
    if len(packed) > MAX_KEPT_EVENT_BYTES:
        raise ValueError(f"an event that is kept has at most {MAX_KEPT_EVENT_BYTES} bytes, not {len(packed)}")
    encode(fill(event, Present("", None, 0.0, 0), 0, 0) if is_template else event)
    return packed


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
