"""A Redis master with a replica, watched by sentinels, that fails over within a second or two."""

import socket
import subprocess
from pathlib import Path
from typing import Any

import redis

from support.context_stack import ContextStack
from support.deadline import wait_until
from support.redis import RedisServer

SERVICE = "bus"
DOWN_AFTER = 500  # ms without an answer until a sentinel considers the master down
FAILOVER_TIMEOUT = 2000  # ms; also how soon an election is tried again
SENTINELS = 3
QUORUM = 2
READY = 20.0  # seconds until sentinels, master and replica know each other


class SentinelSet(ContextStack):
    """Redis servers with sentinels; a context manager."""

    def __init__(self, binary: str, folder: Path) -> None:
        super().__init__()
        self._binary = binary
        self._folder = folder
        self._sentinels: list[tuple[int, subprocess.Popen[bytes]]] = []

    @property
    def url(self) -> str:
        places = ",".join(f"{host}:{port}" for host, port in self.places)
        return f"redis+sentinel://{places}/{SERVICE}"

    @property
    def places(self) -> list[tuple[str, int]]:
        """Return the hosts and ports of the sentinels."""
        return [("127.0.0.1", port) for port, _ in self._sentinels]

    @property
    def master_port(self) -> int:
        """Return the port of the master that the sentinels name."""
        answer = self._ask(0, "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(answer[1])

    @property
    def current(self) -> RedisServer:
        """Return the server that the sentinels name as the master."""
        port = self.master_port
        return next(server for server in (self.master, self.replica) if server.port == port)

    def wait_promoted(self, timeout: float = 15.0) -> None:
        """Wait until the replica reports itself as master."""
        wait_until(lambda: self._role(self.replica.port) == "master", timeout, "the failover")

    def wait_demoted(self, timeout: float = 30.0) -> None:
        """Wait until the first master, which must be running, is a replica of the other one: about ten seconds."""
        wait_until(lambda: self._role(self.master.port) == "slave", timeout, "the demotion")

    def _open(self) -> None:
        # A new replica gets its data at once.
        options = ("--repl-diskless-sync-delay", "0")
        self.master = RedisServer(self._binary, self._folder, *options)
        self._stack.callback(self.master.close)
        self.replica = RedisServer(self._binary, self._folder, *options, "--replicaof", f"127.0.0.1 {self.master.port}")
        self._stack.callback(self.replica.close)
        wait_until(lambda: self._synced(self.replica.port), READY, "the replica's copy")
        for _ in range(SENTINELS):
            self._start_sentinel()
        wait_until(lambda: all(map(self._knows_all, range(SENTINELS))), READY, "the sentinels' knowing each other")

    def _start_sentinel(self) -> None:
        port = _free_port()
        settings = self._folder / f"sentinel-{port}.conf"  # the sentinel rewrites this file
        settings.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self._folder}\nlogfile {self._folder}/sentinel-{port}.log\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} {QUORUM}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER}\n"
            f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT}\n"
        )
        popen = subprocess.Popen(
            [self._binary, str(settings), "--sentinel"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._stack.callback(_end, popen)
        self._sentinels.append((port, popen))

    def _knows_all(self, number: int) -> bool:
        try:
            answer = self._ask(number, "MASTER", SERVICE)
        except redis.ConnectionError:
            return False
        if isinstance(answer, list):
            answer = dict(zip(answer[::2], answer[1::2], strict=True))
        known = {_text(name): _text(value) for name, value in answer.items()}
        return known["num-slaves"] == "1" and known["num-other-sentinels"] == str(SENTINELS - 1)

    def _ask(self, number: int, *command: str) -> Any:
        with redis.Redis(port=self._sentinels[number][0], protocol=2, socket_timeout=5) as client:
            client.response_callbacks.clear()
            return client.execute_command("SENTINEL", *command)

    @staticmethod
    def _info(port: int) -> dict[str, Any]:
        with redis.Redis(port=port, protocol=2, socket_timeout=5) as client:
            info: dict[str, Any] = client.info("replication")
            return info

    def _role(self, port: int) -> str:
        return str(self._info(port)["role"])

    def _synced(self, port: int) -> bool:
        return self._info(port).get("master_link_status") == "up"


def _end(popen: subprocess.Popen[bytes]) -> None:
    popen.kill()
    popen.wait()


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
