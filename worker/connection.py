"""What an app sees of the bus: `asgibus.connection(scope)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from asgibus.layers.contract import ChannelLayer, Message
from asgibus.layers.names import require_group
from asgibus.protocol.events import GROUP_ADD, GROUP_DISCARD
from asgibus.protocol.opening import reply_channel

if TYPE_CHECKING:
    from asgibus.worker.session import Session


class Connection:
    """The connection that the app is serving, and the channel layer behind it.

    A copy of a scope has the same connection. A pickled scope has one that raises RuntimeError when it is used.
    """

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def __copy__(self) -> Connection:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Connection:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, ()

    @property
    def reply_channel(self) -> str:
        """The channel of this connection: plain ASGI events sent to it, by anyone, go to this client."""
        self._session.announce()  # who gets the name from us must find the connection joined
        return reply_channel(self._session.interface, self._session.number)

    @property
    def layer(self) -> ChannelLayer:
        """The channel layer: `await connection.layer.send(channel, event)`, `group_send`, …"""
        return self._session.layer

    @property
    def attempt(self) -> int:
        """Which run of the app for this connection this is, from 1."""
        return self._session.attempt

    @property
    def resumed(self) -> bool:
        """Whether an earlier run has accepted this client: this one goes on with it, and `accept` sends nothing."""
        return self._session.resumed

    @property
    def received(self) -> int:
        """The number, from 1, of the client's event that `receive` returned last; 0 before the first one.

        All runs of the app count on: an event that is given to the next run again, because its worker died before the
        app was done with it, has the same number there.
        """
        return self._session.received

    @property
    def handed_over(self) -> bool:
        """Whether this run ends because another run goes on with the client.

        True from the `websocket.disconnect` that says so on: the worker stops, or it was silent for so long that
        another one has taken the connection over. An interface server that stops gives the same code, 1012, but its
        clients are gone.
        """
        return self._session.handed_over

    @property
    def state(self) -> dict[str, Any]:
        """What the app keeps with the connection: changed here, kept at the interface server by `save_state`.

        It is saved by itself when the worker hands the connection over.
        """
        return self._session.state

    async def save_state(self) -> None:
        """Keep `state` at the interface server, where it outlives this worker.

        Raises TypeError for values that a message cannot hold, MessageTooLarge over 16 KiB, OSError when the client is
        gone.
        """
        await self._session.save_state()

    async def group_add(self, group: str) -> None:
        """Make this connection a member of a group.

        From the return on, every `group_send` from anywhere reaches it. Membership ends with the connection.
        Raises TypeError for a bad name, OSError when the client is gone, LayerUnavailable.
        """
        await self._session.change_group(GROUP_ADD, require_group(group))

    async def group_discard(self, group: str) -> None:
        """Take this connection out of a group, if it is a member. Raises as `group_add`."""
        await self._session.change_group(GROUP_DISCARD, require_group(group))

    async def group_send(self, group: str, event: Message) -> None:
        """Send a plain ASGI event, such as `{"type": "websocket.send", "text": "…"}`, to every member of a group.

        It goes straight to the interface servers: no app code runs for the members. Raises TypeError,
        MessageTooLarge, LayerUnavailable.
        """
        await self._session.layer.group_send(group, event)


class _NoSession:
    """Stands for the session of a connection whose scope was pickled."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("this scope was pickled: only the run of the app that serves a connection can use it")


def _unpickled() -> Connection:
    return Connection(cast("Session", _NoSession()))


class Extension(dict[str, Any]):
    """The value of `scope["extensions"]["asgibus"]`: plain values, and the connection beside them."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection, attempt: int, resumed: bool) -> None:
        super().__init__(attempt=attempt, resumed=resumed)
        self.connection = connection

    def __copy__(self) -> Extension:
        return Extension(self.connection, self["attempt"], self["resumed"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Extension:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        return Extension, (self.connection, self["attempt"], self["resumed"])


def connection(scope: Mapping[str, Any]) -> Connection:
    """Return the bus connection behind an ASGI scope.

    Raises:
        RuntimeError: there is none; the text says why.
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
