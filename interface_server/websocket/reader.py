"""The messages of a client, made of the frames of its WebSocket. No IO."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import SERVER
from websockets.protocol import Protocol as Parser

from asgibus.interface_server.websocket import debug_log
from asgibus.interface_server.websocket.compression import CompressedFrame, CompressionMarks, Inflation
from asgibus.interface_server.websocket.frames import frame_size

SLICE: Final = 4 * 1024  # bytes that are parsed at once: some hundred of the smallest frames
LARGEST_HEADER: Final = 14  # bytes of the header of a client's frame: RFC 6455 section 5.2

# Members of enums are looked up on their class in 50 ns: once here, instead of for every frame.
_CONT, _TEXT = Opcode.CONT, Opcode.TEXT

NOTHING_READ: dict[str, Any] = {
    "frames": [],
    "message_size": None,
    "in_compressed": False,
    "fragments": None,
    "text": False,
    "reading_bits": 0,
}
"""The result of `MessageReader.export` before the first byte."""


class InvalidMessage(Exception):
    """A message of the client is not valid, so the WebSocket is to be closed."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class MessageReader:
    """Parse the frames of an open WebSocket, and return its messages one after another.

    Args:
        largest: The size of the largest message, in bytes.
        bits: The window of compressed messages, as a power of two; 0 if messages are not compressed.
    """

    __slots__ = (
        "_bits",
        "_inflation",
        "_largest",
        "_partial_head",
        "_text",
        "decoded_here",
        "fragments",
        "frames",
        "parser",
        "unframed",
    )

    def __init__(self, largest: int, bits: int) -> None:
        self.parser = Parser(SERVER, max_size=largest, logger=debug_log.logger)
        """The protocol of websockets, which also makes the control frames for the client."""
        if bits:
            self.parser.extensions = [CompressionMarks()]
        self._largest = largest
        self._bits = bits
        self.decoded_here = -1 if self.parser.debug else min(SLICE, largest)
        """The largest message that may be decoded without the parser; -1 while the parser logs each frame."""
        self.frames: deque[Any] = deque()
        """Frames that are parsed, and wait for the app or for their decompression."""
        self.unframed = 0
        """Bytes that the parser got behind its last whole frame; at most too many, never too few."""
        self._partial_head = b""  # the first of these bytes, as far as they may be a header
        self.fragments: bytearray | None = None  # no list: a client may send empty fragments without end
        """The message whose frames arrive; None between two messages."""
        self._text = False  # whether that message is text
        self._inflation: Inflation | None = None  # of that message, if it is compressed

    def feed(self, data: bytes) -> None:
        """Parse bytes of the client. To be called when there are no `frames`.

        Args:
            data: At most `SLICE` bytes.
        """
        self.parser.receive_data(data)
        self.unframed += len(data)
        self.frames.extend(self.parser.events_received())
        # For another process, note the beginning of a frame whose rest has not arrived: the parser keeps no header.
        rest = self.unframed - self._framed()
        head = data[len(data) - rest :] if rest <= len(data) else self._partial_head + data
        self._partial_head = head[:LARGEST_HEADER]

    def next_message(self) -> str | bytes | None:
        """Return the next message; None if it is not whole, or the rest is to be decompressed in the next slice.

        Raises:
            InvalidMessage: The message cannot be decompressed, is too large, or is text that is not UTF-8.
        """
        frames = self.frames
        while frames:
            frame = frames[0]
            data: bytes | None = None
            if frame.opcode > 2:
                pass  # a control frame, which the parser has handled
            elif isinstance(frame, CompressedFrame):
                if not self._decompress(frame):
                    return None
                if frame.fin:
                    data = self._join()
            elif frame.opcode is _CONT:
                assert self.fragments is not None  # the parser rejects a continuation without a first frame
                self.fragments += frame.data
                if frame.fin:
                    data = self._join()
            else:
                self._text = frame.opcode is _TEXT
                if frame.fin:
                    data = bytes(frame.data)
                else:
                    self.fragments = bytearray(frame.data)
            frames.popleft()
            self.unframed -= frame_size(len(frame.data))
            if data is not None:
                return self._decode(data) if self._text else data
        return None

    def discard(self) -> None:
        """Forget all frames, since no message is needed any more."""
        self.frames.clear()
        self.fragments = self._inflation = None

    def _join(self) -> bytes:
        data = bytes(self.fragments or b"")
        self.fragments = None
        return data

    def _decode(self, data: bytes) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            raise InvalidMessage(CloseCode.INVALID_DATA, "not UTF-8") from None

    def _decompress(self, frame: CompressedFrame) -> bool:
        """Decompress a piece of a frame. Return whether that was the last one."""
        if self._inflation is None:
            self._inflation = Inflation(self._bits)
            self.fragments, self._text = bytearray(), frame.opcode is _TEXT
        inflation, fragments = self._inflation, self.fragments
        assert fragments is not None
        if inflation.done:
            inflation.add(frame)
        try:
            fragments += inflation.piece()
        except zlib.error:
            raise InvalidMessage(CloseCode.PROTOCOL_ERROR, "decompression failed") from None
        if len(fragments) > self._largest:
            raise InvalidMessage(CloseCode.MESSAGE_TOO_BIG, "the message is too large")
        if inflation.done and frame.fin:
            self._inflation = None
        return inflation.done

    # The move to another process.

    @property
    def may_move(self) -> bool:
        """Whether the state can be exported.

        There is no export while a compressed message has arrived in part, nor if the client has sent a length in more
        bytes than necessary, against RFC 6455 section 5.2: then `unparsed` differs from what the client has sent.
        """
        if self._inflation is not None:
            return False
        header = self._header_bytes()
        if header == 0:
            return True
        if not 0 < header <= len(self._partial_head):
            return False
        trial = Parser(SERVER, max_size=None, logger=debug_log.logger)
        trial.receive_data(self.unparsed)
        return not trial.events and trial.parser_exc is None and trial.reader.buffer == self.parser.reader.buffer

    @property
    def unparsed(self) -> bytes:
        """The bytes of a frame that the parser has in part."""
        return self._partial_head[: self._header_bytes()] + bytes(self.parser.reader.buffer)

    def export(self) -> dict[str, Any]:
        """Return the state, of types that msgpack knows, without `unparsed`."""
        return {
            "frames": [_export_frame(each) for each in self.frames],
            "message_size": self.parser.current_size,
            "in_compressed": any(_in_message(each) for each in self.parser.extensions),
            "fragments": None if self.fragments is None else bytes(self.fragments),
            "text": self._text,
            "reading_bits": self._bits,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where the reader of another process has stopped.

        Args:
            state: The result of `export` there. The constructor got `reading_bits`.
        """
        self.parser.current_size = state["message_size"]
        for each in self.parser.extensions:
            if isinstance(each, CompressionMarks):
                each.in_message = state["in_compressed"]
        self.frames.extend([_restore_frame(each) for each in state["frames"]])
        self.unframed = self._framed()
        fragments: bytes | None = state["fragments"]
        self.fragments = None if fragments is None else bytearray(fragments)
        self._text = state["text"]

    def _framed(self) -> int:
        """Return the size of the frames that wait."""
        return sum([frame_size(len(frame.data)) for frame in self.frames])

    def _header_bytes(self) -> int:
        """Return how many bytes of a frame's header the parser has taken from its buffer."""
        return self.unframed - self._framed() - len(self.parser.reader.buffer)


def _in_message(extension: object) -> bool:
    return isinstance(extension, CompressionMarks) and extension.in_message


def _export_frame(frame: Frame) -> tuple[Any, ...]:
    bits = frame.fin, frame.rsv1, frame.rsv2, frame.rsv3
    return int(frame.opcode), bytes(frame.data), *bits, isinstance(frame, CompressedFrame)


def _restore_frame(values: Sequence[Any]) -> Frame:
    opcode, data, *bits, compressed = values
    return (CompressedFrame if compressed else Frame)(Opcode(opcode), data, *bits)
