"""Run Redis, an interface server and workers, and kill and replace all but Redis while pages stay connected.

Four steps repeat: SIGKILL to one worker, SIGKILL to another, a deploy (new workers start, then the old ones get
SIGTERM), and SIGUSR2 to the interface server (a new process takes over its sockets). The demo prints each step and
sends it to every open page through their group.
"""

import argparse
import os
import re
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import anyio
from anyio.abc import Process, TaskStatus
from examples.never_drop.app import GROUP, event
from examples.processes import (
    END_SECONDS,
    PYTHON,
    START_SECONDS,
    DemoError,
    lines,
    private_redis,
    run,
    running,
    signal_to,
)

from asgibus.layers import open_layer
from asgibus.layers.errors import LayerError

HERE = Path(__file__).resolve().parent
PREFIX = "never_drop"  # of the keys in Redis, which others may use too
WORKERS = 2
MOVED = re.compile(r"process (\d+) goes on after")  # in the log of an interface server


@dataclass(frozen=True, slots=True)
class Scenario:
    """An app, and the options that it is run with.

    Attributes:
        app: The app, as `asgi-worker` takes it.
        worker: Further options of `asgi-worker`.
        interface: Further options of `asgi-interface`.
    """

    app: str
    worker: tuple[str, ...] = ()
    interface: tuple[str, ...] = ()


PLAIN = Scenario("app:app")
FASTAPI = Scenario("fastapi_app:app", worker=("--handover", "silent"), interface=("--affinity", "path:/rooms/{room}"))


class Deployment:
    """The workers of one version of the app: one `asgi-worker --processes`, which restarts those that die."""

    def __init__(self, scenario: Scenario, version: int) -> None:
        self.version = version
        self._scenario = scenario
        self.leaving = False
        self.serving: list[int] = []  # process ids, the oldest first
        self._killed: set[int] = set()
        self._process: Process

    async def run(self, url: str, *, task_status: TaskStatus["Deployment"]) -> None:
        """Run the workers. Report the start when all of them serve, and return when all have ended."""
        options = ("--app-dir", str(HERE), "--layer", url, "--prefix", PREFIX, "--processes", str(WORKERS), "--resume")
        times = ("--drain-period", "1", "--graceful-timeout", "3")
        command = (*PYTHON, "asgibus.cli.worker", self._scenario.app, *options, *times, *self._scenario.worker)
        told = False
        async with running(*command, NEVER_DROP_VERSION=str(self.version)) as self._process:
            async for line in lines(self._process, expected=self._killing):
                before, ready, _ = line.partition("] worker ready")
                if ready:
                    self.serving.append(int(before.rpartition("[")[2]))
                if not told and len(self.serving) == WORKERS:
                    told = True
                    task_status.started(self)
        self.serving.clear()
        if not self.leaving:
            raise DemoError(f"the workers of version {self.version} ended by themselves")

    def kill(self) -> int | None:
        """Kill the oldest worker and return its process id, or None if no worker serves."""
        if not self.serving:
            return None
        pid = self.serving.pop(0)
        self._killed.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid

    def _killing(self, line: str) -> bool:
        """Return whether the supervisor logs the death of a worker that was killed on purpose."""
        return "SIGKILL" in line and any(str(pid) in line for pid in self._killed)

    def leave(self) -> None:
        """Send SIGTERM: the workers hand their sockets over and end."""
        self.leaving = True
        signal_to(self._process, signal.SIGTERM)


