"""`python -m benchmarks.clients KIND PORT COUNT WINDOW PATH`: one measure, driven over stdin and stdout.

Opens the sockets, loads the server shortly, prints READY. Then takes one line with the seconds to run, prints one
line of JSON, and keeps the sockets open until stdin ends; idle sockets are checked at one more line, which prints
CHECKED. A failure is printed as `FAILED reason`.
"""

import gc
import json
import resource
import sys

from benchmarks.clients.connection import ClientError
from benchmarks.clients.exchange import Exchange, echo, http
from benchmarks.clients.fanout import FanOut, fanout
from benchmarks.clients.opening import Opening, connect, even
from benchmarks.clients.transfer import Transfer, download, upload

WARM_UP = 0.3
"""Seconds of load before the measure."""


def prepare(kind: str, port: int, count: int, window: int, path: str) -> Exchange | FanOut | Opening | Transfer:
    """Open the sockets and warm both sides up."""
    load: Exchange | FanOut | Transfer
    match kind:
        case "connect":
            return connect(port, count, window)
        case "even":
            return even(port, count)
        case "http":
            load = http(port, count, path)
        case "echo":
            load = echo(port, count)
        case "fanout":
            load = fanout(port, count, window)
        case "upload":
            load = upload(port, count)
        case "download":
            load = download(port, count)
        case _:
            raise ClientError(f"no load is called {kind}")
    load.run(WARM_UP)
    return load


def main() -> None:
    """Serve one measure to the process that started this one."""
    kind, (port, count, window), path = sys.argv[1], map(int, sys.argv[2:5]), sys.argv[5]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        load = prepare(kind, port, count, window, path)
        gc.collect()
        gc.disable()
        print("READY", flush=True)
        if seconds := sys.stdin.readline():
            print(json.dumps(load.run(float(seconds)).as_json()), flush=True)
            if sys.stdin.readline() and isinstance(load, Opening):
                load.check()
                print("CHECKED", flush=True)
    except (ClientError, OSError) as error:
        print(f"FAILED {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
