"""Files that an app sends by path or by descriptor: the ASGI extensions "http.response.pathsend" and "zerocopysend".

The client's socket is in another process, so the worker reads the file: each part in a thread, once the window
has room for it. The event loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any

from anyio import to_thread

from asgibus.protocol.events import PATH_SEND, Event
from asgibus.protocol.stream import PART

SendPart = Callable[[bytes, bool], Awaitable[None]]
"""Sends a part of the body; the second argument says whether it is the last part of the file."""


async def send_file(event: Event, limit: int | None, send_part: SendPart) -> None:
    """Send the file of an event, in at least one part.

    Args:
        event: A PATH_SEND or a ZERO_COPY_SEND.
        limit: The most bytes to send; None for all.
        send_part: Sends a part. Its exceptions are passed on.

    Raises:
        OSError: The file cannot be read. If it cannot be opened, no part was sent.
    """
    if event[0] == PATH_SEND:
        file = await _open_in_thread(event[1])
        try:
            await _send_parts(file.fileno(), 0, limit, send_part)
        finally:
            file.close()
    else:
        _, _, file, offset, count = event
        if offset is not None:
            await _send_parts(_descriptor(file), offset, _least(count, limit), send_part)
        else:
            start = await to_thread.run_sync(_position, file)
            end = await _send_parts(_descriptor(file), start, _least(count, limit), send_part)
            await to_thread.run_sync(_move, file, end)


async def _send_parts(descriptor: int, position: int, limit: int | None, send_part: SendPart) -> int:
    """Send the file from `position` on. Return the position after the last byte."""
    remaining = limit
    while True:
        size = PART if remaining is None else min(PART, remaining)
        data = await to_thread.run_sync(os.pread, descriptor, size, position) if size else b""
        position += len(data)
        if remaining is not None:
            remaining -= len(data)
        last = not data or remaining == 0
        await send_part(data, last)
        if last:
            return position


async def _open_in_thread(path: str) -> io.FileIO:
    opening = asyncio.ensure_future(to_thread.run_sync(_open, path))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unused)
        raise


def _open(path: str) -> io.FileIO:
    # Without O_NONBLOCK the thread would wait until a process writes to a named pipe.
    file = io.FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        wrong = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(wrong, os.strerror(wrong), path)
    return file


def _close_unused(opening: asyncio.Future[io.FileIO]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def place_in_file(file: Any) -> tuple[int, int] | None:
    """Return the descriptor of an open file and the position in it, if reading the descriptor equals `file.read`.

    Return None for anything but a regular file that Python itself has opened for bytes. An object that wraps a file may
    change its content, for example decompress it.
    """
    if type(file) not in (io.BufferedReader, io.BufferedRandom, io.FileIO):
        return None
    if type(getattr(file, "raw", file)) is not io.FileIO or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return None
    file.flush()
    return file.fileno(), file.tell()


def _descriptor(file: Any) -> int:
    return file if isinstance(file, int) else int(file.fileno())


def _position(file: Any) -> int:
    """Return the position of the next read. A buffered file knows its own, which is before the descriptor's."""
    if isinstance(file, (io.RawIOBase, io.BufferedIOBase)):
        return file.tell()
    return os.lseek(_descriptor(file), 0, os.SEEK_CUR)


def _move(file: Any, position: int) -> None:
    if isinstance(file, (io.RawIOBase, io.BufferedIOBase)):
        file.seek(position)
    else:
        os.lseek(_descriptor(file), position, os.SEEK_SET)


def _least(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)
