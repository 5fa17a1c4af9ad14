"""A wall clock that is wrong, for one process: libfaketime, which leaves the monotonic clock alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.redis import RedisServer
from support.topologies import valkey_binary

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class WallClock:
    """A clock that can be set while processes use it. They get `env`; their monotonic clock is unchanged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.step(0)
        self.env = {
            "LD_PRELOAD": library() or "",
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            # Otherwise threads that wait for Python's interpreter lock, by the monotonic clock, stand still at a step.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    def step(self, seconds: float) -> None:
        """Set the clock `seconds` ahead of the clock of the machine (negative: behind); processes see it at once."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{seconds:+g}\n")
        new.replace(self._path)  # so that no process reads half of the file


@contextmanager
def stepping_server(folder: Path) -> Iterator[tuple[RedisServer, WallClock]]:
    """Run a server with a clock of its own. It is a Valkey: libfaketime cannot be loaded beside Redis's jemalloc."""
    if library() is None:
        pytest.skip("libfaketime is not installed")
    clock = WallClock(folder / "clock")
    server = RedisServer(valkey_binary(), folder, env=clock.env)
    try:
        yield server, clock
    finally:
        server.close()


def library() -> str | None:
    """Return the library, or None if it is not installed."""
    return str(LIBRARY) if LIBRARY else None
