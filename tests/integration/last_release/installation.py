"""A folder in which processes find asgibus, of one release at a time."""

from pathlib import Path

import redis

import asgibus
from asgibus.layers.codec import unpack
from support.processes import environment

TODAY = Path(asgibus.__file__).parent


class Installation:
    """A folder with one release of asgibus at a time, which is put before all others."""

    def __init__(self, folder: Path) -> None:
        self._link = folder / "asgibus"
        folder.mkdir()
        self.env = {"PYTHONPATH": f"{folder}:{environment()['PYTHONPATH']}"}

    def install(self, release: Path) -> None:
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(release)


def releases(redis_url: str) -> dict[str, str]:
    """Return the release of each process on the bus, by its mailbox."""
    with redis.Redis.from_url(redis_url) as admin:
        entries = admin.hgetall("asgibus:releases")
    return {mailbox.decode(): unpack(entry)["release"] for mailbox, entry in entries.items()}
