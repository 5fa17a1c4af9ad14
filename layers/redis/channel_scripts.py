"""The Lua scripts of ordinary channels. Time in them is Redis's own, in ms, and all keys of a channel lie in one slot.

The messages are a list; what lies in it is `ms:attempt:payload`, with the time at which it was put there. At its head
there may be an empty item, the *token*: whoever pops it looks when the next delayed message is due, and waits no longer
than that, or puts it back. The delayed messages are a sorted set, scores are when they are due, members
`id:attempt:payload`. What was taken and is not acknowledged is a hash, `consumer` + `attempt:payload` by id.
"""

from __future__ import annotations

from asgibus.layers.redis.scripts import NOW

# The oldest message that has not expired; drops those before it, and the token: then that is set.
_OLDEST = """
local token
local function oldest(expiry)
  while true do
    local item = redis.call('LINDEX', KEYS[1], 0)
    if not item then return nil end
    if item == '' then
      token = true
    elseif (tonumber(string.match(item, '^(%d+):%d+:')) or now) > now - expiry then
      return item
    end
    redis.call('LPOP', KEYS[1])
  end
end
"""

# Puts the token there, as long as there are delayed messages. The list may consist of nothing else.
_WAKE = """
local function wake()
  if redis.call('LINDEX', KEYS[1], 0) ~= '' then redis.call('LPUSH', KEYS[1], '') end
  redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), redis.call('PTTL', KEYS[2])))
end
"""

# KEYS: messages, delayed, counts. ARGV: payload, expiry, for how long the counts are kept, capacity. 1 if sent; nil if
# the channel is full at first sight: then SEND_SLOWLY decides. It is short because Redis hashes it each time, and each
# command in it costs as much as the rest.
SEND = """#!lua
local time = redis.call('TIME')
local item = string.format('%.0f:1:', time[1] * 1000 + math.floor(time[2] / 1000)) .. ARGV[1]
if redis.call('RPUSH', KEYS[1], item) + redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[4]) then
  redis.call('RPOP', KEYS[1])
  return nil
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('HINCRBY', KEYS[3], 'sent', 1)
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return 1
"""

# The same, and for a delayed message its delay and an id. Drops what has expired for room; 0 if the channel is full.
SEND_SLOWLY = (
    "#!lua\n"
    + NOW
    + _OLDEST
    + _WAKE
    + """
local expiry, capacity = tonumber(ARGV[2]), tonumber(ARGV[4])
local function full() return redis.call('LLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2]) >= capacity end
redis.call('PEXPIRE', KEYS[3], ARGV[3])
if full() then
  oldest(expiry)
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - expiry))
  local is_full = full()
  if token then wake() end
  if is_full then
    redis.call('HINCRBY', KEYS[3], 'full', 1)
    return 0
  end
end
if ARGV[5] then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[5]), ARGV[6] .. ':1:' .. ARGV[1])
  redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), ARGV[5] + expiry))
  wake()
else
  redis.call('RPUSH', KEYS[1], string.format('%.0f:1:', now) .. ARGV[1])
  redis.call('PEXPIRE', KEYS[1], expiry)
end
redis.call('HINCRBY', KEYS[3], 'sent', 1)
return 1
"""
)

