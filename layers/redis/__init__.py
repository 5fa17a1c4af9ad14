"""The Redis layer: channels, mailboxes and groups between processes, on Redis 7.0 or later, or Valkey.

`config` says where Redis is, `connection` speaks RESP to it, and `client` stays connected. The `pipeline` writes
everything, the `mailbox` reader and the `work_queue` consumer read. `bus` joins them for a server, and its `heartbeat`
keeps the lease. `layer` is the public class; `store` has what it needs in one event loop. `codec` packs and, with
`encryption`, encrypts all entries.
"""

from asgibus.layers.redis.layer import RedisChannelLayer

__all__ = ["RedisChannelLayer"]
