"""The move of an interface server to its successor: what passes between the two processes, and in which order.

The process that serves, and its successor, are connected by a socket. The messages, in their order:

| message | from | meaning |
|---|---|---|
| `OFFER` | the old process | it is going to move, in this version |
| `PREPARED` | the successor | it has started, and can read that version |
| `AHEAD` | the old process, which still serves | its open sockets, of which transports can be made already |
| `SOCKETS` | the old process | it has stopped: states of its open sockets, with descriptors of those that are new |
| `STATE` | the old process | its identity, its listening socket, and the connections that have lost their clients |
| `END` | the old process | there are no more |
| `READY` | the successor | it could go on |
| `GO` | the old process | go on |
| `TAKEN` | the successor | it goes on |

`REFUSED`, with a reason, may come from the successor instead. Until `TAKEN` the old process can go on itself, because
the successor neither reads a socket nor writes to the bus before. Afterwards the old process lets go.
"""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, Protocol

import anyio

from asgibus.interface_server.connections.registry import ConnectionRegistry
from asgibus.interface_server.read_scheduler import InputBuffer
from asgibus.interface_server.terminator import Holder, Host, Listener
from asgibus.layers.codec import pack, unpack

VERSION = 1
"""To be increased with a change that a process of the last version would misread. New members of dicts are none."""

OFFER, PREPARED, AHEAD, SOCKETS, STATE = "offer", "prepared", "ahead", "sockets", "state"
END, READY, GO, TAKEN, REFUSED = "end", "ready", "go", "taken", "refused"

DESCRIPTORS = 200  # of sockets in one message: Linux takes 253 at most
READ_BYTES = 1024 * 1024
LARGE = 16 * 1024  # bytes; a longer body passes in a file: with the buffer of a socket, two processes would take turns
LARGEST = 1024 * 1024 * 1024  # bytes of a message; a longer one is no message
_LENGTH = struct.Struct("!I")
_CLOSE_ON_EXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # macOS has none


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect no garbage in this context: thousands of states would be searched again and again, in vain."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class MoveError(Exception):
    """The move has failed; the text says why. The old process goes on."""


class Movable(Holder, Protocol):
    """A holder whose socket can move to another process."""

    input: InputBuffer

    @property
    def stays(self) -> bool:
        """Whether the socket is about to be closed, and needs the bus no more."""

    @property
    def may_move(self) -> bool:
        """Whether the state can be exported now: nothing has arrived in part, and all is written."""

    def hold_back(self) -> bool:
        """If something is to be written, have the app send nothing more until `go_on`. Return whether that is new."""

    def export(self) -> dict[str, Any]:
        """Return the state, of types that msgpack knows. To be called if `may_move`, and the socket is held."""

    def moved(self) -> None:
        """Let the socket go without a word to the client or the app: another process has it."""

    def go_on(self) -> None:
        """Read the socket and write to it again, in the process that has it now."""

    def refuse_move(self) -> None:
        """Close the socket, because its state cannot be exported."""


class MovableListener(Listener, Protocol):
    """A listener of another protocol whose socket can move to another process, with all of its clients."""

    @property
    def descriptor(self) -> int:
        """The file descriptor of the socket."""

    def hold(self) -> None:
        """Stop reading the socket until `go_on`."""

    def export(self, connections: ConnectionRegistry, /) -> dict[str, Any]:
        """Return the state, of types that msgpack knows: the kind, and for each peer its connection."""

    def restore(
        self, host: Host, listening: socket.socket, state: Mapping[str, Any], connections: ConnectionRegistry, /
    ) -> None:
        """Take socket and clients over from another process, instead of `start`."""

    def moved(self) -> None:
        """Let the socket go without a word: another process has it."""

    def go_on(self) -> None:
        """Read the socket, in the process that has it now."""


class Message(NamedTuple):
    """A message of the move."""

    kind: str
    body: Mapping[str, Any]
    descriptors: Sequence[int] = ()


def encode(kind: str, body: bytes | None, descriptors: int) -> bytes:
    """Return a message as bytes.

    Args:
        kind: The kind.
        body: The packed content; None if it is in the file that is the last descriptor.
        descriptors: How many file descriptors are sent with the first byte.
    """
    packed = pack((kind, descriptors, body))
    return _LENGTH.pack(len(packed)) + packed


