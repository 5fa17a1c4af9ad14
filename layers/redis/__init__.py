"""The Redis layer: channels, mailboxes and groups between processes, on Redis 7.0 or later, or Valkey.

From the lowest module to the highest:

- `config` reads where Redis is, `client` finds it and stays connected, `codec` packs entries, `encryption` encrypts
  them, `keys` names the keys, and `scripts` has the Lua scripts;
- `pipeline` writes; `mailbox`, `work_queue` and `channels` read and acknowledge; `groups` has the memberships, and
  `redelivery` sends messages again that Redis has lost;
- `heartbeat` keeps the lease of a process, `store` has everything that an event loop needs of one store;
- `bus` is for the servers, `inbox` and `local_channels` have the process-local channels, `layer` is the public class.
"""

from asgibus.layers.redis.layer import RedisChannelLayer

__all__ = ["RedisChannelLayer"]