class InterfaceServer:
    """The process that holds the sockets. It is replaced, too, and its sockets move to the new process."""

    def __init__(self, scenario: Scenario) -> None:
        self.pid = 0
        self._scenario = scenario

    async def run(self, url: str, port: int, *, task_status: TaskStatus[str]) -> None:
        """Run the interface server. Report the URL for browsers when it listens."""
        options = ("--port", str(port), "--layer", url, "--prefix", PREFIX, *self._scenario.interface)
        command = (*PYTHON, "asgibus.cli.interface", *options, "--graceful-timeout", "2", "--no-access-log")
        async with running(*command) as process:
            self.pid = process.pid
            told = False
            try:
                async for line in lines(process):  # also those of the processes that go on in its place
                    if not told and " listening on " in line:
                        told = True
                        task_status.started(line.partition(" listening on ")[2].split()[0])
                    elif moved := MOVED.search(line):
                        self.pid = int(moved[1])
            finally:
                await self._stop(process)
        raise DemoError("the interface server ended by itself")

    async def _stop(self, process: Process) -> None:
        """Stop the process that serves now, which is no child of the demo once it was replaced."""
        assert process.stderr is not None
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        with anyio.move_on_after(END_SECONDS, shield=True):
            async for _ in process.stderr:  # until all processes that write to this log have ended
                pass

    def replace(self) -> None:
        """Send SIGUSR2: a new process starts, and takes over the sockets."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR2)


class Demo:
    """The actions of the demo, once the interface server listens."""

    def __init__(self, scenario: Scenario, interface: InterfaceServer, url: str, seconds: float) -> None:
        self._scenario = scenario
        self._interface = interface
        self._url = url
        self._seconds = seconds
        self._layer = open_layer(url, prefix=PREFIX)
        self._deployments: list[Deployment] = []

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Report the start when the first workers serve, then kill and redeploy for ever."""
        try:
            async with anyio.create_task_group() as self._tasks:
                await self._deploy()
                task_status.started()
                await self._go_round()
        finally:
            with anyio.CancelScope(shield=True):
                await self._layer.close()

    async def _go_round(self) -> None:
        for step in cycle((self._kill, self._kill, self._redeploy, self._replace)):
            end = anyio.current_time() + self._seconds
            while anyio.current_time() < end:
                await self._tell()
                await anyio.sleep(min(1.0, self._seconds))
            await step()

    async def _kill(self) -> None:
        deployment = self._deployments[-1]
        if (pid := deployment.kill()) is not None:
            await self._say("kill", f"SIGKILL to worker {pid}")

    async def _replace(self) -> None:
        await self._say("interface", f"SIGUSR2 to the interface server {self._interface.pid}, which moves its sockets")
        self._interface.replace()

    async def _redeploy(self) -> None:
        old = self._deployments[-1]
        await self._say("start", f"Deploy: version {old.version + 1} starts beside version {old.version}")
        await self._deploy()
        await self._say("deploy", f"SIGTERM to version {old.version}, which hands its sockets over")
        old.leave()

    async def _deploy(self) -> None:
        version = self._deployments[-1].version + 1 if self._deployments else 1
        deployment = await self._tasks.start(Deployment(self._scenario, version).run, self._url)
        self._deployments = [*self._deployments[-1:], deployment]

    async def _say(self, kind: str, text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, flush=True)
        await self._tell(kind=kind, text=text)

    async def _tell(self, **what: str) -> None:
        """Send every open page what happened, and the list of processes."""
        workers = [
            {"pid": pid, "version": deployment.version, "leaving": deployment.leaving}
            for deployment in self._deployments
            for pid in deployment.serving
        ]
        try:
            await self._layer.group_send(GROUP, event("news", workers=workers, interface=self._interface.pid, **what))
        except LayerError as error:
            print(f"The pages could not be told: {error}", file=sys.stderr)


async def main(scenario: Scenario, port: int, redis: str | None, seconds: float) -> None:
    """Run the demo until SIGINT, SIGTERM or SIGHUP. Raise DemoError or LayerError."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with AsyncExitStack() as stack:
            url = redis or await stack.enter_async_context(private_redis())
            tasks = await stack.enter_async_context(anyio.create_task_group())
            interface = InterfaceServer(scenario)
            with anyio.fail_after(START_SECONDS):
                where = await tasks.start(interface.run, url, port)
                await tasks.start(Demo(scenario, interface, url, seconds).run)
            print(f"Open {where} in one or more tabs. Ctrl+C ends everything.\n", flush=True)
            async for _ in signals:
                break
            print("\nEnding everything …", flush=True)
            tasks.cancel_scope.cancel()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="never_drop", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="port of the page (default 8000; 0 takes a free one)")
    parser.add_argument("--redis", metavar="URL", help="use this Redis (default: a private redis-server)")
    parser.add_argument(
        "--every", type=float, default=4.0, metavar="SECONDS", help="pause between two steps (default 4)"
    )
    parser.add_argument("--fastapi", action="store_true", help="show a chat and an event stream of a FastAPI app")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse()
    run(main, FASTAPI if options.fastapi else PLAIN, options.port, options.redis, options.every)
