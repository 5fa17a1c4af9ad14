"""A Redis Cluster of private servers, with TLS if asked for; its slots can be moved."""

from pathlib import Path

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from support.context_stack import ContextStack
from support.deadline import wait_until
from support.redis import RedisServer, free_port

MASTERS = 3
UP_SECONDS = 20.0


class Cluster(ContextStack):
    """Masters that share the slots, and a replica for each if wanted; a context manager."""

    def __init__(
        self, binary: str, folder: Path, *, replicas: bool = False, tls: tuple[Path, Path] | None = None
    ) -> None:
        """`tls`: the files of a certificate and its key, for connections between nodes and with clients."""
        super().__init__()
        self._tls = tls
        self._tls_ports: dict[int, int] = {}
        self._binary = binary
        self._folder = folder
        self._count = MASTERS * (2 if replicas else 1)
        self.servers: list[RedisServer] = []

    @property
    def url(self) -> str:
        scheme = "redis+clusters" if self._tls else "redis+cluster"
        return f"{scheme}://" + ",".join(f"127.0.0.1:{self.port(server)}" for server in self.servers)

    def port(self, server: RedisServer) -> int:
        """Return the port for clients."""
        return self._tls_ports.get(server.port, server.port)

    def admin(self, server: RedisServer) -> "redis.Redis[bytes]":
        """Return a client of one node; closed with the cluster."""
        client: redis.Redis[bytes] = redis.Redis(port=server.port, protocol=2, socket_timeout=30)
        self._stack.callback(client.close)
        return client

    def owner(self, tag: str) -> RedisServer:
        """Return the server that owns the slot of the hash tag."""
        slot = key_slot(tag.encode())
        for first, last, master, *_ in self._slots(next(each for each in self.servers if each.running)):
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == master[1])
        raise AssertionError(f"nobody has slot {slot}")

    def move(self, tag: str, target: RedisServer) -> None:
        """Move the slot of this hash tag, with all its keys, to another master."""
        slot, source = key_slot(tag.encode()), self.owner(tag)
        here, there = self.admin(source), self.admin(target)
        names = {each: self.admin(each).execute_command("CLUSTER", "MYID") for each in (source, target)}
        there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
        here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
        while keys := here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            here.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for each in (there, here):
            each.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[target])

    def _open(self) -> None:
        for number in range(self._count):
            folder = self._folder / f"node{number}"
            folder.mkdir()
            options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--databases", "1"]
            # A new replica gets its data at once, and the first ping of its master makes others list the replica.
            options += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
            if self._tls is not None:
                port = free_port(below=65535 - 10000)  # nodes talk to each other on this port plus 10,000
                certificate, key = map(str, self._tls)
                options += ["--tls-cluster", "yes", "--tls-port", str(port), "--tls-auth-clients", "no"]
                options += ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate]
            server = RedisServer(self._binary, folder, *options)
            self._stack.callback(server.close)
            if self._tls is not None:
                self._tls_ports[server.port] = port
            self.servers.append(server)
        masters = self.servers[:MASTERS]
        admins = [self.admin(server) for server in self.servers]
        width = REDIS_CLUSTER_HASH_SLOTS // MASTERS
        for number, admin in enumerate(admins[:MASTERS]):
            last = REDIS_CLUSTER_HASH_SLOTS - 1 if number == MASTERS - 1 else (number + 1) * width - 1
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", number * width, last)
        for admin in admins[1:]:
            admin.execute_command("CLUSTER", "MEET", "127.0.0.1", self.port(masters[0]))
        wait_until(lambda: all(self._up(admin) for admin in admins), UP_SECONDS, "the cluster to be up")
        for number, admin in enumerate(admins[MASTERS:]):
            name = admins[number].execute_command("CLUSTER", "MYID")
            wait_until(lambda a=admin, n=name: self._replicate(a, n), UP_SECONDS, "a replica of a master")
        if len(admins) > MASTERS:
            wait_until(
                lambda: all(len(each) == 4 for each in self._slots(masters[0])), UP_SECONDS, "a replica for each master"
            )

    def _up(self, admin: "redis.Redis[bytes]") -> bool:
        lines = admin.execute_command("CLUSTER", "INFO").split()
        info = dict(line.split(b":") for line in lines)
        known = int(info[b"cluster_known_nodes"])
        return info[b"cluster_state"] == b"ok" and known == self._count and info[b"cluster_size"] == b"%d" % MASTERS

    @staticmethod
    def _replicate(admin: "redis.Redis[bytes]", name: bytes) -> bool:
        try:
            admin.execute_command("CLUSTER", "REPLICATE", name)
        except redis.ResponseError:
            return False  # this node does not know the other one yet
        return True

    def _slots(self, server: RedisServer) -> list[list[object]]:
        admin = self.admin(server)
        slots: list[list[object]] = admin.execute_command("CLUSTER", "SLOTS")  # the raw reply
        return slots