class Decoder:
    """Reads messages from bytes and descriptors, as they arrive."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._descriptors: deque[int] = deque()

    def feed(self, data: bytes, descriptors: Sequence[int]) -> None:
        """Add what has arrived."""
        self._data += data
        self._descriptors.extend(descriptors)

    def next(self) -> Message | None:
        """Return the next message; None until it is complete.

        Raises:
            MoveError: The bytes are not a message.
        """
        data = self._data
        if len(data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        if length > LARGEST:
            raise MoveError("the other process sends something else than messages")
        if len(data) < end:
            return None
        try:
            kind, count, packed = unpack(bytes(data[_LENGTH.size : end]))
            del data[:end]
            if not isinstance(count, int) or count > len(self._descriptors):
                raise MoveError("a message of the other process lacks its sockets")
            descriptors = [self._descriptors.popleft() for _ in range(count)]
            body = unpack(_read_file(descriptors.pop()) if packed is None else packed)
        except (ValueError, TypeError, LookupError, OSError) as error:
            raise MoveError(f"a message of the other process cannot be read: {error}") from error
        if not isinstance(body, dict):
            raise MoveError("a message of the other process has no content")
        return Message(str(kind), body, descriptors)


@contextmanager
def _file_of(data: bytes) -> Iterator[IO[bytes]]:
    """Provide a file without a name, in memory if possible, that is read from its beginning."""
    in_memory = hasattr(os, "memfd_create")
    with os.fdopen(os.memfd_create("asgibus"), "w+b") if in_memory else TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file


def _read_file(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


class MoveChannel:
    """One end of the connection between a process and its successor."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._decoder = Decoder()

    def close(self) -> None:
        """Close this end, by which the other process learns that this one has given up, or has finished."""
        self._end.close()

    async def send(self, kind: str, body: Mapping[str, Any] | None = None, descriptors: Sequence[int] = ()) -> None:
        """Send a message.

        Args:
            kind: The kind.
            body: The content; none by default.
            descriptors: File descriptors to send along, at most `DESCRIPTORS`.

        Raises:
            MoveError: The other process has ended, or the system refuses to pass the descriptors.
        """
        packed = pack(body or {})
        if len(packed) <= LARGE:
            await self._send(encode(kind, packed, len(descriptors)), descriptors)
            return
        with _file_of(packed) as file:
            await self._send(encode(kind, None, len(descriptors) + 1), [*descriptors, file.fileno()])

    async def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        rest = memoryview(data)
        first = list(descriptors)
        while rest:
            try:
                sent = socket.send_fds(self._end, [rest], first) if first else self._end.send(rest)
            except BlockingIOError:
                await anyio.wait_writable(self._end)
            except ConnectionError:
                raise MoveError("the other process has ended") from None
            except OSError as error:
                raise MoveError(f"sockets cannot be passed on: {error.strerror or error}") from error
            else:
                first = []
                rest = rest[sent:]

    async def receive(self, kind: str) -> Message:
        """Wait for the next message, which has to be of this kind.

        Raises:
            MoveError: The other process has ended, has refused, or has sent something else.
        """
        message = await self.receive_any()
        if message.kind == REFUSED:
            raise MoveError(str(message.body.get("reason", "the other process has refused")))
        if message.kind != kind:
            raise MoveError(f"the other process sent {message.kind!r} in the place of {kind!r}")
        return message

    async def receive_any(self) -> Message:
        """Wait for the next message. Raises MoveError if there is none, or it cannot be read."""
        while (message := self._decoder.next()) is None:
            try:
                data, descriptors, flags, _ = socket.recv_fds(self._end, READ_BYTES, DESCRIPTORS + 1, _CLOSE_ON_EXEC)
            except BlockingIOError:
                await anyio.wait_readable(self._end)
                continue
            except ConnectionError:  # it has ended without reading the last message
                raise MoveError("the other process has ended") from None
            if flags & socket.MSG_CTRUNC:
                raise MoveError("this process may not open so many sockets: raise its limit of open files")
            if not data:
                raise MoveError("the other process has ended")
            self._decoder.feed(data, descriptors)
        return message