# KEYS: messages, delayed, taken. ARGV: expiry, how many at most; and if they need an acknowledgement, the consumer, how
# long it has at most for that, and how their ids begin. Drops what has expired, and the token. Now; ms until a delayed
# message is due, or -1; and for each message that was taken out, oldest first, its id or '', and the item. If that is
# any, and others are delayed, the token is put back; else the caller has it.
TAKE = (
    NOW
    + _OLDEST
    + _WAKE
    + """
local expiry = tonumber(ARGV[1])
local reply = {now, -1}
local delayed = redis.call('EXISTS', KEYS[2]) == 1
if delayed then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - expiry)) end
local first = oldest(expiry)
for n = 1, tonumber(ARGV[2]) do
  local due = delayed and redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES') or {}
  local score = tonumber(due[2])
  local id, item = '', first
  if score and score <= now and not (first and (tonumber(string.match(first, '^(%d+):')) or 0) <= score) then
    redis.call('ZREM', KEYS[2], due[1])
    item = string.format('%.0f', score) .. (string.match(due[1], '^%w+(:.*)$') or ':1:')
  elseif first then
    redis.call('LPOP', KEYS[1])
    first = oldest(expiry)
  else
    break
  end
  if ARGV[3] then
    id = ARGV[5] .. 'x' .. n
    redis.call('HSET', KEYS[3], id, ARGV[3] .. (string.match(item, '^%d+:(%d+:.*)$') or '1:' .. item))
    redis.call('PEXPIRE', KEYS[3], ARGV[4])
  end
  reply[#reply + 1], reply[#reply + 2] = id, item
end
local next = delayed and redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
if next then
  reply[2] = math.max(0, tonumber(next) - now)
  if #reply > 2 then wake() end
end
return reply
"""
)

# KEYS: messages, delayed. Puts back the token.
PASS_ON = (
    _WAKE
    + """
if redis.call('EXISTS', KEYS[2]) == 1 then wake() end
"""
)

# KEYS: messages. ARGV: expiry, then items that were taken and not read, oldest first. Puts them back at the head.
RETURN = """
local token = redis.call('LINDEX', KEYS[1], 0) == ''
if token then redis.call('LPOP', KEYS[1]) end
for i = #ARGV, 2, -1 do redis.call('LPUSH', KEYS[1], ARGV[i]) end
if token then redis.call('LPUSH', KEYS[1], '') end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""

# KEYS: messages, delayed, taken. ARGV: expiry and delay in ms, 1 if what was taken was tried (0: it could not be read),
# then ids. Puts back what was taken, for its next attempt; how many that were.
GIVE_BACK = (
    NOW
    + _WAKE
    + """
local back = 0
for i = 4, #ARGV do
  local value = redis.call('HGET', KEYS[3], ARGV[i])
  if value then
    redis.call('HDEL', KEYS[3], ARGV[i])
    back = back + 1
    local attempt, payload = string.match(value, '^[^!]*!(%d+):(.*)$')
    attempt = string.format(':%d:', attempt + ARGV[3])
    if tonumber(ARGV[2]) > 0 then
      redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[2]), ARGV[i] .. attempt .. payload)
      redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), ARGV[2] + ARGV[1]))
      wake()
    else
      redis.call('RPUSH', KEYS[1], string.format('%.0f', now) .. attempt .. payload)
      redis.call('PEXPIRE', KEYS[1], ARGV[1])
    end
  end
end
return back
"""
)

# KEYS[1] the hash of what was taken from a channel. The ids and consumers of all of it, one after the other.
TAKEN = """
local reply = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  reply[#reply + 1], reply[#reply + 2] = all[i], string.match(all[i + 1], '^[^!]*!') or ''
end
return reply
"""

# KEYS: messages, delayed, counts. ARGV: expiry in ms. How many were sent, how many wait, for how many ms the oldest
# could have been received, how often the channel was full. Changes nothing.
STATISTICS = (
    NOW
    + """
local gone, oldest = now - ARGV[1], now
local function made(place)
  return tonumber(string.match(redis.call('LINDEX', KEYS[1], place), '^(%d+):%d+:')) or now
end
local length = redis.call('LLEN', KEYS[1])
local first, last = redis.call('LINDEX', KEYS[1], 0) == '' and 1 or 0, length
while first < last do
  local middle = math.floor((first + last) / 2)
  if made(middle) > gone then last = middle else first = middle + 1 end
end
if first < length then oldest = made(first) end
local waiting = redis.call('ZCOUNT', KEYS[2], string.format('(%.0f', gone), '+inf')
local due = redis.call('ZRANGE', KEYS[2], string.format('(%.0f', gone), '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
if due[2] then oldest = math.min(oldest, tonumber(due[2])) end
local counts = redis.call('HMGET', KEYS[3], 'sent', 'full')
return {tonumber(counts[1] or 0), length - first + waiting, now - oldest, tonumber(counts[2] or 0)}
"""
)
