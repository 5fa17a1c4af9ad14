"""Processes of the demos: a Redis of their own, and servers that end with the demo."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from asgibus.layers.errors import LayerError

PYTHON = (sys.executable, "-m")
START_SECONDS = 30.0
END_SECONDS = 8.0


class DemoError(Exception):
    """The demo cannot continue; the text says why."""


@asynccontextmanager
async def private_redis() -> AsyncIterator[str]:
    """Start a Redis that ends with the context, and yield its URL. Raise DemoError if it does not start."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        raise DemoError("there is no redis-server here: install one, or name a running one with --redis URL")
    with tempfile.TemporaryDirectory(prefix="asgibus-demo-") as folder:
        path = f"{folder}/redis.sock"
        options = ("--port", "0", "--unixsocket", path, "--dir", folder, "--save", "", "--appendonly", "no")
        async with running(binary, *options) as process:
            while not await anyio.Path(path).exists():
                if process.returncode is not None:
                    raise DemoError(f"{binary} does not start")
                await anyio.sleep(0.02)
            yield f"unix://{path}"


@asynccontextmanager
async def running(*command: str, **env: str) -> AsyncIterator[Process]:
    """Start a process that ends with the context: by SIGTERM, and after some seconds by SIGKILL."""
    process = await anyio.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **env},
        start_new_session=True,  # Ctrl+C goes to the demo alone, which ends the others in order
    )
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            signal_to(process, signal.SIGTERM)
            with anyio.move_on_after(END_SECONDS):
                await process.wait()
            signal_to(process, signal.SIGKILL)
            await process.aclose()


def signal_to(process: Process, number: int) -> None:
    """Send a signal to a process that runs. (Its own methods would take its exit code away from asyncio.)"""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


async def lines(process: Process, expected: Callable[[str], bool] = lambda line: False) -> AsyncIterator[str]:
    """Yield the log lines of a process until it ends. Print errors, unless they are expected."""
    assert process.stderr is not None
    log = BufferedByteReceiveStream(process.stderr)
    with suppress(anyio.IncompleteRead):  # the end
        while True:
            line = (await log.receive_until(b"\n", 100_000)).decode(errors="replace")
            if " INFO " not in line and " WARNING " not in line and not expected(line):
                print("        ", line, file=sys.stderr, flush=True)
            yield line


def run(main: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    """Run the main function of a demo. End the process with one sentence if the demo cannot continue."""
    try:
        anyio.run(main, *arguments)
    except Exception as raised:
        error = _first(raised)
        if isinstance(error, TimeoutError):
            error = DemoError(f"not all processes were ready within {START_SECONDS:g} s")
        if not isinstance(error, (DemoError, LayerError)):
            raise
        sys.exit(f"Error: {error}")


def _first(error: Exception) -> Exception:
    """Return the first error of nested exception groups, which task groups raise."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
