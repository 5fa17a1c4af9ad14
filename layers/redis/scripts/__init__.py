"""Lua scripts, one `.lua` file each. Every script touches keys of one hash slot, and reads the time from Redis.

A script that begins with `#!lua` is refused as a whole when Redis is out of memory. The others free memory, or begin
with a write that needs none, after which Redis allows further writes.

In a script, the line `-- include now.lua` stands for the contents of that file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_FOLDER = Path(__file__).parent  # importlib.resources would take 6 ms of a process's start-up
_INCLUDE = "-- include "


def load(name: str) -> str:
    """Return the Lua source of `<name>.lua`, without comments and indentation: Redis hashes it at each call."""
    lines = []
    for line in _FOLDER.joinpath(f"{name}.lua").read_text(encoding="utf-8").splitlines():
        code = line.strip()
        if code.startswith(_INCLUDE):
            lines.append(load(code.removeprefix(_INCLUDE).removesuffix(".lua")))
        elif code and not code.startswith("--"):
            lines.append(code)
    return "\n".join(lines)


# Work queues.
SHARED_STATISTICS: Final = load("shared_statistics")
REPEAT_OFFERS: Final = load("repeat_offers")
WITHDRAW: Final = load("withdraw")
REQUEUE: Final = load("requeue")
RELEASE: Final = load("release")
CONSUMERS: Final = load("consumers")
RELEASE_CONSUMER: Final = load("release_consumer")
REMOVE_CONSUMER: Final = load("remove_consumer")
TAKE_OVER: Final = load("take_over")

# Offers by key.
OFFER_BY_KEY: Final = load("offer_by_key")
STOP_CLAIMING: Final = load("stop_claiming")

# Leases.
RENEW_LEASE: Final = load("renew_lease")
EXTEND_LEASE: Final = load("extend_lease")
LEASE_RUNS: Final = load("lease_runs")
END_LEASE: Final = load("end_lease")
DECLARE_DEAD: Final = load("declare_dead")

# Groups.
GROUP_ADD: Final = load("group_add")
GROUP_MEMBERS: Final = load("group_members")
GROUP_REMOVE_DEAD: Final = load("group_remove_dead")

# Presence.
PRESENCE_WRITE: Final = load("presence_write")
PRESENCE_DROP: Final = load("presence_drop")
WILL_WRITE: Final = load("will_write")
WILL_TAKE: Final = load("will_take")
WILLS_TAKE: Final = load("wills_take")

# Ordinary channels.
CHANNEL_SEND: Final = load("channel_send")
CHANNEL_SEND_CHECKED: Final = load("channel_send_checked")
CHANNEL_TAKE: Final = load("channel_take")
CHANNEL_PUT_BACK: Final = load("channel_put_back")
CHANNEL_GIVE_BACK: Final = load("channel_give_back")
CHANNEL_TAKEN: Final = load("channel_taken")
CHANNEL_STATISTICS: Final = load("channel_statistics")

# Streams.
STREAM_BEGIN: Final = load("stream_begin")
STREAM_APPEND: Final = load("stream_append")
STREAM_FINISH: Final = load("stream_finish")
STREAM_ORPHAN: Final = load("stream_orphan")
STREAM_PAGE: Final = load("stream_page")
STREAM_KEEP: Final = load("stream_keep")
STREAM_CANCEL: Final = load("stream_cancel")
STREAM_DELETE: Final = load("stream_delete")

DROP_OTHER_TYPE: Final = load("drop_other_type")
