"""The offer of a connection: an interface server puts it on a shared channel, and a worker builds the scope from it."""

from __future__ import annotations

from types import NoneType
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from msgspec import MsgspecError
from msgspec.msgpack import Decoder

from asgibus.layers.codec import unpack
from asgibus.layers.versions import CONNECT_REQUEST
from asgibus.protocol.events import Event

REQUEST_VERSION: Final = CONNECT_REQUEST.written  # first item of every request

HTTP: Final = "http"
WEBSOCKET: Final = "websocket"

_PERCENT: Final = ord(b"%")  # as an integer, since `in` looks for those ten times as fast as for bytes

Address = tuple[str, int | None]
Headers = tuple[tuple[bytes, bytes], ...]


class RequestHead:
    """The head of a request or a handshake, as far as a worker gets it. The parser of requests has a subclass."""

    __slots__ = (
        "client",
        "expects_continue",
        "extensions",
        "headers",
        "http_version",
        "kind",
        "method",
        "query_string",
        "raw_path",
        "scheme",
        "server",
        "subprotocols",
    )

    kind: str
    http_version: str
    method: str
    scheme: str
    raw_path: bytes
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    client: Address | None
    server: Address | None
    subprotocols: tuple[str, ...]
    extensions: dict[str, Any]
    expects_continue: bool


class ConnectRequest(NamedTuple):
    """A connection, as the interface server offers it. It is packed as a plain tuple in this order.

    Optional data for workers is a dict in `extensions["asgibus"]`: workers of every release put their own object there
    before the app sees the scope. A later release may also add fields at the end, which this one ignores.
    """

    version: int
    interface: str
    """The mailbox of the interface server. With the number of the connection it is the reply channel."""
    connection: int
    attempt: int
    """The number of the run of the app, from 1."""
    resumed: bool
    """Whether an earlier run has accepted the client."""
    handled: int
    """The number of the client's events that earlier runs have handled."""
    window: int
    """The bytes that may be unacknowledged in each direction."""
    kind: str
    http_version: str = ""
    method: str = ""
    scheme: str = ""
    raw_path: bytes = b""
    query_string: bytes = b""
    root_path: str = ""
    headers: Headers = ()
    client: Address | None = None
    server: Address | None = None
    subprotocols: tuple[str, ...] = ()
    extensions: dict[str, Any] = {}  # noqa: RUF012 -- it is only packed, never changed
    expects_continue: bool = False
    events: tuple[Event, ...] = ()
    """The first events, numbered from 0: for HTTP a first part of the body, for a further run the unhandled events."""
    state: bytes = b""
    """The state that the app saved in an earlier run, packed."""
    scope: dict[str, Any] | None = None
    """The scope of a connection other than HTTP and WebSocket. The fields that only these two have are then empty."""


_PAIRS: Any = tuple[tuple[bytes, bytes], ...]
_ADDRESS: Any = tuple[str, int | None] | None
# Not the annotations of ConnectRequest, of which compiled code keeps less. A scope is left to `checks.read_request`.
FIELD_TYPES: Final[tuple[Any, ...]] = (
    *(int, str, int, int, bool, int, int, str),  # to `kind`
    *(str, str, str, bytes, bytes, str),  # to `root_path`
    *(_PAIRS, _ADDRESS, _ADDRESS, tuple[str, ...], dict[str, Any], bool),  # to `expects_continue`
    *(tuple[tuple[Any, ...], ...], bytes, NoneType),
)
_decode: Final = Decoder(tuple[FIELD_TYPES]).decode  # type: ignore[valid-type]


def unpack_request(packed: bytes) -> Any:
    """Unpack the entry of a shared channel.

    Returns:
        A ConnectRequest whose fields have the right types, or else whatever was packed: see `checks.read_request`.

    Raises:
        ValueError: The data is damaged.
    """
    try:
        return tuple.__new__(ConnectRequest, _decode(packed))
    except (MsgspecError, RecursionError):
        return unpack(packed)


TAKEN_OVER: Final = "taken_over"
"""The member of `extensions["asgibus"]` with which an interface server says that the last worker has died."""
EVENT_STREAMS: Final = "event_streams"
"""The member of `extensions["asgibus"]` with which an interface server says that it can continue an event stream."""

STREAMS: Final = "streams"
"""The member of `extensions["asgibus"]` with which an interface server says that its connections can follow streams."""
PRESENCE: Final = "presence"
"""The member of `extensions["asgibus"]` with which an interface server says that it knows users, presence and wills."""
USER: Final = "user"
"""The member of `extensions["asgibus"]` with the id of the user, for a further run of an identified connection."""


def reply_channel(interface: str, connection: int) -> str:
    """Return the name of the channel on which a connection receives plain ASGI events from any process."""
    return f"{interface}{connection}"


def mark_taken_over(extensions: dict[str, Any], taken_over: bool) -> dict[str, Any]:
    """Return the extensions of a request for a further run.

    Args:
        extensions: Those of the last run.
        taken_over: Whether its worker has died, and its client was accepted.
    """
    own = extensions.get("asgibus", {})
    if taken_over == (TAKEN_OVER in own):
        return extensions
    own = {**own, TAKEN_OVER: True} if taken_over else {name: own[name] for name in own if name != TAKEN_OVER}
    return {**extensions, "asgibus": own}


def mark_user(extensions: dict[str, Any], user: str) -> dict[str, Any]:
    """Return the extensions of a request for a further run of a user's connection."""
    return {**extensions, "asgibus": {**extensions.get("asgibus", {}), USER: user}}


def is_taken_over(request: ConnectRequest) -> bool:
    """Return whether the worker of an accepted client has died, so that workers pace the further run."""
    own: Any = request.extensions.get("asgibus")
    return isinstance(own, dict) and own.get(TAKEN_OVER) is True


def build_scope(request: ConnectRequest) -> dict[str, Any]:
    """Return the ASGI scope of a connection: "HTTP Connection Scope" or "WebSocket Connection Scope", version 2.5.

    The scope of HTTP says version 2.3, as other servers do. From 2.4 on, Starlette relies on `send` to raise, and would
    never learn that the client of an idle stream is gone.

    The scope of any other protocol comes from its terminator. `state` and `extensions["asgibus"]` are added by the
    worker.
    """
    if request.scope is not None:
        own = {"type": request.kind, "asgi": {"version": "3.0"}}
        return {**request.scope, **own, "extensions": dict(request.scope.get("extensions", {}))}
    raw_path = request.raw_path
    path = (unquote_to_bytes(raw_path) if _PERCENT in raw_path else raw_path).decode("utf-8", "replace")
    scope: dict[str, Any] = {
        "type": request.kind,
        "asgi": {"version": "3.0", "spec_version": "2.3" if request.kind == HTTP else "2.5"},
        "http_version": request.http_version,
        "scheme": request.scheme,
        "path": request.root_path + path,
        "raw_path": request.root_path.encode() + raw_path if request.root_path else raw_path,
        "query_string": request.query_string,
        "root_path": request.root_path,
        "headers": list(request.headers),
        "client": request.client,
        "server": request.server,
        "extensions": dict(request.extensions),
    }
    if request.kind == HTTP:
        scope["method"] = request.method
    else:
        scope["subprotocols"] = list(request.subprotocols)
    return scope
