"""A network that loses packets: a namespace, and a link to it that can swallow everything in both directions.

It needs root (or CAP_NET_ADMIN) and iproute2. A lost packet causes no error at any socket: TCP notices only
silence, as when a cable is pulled in the middle of a network.
"""

import itertools
import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

NET = (198, 18)  # 198.18.0.0/15 is set aside for tests of networks (RFC 2544)
NOBODY = "02:00:00:00:00:99"  # a hardware address that no device has

_count = itertools.count()


class Namespace:
    """A network namespace with one link to it; a context manager. Programs inside are started with `command`."""

    def __init__(self) -> None:
        number = (os.getpid() * 8 + next(_count)) % (1 << 15)
        upper, lower = divmod(number * 4, 256)
        net = f"{NET[0]}.{NET[1] + upper // 256}.{upper % 256}"
        self.name = f"asgibus-{os.getpid()}-{number}"
        self.address = f"{net}.{lower + 2}"
        """Where servers inside listen; only this machine reaches it."""
        self._near_address = f"{net}.{lower + 1}"
        self._near, self._far = f"abn{number}", f"abf{number}"
        self.lossy = False

    def __enter__(self) -> Self:
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name)
            _ip("addr", "add", f"{self._near_address}/30", "dev", self._near)
            _ip("link", "set", self._near, "up")
            _ip("-n", self.name, "addr", "add", f"{self.address}/30", "dev", self._far)
            _ip("-n", self.name, "link", "set", self._far, "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the namespace; processes inside lose their network."""
        subprocess.run(["ip", "link", "del", self._near], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)

    def command(self, *args: str) -> list[str]:
        """Return the command that runs `args` inside, as the same process."""
        return ["ip", "netns", "exec", self.name, *args]

    def lose_packets(self) -> None:
        """Lose every packet in both directions: each end sends to a link-layer address that does not exist."""
        for end, peer, device in self._ends():
            _ip(*end, "neigh", "replace", peer, "lladdr", NOBODY, "dev", device, "nud", "permanent")
        self.lossy = True

    def heal(self) -> None:
        """Let packets arrive again."""
        for end, peer, device in self._ends():
            _ip(*end, "neigh", "del", peer, "dev", device)
        self.lossy = False

    def _ends(self) -> tuple[tuple[list[str], str, str], ...]:
        return ([], self.address, self._near), (["-n", self.name], self._near_address, self._far)


def why_not() -> str | None:
    """Return None if network namespaces can be made here, else the reason."""
    if shutil.which("ip") is None:
        return "there is no `ip` command (iproute2)"
    if os.geteuid() != 0:
        return "making a network namespace needs root"
    try:
        with Namespace():
            return None
    except OSError as error:
        return str(error)


def _ip(*args: str) -> None:
    done = subprocess.run(["ip", *args], check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(args)}: {done.stderr.strip()}")
