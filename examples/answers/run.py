"""Run Redis, two interface servers, two workers that take questions, and two writers of answers.

Each pair has a supervisor, which replaces what you kill. The demo prints the processes as they come and go.
"""

import argparse
import re
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
from anyio.abc import TaskStatus
from examples.processes import PYTHON, START_SECONDS, DemoError, lines, private_redis, run, running

HERE = Path(__file__).resolve().parent
PREFIX = "answers"  # of the keys in Redis, which others may use too
PROCESSES = 2
COMMANDS = {
    "interface server": ("asgibus.cli.interface", "--no-access-log", "--graceful-timeout", "1"),
    "worker": ("asgibus.cli.worker", "app:app", "--app-dir", str(HERE), "--resume"),
    "writer": ("asgibus.cli.worker", "writer:app", "--app-dir", str(HERE), "--channel", "answers", "--attempts", "3"),
}
READY = re.compile(r"\[(\d+)\] (?:interface server|worker) ready")
LISTENING = re.compile(r"listening on (http\S+)")
KILLED = re.compile(r"process (\d+) was killed")


async def serve(kind: str, *options: str, task_status: TaskStatus[tuple[list[str], str]]) -> None:
    """Run the processes of one kind. Report their ids and the address, if any, when all of them are ready."""
    pids: list[str] = []
    url = ""
    started = False
    listens = kind == "interface server"
    command = (*PYTHON, *COMMANDS[kind], *options, "--prefix", PREFIX, "--processes", str(PROCESSES))
    async with running(*command) as process:
        async for line in lines(process, expected=lambda line: KILLED.search(line) is not None):
            if found := LISTENING.search(line):
                url = found[1]
            elif found := KILLED.search(line):
                say(f"{kind} {found[1]} was killed")
            elif found := READY.search(line):
                pids.append(found[1])
                if started:
                    say(f"{kind} {found[1]} has taken its place")
            if not started and len(pids) == PROCESSES and (url or not listens):
                started = True
                task_status.started((pids, url))
    raise DemoError(f"the {kind}s ended by themselves")


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


async def main(port: int, redis: str | None) -> None:
    """Run the demo until SIGINT, SIGTERM or SIGHUP. Raise DemoError or LayerError."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with AsyncExitStack() as stack:
            layer = ("--layer", redis or await stack.enter_async_context(private_redis()))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            with anyio.fail_after(START_SECONDS):
                interfaces, url = await tasks.start(serve, "interface server", *layer, "--port", str(port))
                workers, _ = await tasks.start(serve, "worker", *layer)
                writers, _ = await tasks.start(serve, "writer", *layer)
            print(f"Open {url} and ask something. Ctrl+C ends everything.\n")
            print(
                f"  interface servers  {', '.join(interfaces)}   hold the connections of browsers, and send the answers"
            )
            print(f"  workers            {', '.join(workers)}   take the questions")
            print(f"  writers            {', '.join(writers)}   write the answers")
            print(f"\nKill any of them while an answer is written: kill -9 {writers[0]}\n", flush=True)
            async for _ in signals:
                break
            print("\nEnding everything …", flush=True)
            tasks.cancel_scope.cancel()


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="answers", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="port of the page (default 8000; 0 takes a free one)")
    parser.add_argument("--redis", metavar="URL", help="use this Redis (default: a private redis-server)")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    run(main, arguments.port, arguments.redis)
