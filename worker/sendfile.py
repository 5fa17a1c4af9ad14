"""Files that an app sends by path or by descriptor: the ASGI extensions "http.response.pathsend" and "zerocopysend".

The client's socket is in another process, so the worker reads the file: part by part, each in a thread when the client
has taken what was before it. The event loop never waits for a disk.
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
"""Takes a part of the body, and whether it is the last of this file."""


async def send_file(event: Event, limit: int | None, send_part: SendPart) -> None:
    """Send the file of a PATH_SEND or ZERO_COPY_SEND event, at most `limit` bytes of it.

    At least one part is sent, if only an empty one. What is wrong with the file is an OSError, before the first part
    unless it happens later; what `send_part` raises ends it.
    """
    if event[0] == PATH_SEND:
        file = await _opened(event[1])
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
    """Send what is there from `position` on; returns the position behind it."""
    left = limit
    while True:
        size = PART if left is None else min(PART, left)
        data = await to_thread.run_sync(os.pread, descriptor, size, position) if size else b""
        position += len(data)
        if left is not None:
            left -= len(data)
        last = not data or left == 0
        await send_part(data, last)
        if last:
            return position


async def _opened(path: str) -> io.FileIO:
    opening = asyncio.ensure_future(to_thread.run_sync(_open, path))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unused)
        raise


def _open(path: str) -> io.FileIO:
    # Without O_NONBLOCK a named pipe would keep the thread until somebody writes to it.
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
    """Return the descriptor of an open file and the position in it, if its descriptor gives what `read` would give.

    None for anything but a regular file that Python itself has opened for bytes: what wraps one may unpack it.
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
    """Where reading goes on: a buffered file's own idea of it, which is behind the descriptor's."""
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
