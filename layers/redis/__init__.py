"""The Redis layer: channels, mailboxes and groups between processes, on Redis 7.0 or later, or Valkey.

`address` says where Redis is, `connection` speaks RESP to it, `link` keeps a connection alive. On links stand the
`writer` (everything that is written, coalesced), the `mailbox` reader and the `claims` reader. `bus` joins them for a
server, and its `presence` keeps the lease. `layer` is what apps see; an `attachment` is what it has in one event loop:
the writer, the `receiver` of ordinary channels, and the `epoch` of the store. `local_channels` are the process-local
ones, whose `inbox` is filled in an `own_loop` of the layer. `entries` pack all that is written, and by `sealing`
encrypt it.
"""

from asgibus.layers.redis.layer import RedisChannelLayer

__all__ = ["RedisChannelLayer"]
