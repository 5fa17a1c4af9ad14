"""The Lua scripts: each touches one key, and time in them is Redis's own.

Those that begin with `#!lua` are refused as a whole when Redis has no memory left; the others make room.
"""

from __future__ import annotations

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# KEYS[1] stream of an ordinary channel. ARGV: payload, capacity, expiry in ms. 1 if sent, 0 if full.
SEND = (
    "#!lua\n"
    + _NOW
    + """
redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f', now - ARGV[3]))
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('XADD', KEYS[1], '*', 'm', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
)

# KEYS[1] stream of an ordinary channel. ARGV: expiry in ms. The oldest unexpired payload, taken out, or nil.
RECEIVE = (
    _NOW
    + """
redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f', now - ARGV[1]))
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if #first == 0 then return nil end
redis.call('XDEL', KEYS[1], first[1][1])
if redis.call('XLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[1]) end
return first[1][2][2]
"""
)

# KEYS[1] sorted set of a group. ARGV: member, lifetime in s. Scores are the end of the membership, in ms.
GROUP_ADD = (
    "#!lua\n"
    + _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2] * 1000), ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
"""
)

# KEYS[1] sorted set of a group. The members whose membership has not ended.
GROUP_MEMBERS = (
    _NOW
    + """
return redis.call('ZRANGE', KEYS[1], string.format('(%.0f', now), '+inf', 'BYSCORE')
"""
)

# KEYS[1] stream of a shared channel, ARGV: entry id. Deletes the entry if nobody has claimed it.
WITHDRAW = """
local groups = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('XINFO', 'GROUPS', KEYS[1]) or {}
for _ = 1, #groups do
  if #redis.call('XPENDING', KEYS[1], 'workers', ARGV[1], ARGV[1], 1) > 0 then return 0 end
end
return redis.call('XDEL', KEYS[1], ARGV[1])
"""

# KEYS[1] stream of a shared channel. ARGV: ids of claimed entries. Puts them back, for another claimant, at the end.
HAND_BACK = """
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  if redis.call('XACK', KEYS[1], 'workers', id) == 1 and entry then
    redis.call('XADD', KEYS[1], '*', unpack(entry[2]))
    redis.call('XDEL', KEYS[1], id)
  end
end
"""

# KEYS[1] stream of a shared channel. ARGV: consumer. Puts back what it has claimed and not dealt with; ends it.
LEAVE = """
for _, pending in ipairs(redis.call('XPENDING', KEYS[1], 'workers', '-', '+', 1000, ARGV[1])) do
  local entry = redis.call('XRANGE', KEYS[1], pending[1], pending[1])[1]
  redis.call('XACK', KEYS[1], 'workers', pending[1])
  if entry then
    redis.call('XADD', KEYS[1], '*', unpack(entry[2]))
    redis.call('XDEL', KEYS[1], pending[1])
  end
end
if #redis.call('XPENDING', KEYS[1], 'workers', '-', '+', 1, ARGV[1]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'workers', ARGV[1])
end
"""
