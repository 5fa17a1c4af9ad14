"""The life of a process: start-up, signals, and an end within bounds."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NoReturn

import anyio
from anyio.abc import TaskStatus

from asgibus.cli.control_pipe import ControlPipe
from asgibus.cli.descriptors import raise_limit
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Handler
from asgibus.layers.errors import LayerError, LayerUnavailable

logger = logging.getLogger("asgibus")

YOUNG_OBJECTS = 10_000  # between two garbage collections: 700, the default, are the objects of a dozen requests
START_SECONDS = 2.0  # for a start-up to end once it is no longer wanted
LINGER_SECONDS = 2.0  # for what is left when the servers have ended: an app's threads and tasks that do not end
FORCED_SECONDS = 1.0  # the same, after a second signal
END_MARGIN = 8.0  # beyond the graceful timeout: for the app's shut-down, and for the last messages to the bus
SIGNALS = (signal.SIGINT, signal.SIGTERM)
RETRY_SECONDS = 0.5  # between two tries to reach the layer: a person who starts both at once does not notice it
SILENCE_SECONDS = 1.0  # without an answer of the layer: then the log says what is waited for


class ProcessLifecycle:
    """The progress of this process, reported to its supervisor or service manager, and the request to stop.

    Args:
        control: The connection to the supervisor.
        suspended: Gets the tasks of the app that wait until the process exits. If there are any, no task is cancelled
            at the end.
    """

    def __init__(self, control: ControlPipe, suspended: list[asyncio.Task[Any]]) -> None:
        self.stop = anyio.Event()
        """Set when the process has to stop gracefully."""
        self.has_started = False
        self.status = "starting"
        """The activity of a process that is not ready yet, in one line for people."""
        self.suspended = suspended
        self._control = control
        self._is_ready = False

    def report(self, status: str) -> None:
        """Report what the process does before it is ready."""
        self.status = status
        self._control.status(status)

    def started(self) -> None:
        """Note the end of the start-up: from now on the process stops gracefully, however long that takes."""
        self.has_started = True
        # Modules and the app stay loaded: garbage collections need not look at them again. A collection before would
        # find next to nothing, and take a tenth of the start-up.
        gc.freeze()

    def ready(self, status: str, *mailboxes: str) -> None:
        """Report that the process serves and reads these mailboxes. Call `started` before."""
        self._is_ready = True
        self._control.ready(*mailboxes)
        self._control.manager.ready(status)

    def reloading(self, status: str) -> None:
        """Report that a reload has begun, for a SIGHUP."""
        if self._is_ready:
            self._control.manager.reloading(status)

    def reloaded(self, status: str) -> None:
        """Report the result of a reload. The process serves, with the new state or the old one."""
        if self._is_ready:
            self._control.manager.ready(status)

    def moved(self, pid: int, status: str) -> None:
        """Report that another process serves in the place of this one, and stop."""
        self._is_ready = False
        self._control.manager.moved(pid, status)
        self._control.retiring()
        self.stop.set()

    def retiring(self) -> None:
        """Report that the process takes nothing new, so that a supervisor may start another one."""
        self._is_ready = False
        self._control.manager.stopping()
        self._control.retiring()


Serve = Callable[[ProcessLifecycle], Awaitable[None]]


def run(
    serve: Serve, *expected: type[Exception], control: ControlPipe, graceful_timeout: float, layer_hint: str = ""
) -> int:
    """Run `serve` until it returns, on uvloop if that is installed.

    The first SIGINT or SIGTERM, or the supervisor, sets `stop` of the lifecycle; a start-up that is not over 2 s after
    that is cancelled. A second signal ends the process at once. A supervised process is ended if it takes 8 s longer
    than the graceful timeout.

    Args:
        serve: Called with the lifecycle.
        expected: Errors that are reported in one line, besides LayerError.
        control: The connection to the supervisor.
        graceful_timeout: Seconds that `serve` takes at most once `stop` is set.
        layer_hint: What people can do if the layer cannot be reached.

    Returns:
        The exit code: 1 after an expected error or a second signal, else 0.

    """
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
    raise_limit()
    try:
        forced = _run_event_loop(serve, control, graceful_timeout + END_MARGIN)
    except Exception as raised:
        error = _single(raised)
        if not isinstance(error, (LayerError, *expected)):
            raise
        hint = ""
        if isinstance(error, LayerUnavailable) and layer_hint and not control.is_supervised:
            hint = f" ({layer_hint})"
        control.failed(f"{error}{hint}", getattr(error, "trace", ""))
        return 1
    return 1 if forced else 0


def exit_after_check(found: str) -> NoReturn:
    """Print what `--check` has found in order, and end the process with 0, whatever threads the app has started."""
    print(f"OK: {found}")
    _exit_within(LINGER_SECONDS, 0)
    raise SystemExit(0)


async def on_sighup(lifecycle: ProcessLifecycle, call: Callable[[], Awaitable[None]]) -> None:
    """Await `call` at each SIGHUP, by which a daemon is asked to read its configuration again.

    A process that was started at a terminal stops instead when the terminal is closed.
    """
    had_terminal = _has_terminal()
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            if had_terminal and not _has_terminal():
                logger.info("the terminal is closed: stopping")
                lifecycle.stop.set()
                return
            await call()


async def wait_for_layer(layer: ChannelLayer, seconds: float, lifecycle: ProcessLifecycle) -> bool:
    """Wait until a server can use the layer.

    Args:
        layer: The channel layer.
        seconds: How long to wait at most; 0 does not wait.
        lifecycle: Gets the status; setting its `stop` ends the wait.

    Returns:
        Whether the process is to go on: False if `stop` was set before.

    Raises:
        LayerUnavailable: The layer cannot be used within this time.

    """
    if seconds:
        async with anyio.create_task_group() as tasks:

            async def cancel_on_stop() -> None:
                await lifecycle.stop.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(cancel_on_stop)
            await _retry_layer(layer, seconds, lifecycle)
            tasks.cancel_scope.cancel()
    return not lifecycle.stop.is_set()


async def _retry_layer(layer: ChannelLayer, seconds: float, lifecycle: ProcessLifecycle) -> None:
    start = anyio.current_time()
    reported: set[str] = set()

    def report(reason: str) -> None:
        lifecycle.report(f"waiting for the channel layer: {reason}")
        if reason not in reported:  # two may alternate: Redis refuses a connection before or after the first command
            reported.add(reason)
            logger.warning("waiting up to %g s for the channel layer: %s", seconds, reason)

    async def report_silence() -> None:
        await anyio.sleep(SILENCE_SECONDS)
        report(f"no answer yet from {getattr(layer, 'address', 'it')}")

    while True:
        try:
            async with anyio.create_task_group() as tasks:
                if not reported:
                    tasks.start_soon(report_silence)
                async with layer.bus("start", Handler()):
                    pass
                tasks.cancel_scope.cancel()
        except* LayerUnavailable as errors:
            error = errors.exceptions[0]
            if anyio.current_time() - start >= seconds:
                raise LayerUnavailable(f"{error}; waited {seconds:g} s for it") from error
            report(str(error))
        else:
            if reported:
                logger.info("the channel layer is available after %.1f s", anyio.current_time() - start)
                lifecycle.report("starting")
            return
        await anyio.sleep(min(RETRY_SECONDS, max(0.0, start + seconds - anyio.current_time())))


def _run_event_loop(serve: Serve, control: ControlPipe, limit: float) -> bool:
    """Run `serve` in an event loop, and return whether a second signal ended it.

    At the end all tasks that are left are cancelled. With suspended ones, all stay as they are, as if the process had
    been killed. That is why this is not `anyio.run`, which always cancels.
    """
    with suppress(ModuleNotFoundError):
        import sniffio  # noqa: PLC0415  # anyio asks it whether asyncio runs, and in callbacks it knows by this alone

        sniffio.current_async_library_cvar.set("asyncio")
    loop_factory = None
    if find_spec("uvloop") is not None:
        import uvloop  # noqa: PLC0415

        loop_factory = uvloop.new_event_loop
    suspended: list[asyncio.Task[Any]] = []
    runner = asyncio.Runner(loop_factory=loop_factory)
    try:
        return runner.run(_run_until_signal(serve, control, limit, suspended))
    finally:
        if suspended:
            # Otherwise the interpreter would collect the tasks at its end, and so run the `finally` clauses in them.
            gc.freeze()
        else:
            runner.close()


async def _run_until_signal(
    serve: Serve, control: ControlPipe, limit: float, suspended: list[asyncio.Task[Any]]
) -> bool:
    """Run `serve`, and return whether a second signal ended it."""
    lifecycle = ProcessLifecycle(control, suspended)
    forced = False

    def stop(reason: str) -> None:
        if not lifecycle.stop.is_set():
            second = "" if control.is_supervised else "; a second signal stops at once"
            logger.info("%s: stopping%s", reason, second)
            lifecycle.stop.set()
            lifecycle.retiring()
            tasks.start_soon(give_up_start)

    async def give_up_start() -> None:
        await anyio.sleep(START_SECONDS)
        if not lifecycle.has_started:
            tasks.cancel_scope.cancel()

    async def watch_signals(*, task_status: TaskStatus[None]) -> None:
        nonlocal forced
        signalled = False  # the process may be stopping for another reason, and then a first signal changes nothing
        with anyio.open_signal_receiver(*SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                if not signalled:
                    signalled = True
                    stop(number.name)
                    continue
                logger.warning("%s again: stopping at once", number.name)
                forced = True
                _exit_within(FORCED_SECONDS, 1)
                tasks.cancel_scope.cancel()
                return

    async with anyio.create_task_group() as tasks:
        await tasks.start(watch_signals)
        # asyncio's call: anyio's calls from threads wait for an answer, which a blocked event loop does not give.
        loop = asyncio.get_running_loop()
        # With sniffio installed, anyio knows which event loop runs by the context alone.
        context = contextvars.copy_context()

        def stop_from_thread(reason: str) -> None:
            with suppress(RuntimeError):  # the event loop has ended, and so does the process
                loop.call_soon_threadsafe(stop, reason, context=context)

        control.on_stop(stop_from_thread, within=limit)
        await serve(lifecycle)
        tasks.cancel_scope.cancel()
    _exit_within(LINGER_SECONDS, 1 if forced else 0)
    return forced


def _exit_within(seconds: float, code: int) -> None:
    """End the process after this time, if it has not ended by itself."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()


def _has_terminal() -> bool:
    """Return whether the process has a terminal, which may be closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _single(error: Exception) -> Exception:
    """Return the only error of a group: task groups wrap what is raised in them."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
