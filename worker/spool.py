"""Bodies that wait for a thread of a WSGI app or for a client: in memory at first, then in temporary files.

The files have no names, so none is left when the process dies. They are in TMPDIR, or in /tmp.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import IO

from anyio import to_thread

from asgibus.protocol.counted_log import CountedLog

logger = logging.getLogger("asgibus.worker")

REQUEST_IN_MEMORY = 64 * 1024  # bytes of one body: there may be thousands of slow uploads
RESPONSE_IN_MEMORY = 256 * 1024  # bytes of one body: the size of the window
READ = 256 * 1024  # bytes read from a file at once
FEWEST_FILES = 16
FILES_SHARE = 16  # bodies use at most one in so many of the files that the process may open


class SpoolFull(Exception):
    """The temporary files of all requests have reached their limit of bytes or of files."""


class Spool:
    """The room on disk for the bodies of a worker's requests and responses. May be used from any thread.

    The number of files is limited too, to a share of the files that the process may open. A worker without free
    descriptors could not connect to Redis again.

    Args:
        size: The limit in bytes.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._files = 0
        self._lock = threading.Lock()
        self.log = CountedLog(Counter(), logger, time.monotonic)
        """Logs faults at a limited rate: a full disk affects every request."""

    def reserve(self, count: int) -> bool:
        """Reserve `count` bytes. Return False, and reserve none, if fewer are free."""
        with self._lock:
            reserved = count <= self._free
            if reserved:
                self._free -= count
            return reserved

    def release(self, count: int) -> None:
        """Release `count` reserved bytes."""
        with self._lock:
            self._free += count

    def reserve_file(self) -> bool:
        """Reserve a file. Return False, and reserve none, if the limit is reached."""
        most = max(FEWEST_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // FILES_SHARE)
        with self._lock:
            reserved = self._files < most
            if reserved:
                self._files += 1
            return reserved

    def release_file(self) -> None:
        """Release a reserved file."""
        with self._lock:
            self._files -= 1


class RequestBody:
    """The body of a request, which is collected until it is whole. The owner must close it.

    Args:
        spool: The room on disk.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._file = tempfile.SpooledTemporaryFile()  # noqa: SIM115  # closed by `close`
        self._on_disk = False
        self.size = 0

    async def write(self, data: bytes) -> None:
        """Append a part.

        Raises:
            SpoolFull: The spool has no room.
            OSError: The part cannot be written, above all because the disk is full.
        """
        self.size += len(data)
        if self.size <= REQUEST_IN_MEMORY:
            self._file.write(data)
            return
        if not self._on_disk and not self._spool.reserve_file():
            raise SpoolFull
        if not self._spool.reserve(len(data) if self._on_disk else self.size):
            self.size -= len(data)
            if not self._on_disk:
                self._spool.release_file()
            raise SpoolFull
        self._on_disk = True
        await to_thread.run_sync(self._write_to_disk, data)

    async def rewind(self) -> IO[bytes]:
        """Return the body as a file, positioned at its beginning.

        Raises:
            OSError: The buffer of the file cannot be written, above all because the disk is full.
        """
        if self._on_disk:
            await to_thread.run_sync(self._file.seek, 0)  # also writes the buffer of the file to the disk
        else:
            self._file.seek(0)
        return self._file

    async def close(self) -> None:
        """Delete the file and release its room."""
        if not self._on_disk:
            self._file.close()
            return
        try:
            with suppress(OSError):  # the buffer of the file may not fit on a full disk
                await to_thread.run_sync(self._file.close)  # deleting a large file takes time
        finally:
            self._spool.release(self.size)
            self._spool.release_file()

    def _write_to_disk(self, data: bytes) -> None:
        self._file.rollover()
        self._file.write(data)


class ResponseBody:
    """The body of a response, between the thread of the app and the event loop. The owner must close it.

    The event loop reads as fast as the client does. The thread writes as fast as the app runs, until it is `ahead`
    bytes before the event loop, or the spool is full.

    Args:
        spool: The room on disk.
        ahead: The most bytes that are written and not read.
    """

    def __init__(self, spool: Spool, ahead: int) -> None:
        self._spool = spool
        self._ahead = ahead
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()  # guards the fields below; notified when there is room for the thread
        self._parts: list[bytes] = []  # they precede the content of the file
        self._in_memory = 0
        self._file: IO[bytes] | None = None
        self._has_file = False  # whether a file is reserved; it may not exist yet
        self._size = 0  # of the file in bytes, reserved in the spool; a read file is overwritten from its beginning
        self._written = 0
        self._read = 0
        self._writing = False
        self._disk_failed = False
        self._reader: asyncio.Future[None] | None = None
        self._ended = False
        self._complete = False
        self._error: Exception | None = None

    def close(self) -> None:
        """Delete the file and release its room. The thread must have ended."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._has_file:
            self._has_file = False
            self._spool.release_file()
            self._spool.release(self._size)

    # Called in the thread.

    def write(self, data: bytes) -> None:
        """Append a part, and wait while there is no room for it. Raises the error of `abort`."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._write(rest) :]

    def end(self, *, complete: bool) -> None:
        """Mark the end of the body.

        Args:
            complete: Whether the body is complete; if not, the app has raised.
        """
        with self._changed:
            self._ended = True
            self._complete = complete
            self._wake()

    def raise_if_aborted(self) -> None:
        """Raise the error of `abort`, if it was called."""
        if self._error is not None:
            raise self._error

    def _write(self, data: memoryview) -> int:
        """Write a first part of `data` when there is room. Return its length; 0 if the disk failed."""
        with self._changed:
            while True:
                self.raise_if_aborted()
                room = RESPONSE_IN_MEMORY - self._in_memory
                if room > 0 and not self._written:
                    part = bytes(data[:room])
                    self._parts.append(part)
                    self._in_memory += len(part)
                    self._wake()
                    return len(part)
                length = min(len(data), self._ahead - self._written)
                if length and not self._disk_failed and self._grow(self._written + length):
                    break
                self._changed.wait()
            self._writing = True
        # Without the lock, because the event loop must not wait for a disk.
        written = self._write_to_disk(data[:length])
        with self._changed:
            self._writing = False
            self._disk_failed = not written
            self._written += written
            self._reuse_file()
            self._wake()
        return written

    def _grow(self, size: int) -> bool:
        """Reserve room for a file of `size` bytes. Return False if there is none."""
        if not self._has_file:
            self._has_file = self._spool.reserve_file()
            if not self._has_file:
                return False
        more = max(0, size - self._size)
        if not self._spool.reserve(more):
            return False
        self._size += more
        return True

    def _write_to_disk(self, data: memoryview) -> int:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by `close`
            return os.pwrite(self._file.fileno(), data, self._written)
        except OSError as error:
            text = "a response cannot be kept in a temporary file, so its thread waits: %s"
            self._spool.log.count(text, text, error, level=logging.ERROR)
            return 0

    # Called in the event loop.

    async def read(self) -> tuple[bytes, bool]:
        """Wait for the next part of the body.

        Returns:
            The bytes, and whether they are the last of a complete body. No bytes if the body has ended incomplete.
        """
        while True:
            with self._changed:
                if self._parts:
                    data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                    self._parts.clear()
                    self._in_memory = 0
                    self._changed.notify()
                    return data, self._finished()
                start, end = self._read, self._written
                if start == end:
                    if self._ended:
                        return b"", self._complete
                    reader = self._reader = self._loop.create_future()
            if start == end:
                await reader
                continue
            assert self._file is not None
            data = await to_thread.run_sync(os.pread, self._file.fileno(), min(READ, end - start), start)
            with self._changed:
                self._read += len(data)
                self._reuse_file()
                return data, self._finished()

    def abort(self, error: Exception) -> None:
        """Make the current and every further write of the thread raise `error`."""
        with self._changed:
            self._error = error
            self._changed.notify()

    def _reuse_file(self) -> None:
        """Overwrite the file from its beginning, if all of it was read."""
        if self._read == self._written and not self._writing:
            self._read = self._written = 0
            self._changed.notify()

    def _finished(self) -> bool:
        return self._complete and not self._parts and self._read == self._written

    def _wake(self) -> None:
        """Wake the task that waits in `read`."""
        if self._reader is not None:
            self._loop.call_soon_threadsafe(_resolve, self._reader)
            self._reader = None


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
