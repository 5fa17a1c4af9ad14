"""The Lua scripts: each touches one key, and time in them is Redis's own.

Those that begin with `#!lua` are refused as a whole when Redis has no memory left; the others make room, or begin with
a write that needs none, behind which Redis allows the others.
"""

from __future__ import annotations

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# The keys of an ordinary channel, which lie in one slot; all of its scripts get those of them that they use, in this
# order: the stream of its messages, with the payload and, when it is not the first, the attempt; the sorted set of the
# delayed ones, scores are when they are due, members `id:attempt:payload`; a stream that wakes readers for those; the
# hash of those that were taken and are not acknowledged, `consumer` + `attempt:payload` by id; the hash of its counts.

# KEYS: messages, delayed, wake, counts. ARGV: payload, capacity or -1 for any, expiry, delay, an id for a delayed one,
# for how long the counts are kept; times in ms. 1 if sent, 0 if the channel is full.
SEND = (
    "#!lua\n"
    + _NOW
    + """
local expiry, delay = tonumber(ARGV[3]), tonumber(ARGV[4])
local capacity = tonumber(ARGV[2])
local function full() return redis.call('XLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2]) >= capacity end
redis.call('PEXPIRE', KEYS[4], ARGV[6])
if capacity >= 0 and full() then
  redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f', now - expiry + 1))
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - expiry))
  if full() then
    redis.call('HINCRBY', KEYS[4], 'full', 1)
    return 0
  end
end
if delay > 0 then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + delay), ARGV[5] .. ':1:' .. ARGV[1])
  redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), delay + expiry))
  redis.call('XADD', KEYS[3], 'MAXLEN', 1, '*', 'w', '')
  redis.call('PEXPIRE', KEYS[3], math.max(redis.call('PTTL', KEYS[3]), delay + expiry))
else
  redis.call('XADD', KEYS[1], '*', 'm', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
redis.call('HINCRBY', KEYS[4], 'sent', 1)
return 1
"""
)

# KEYS: messages, delayed, wake, taken. ARGV: expiry in ms, how many at most, the consumer ('' if they need no
# acknowledgement), how long it has at most to acknowledge them. The last id of the stream that wakes readers, ms until
# there is another one to be taken (or -1), and for each message that was taken out, oldest first: id, attempt, payload.
# An empty stream stays for a second: one that is made anew at once would give the ids of what was taken again.
TAKE = (
    _NOW
    + """
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if oldest and tonumber(string.match(oldest[1], '^%d+')) <= now - ARGV[1] then
  redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f', now - ARGV[1] + 1))
  oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
end
local delayed = redis.call('EXISTS', KEYS[2]) == 1
if delayed then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - ARGV[1])) end
local woken = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
local reply = {woken and woken[1] or '0', -1}
for n = 1, tonumber(ARGV[2]) do
  local first = oldest
  if n > 1 then first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1] end
  local due = delayed and redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES') or {}
  local score = tonumber(due[2])
  local id, attempt, payload
  if score and score <= now and not (first and tonumber(string.match(first[1], '^%d+')) <= score) then
    redis.call('ZREM', KEYS[2], due[1])
    id, attempt, payload = string.match(due[1], '^(%w+):(%d+):(.*)$')
  elseif first then
    redis.call('XDEL', KEYS[1], first[1])
    id, attempt, payload = first[1], first[2][4] or '1', first[2][2]
  else
    break
  end
  if ARGV[3] ~= '' then
    redis.call('HSET', KEYS[4], id, ARGV[3] .. attempt .. ':' .. payload)
    redis.call('PEXPIRE', KEYS[4], ARGV[4])
  end
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = id, attempt, payload
end
local next = delayed and redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
if next then reply[2] = math.max(0, tonumber(next) - now) end
if redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('PEXPIRE', KEYS[1], 1000)
else
  reply[2] = 0
end
return reply
"""
)

# KEYS: messages, delayed, wake, taken. ARGV: expiry and delay in ms, then ids. Puts back what was taken, for its next
# attempt; how many that were.
GIVE_BACK = (
    _NOW
    + """
local back = 0
for i = 3, #ARGV do
  local value = redis.call('HGET', KEYS[4], ARGV[i])
  if value then
    redis.call('HDEL', KEYS[4], ARGV[i])
    back = back + 1
    local attempt, payload = string.match(value, '^[^!]*!(%d+):(.*)$')
    attempt = string.format('%d', attempt + 1)
    if tonumber(ARGV[2]) > 0 then
      local id = string.gsub(ARGV[i], '-', 'x')
      redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[2]), id .. ':' .. attempt .. ':' .. payload)
      redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), ARGV[2] + ARGV[1]))
      redis.call('XADD', KEYS[3], 'MAXLEN', 1, '*', 'w', '')
      redis.call('PEXPIRE', KEYS[3], math.max(redis.call('PTTL', KEYS[3]), ARGV[2] + ARGV[1]))
    else
      redis.call('XADD', KEYS[1], '*', 'm', payload, 'a', attempt)
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
  reply[#reply + 1], reply[#reply + 2] = all[i], string.match(all[i + 1], '^[^!]*!')
end
return reply
"""

# KEYS: messages, delayed, counts. ARGV: expiry in ms. How many were sent, how many wait, for how many ms the oldest
# could have been received, how often the channel was full. Changes nothing.
STATISTICS = (
    _NOW
    + """
local gone = now - ARGV[1]
local entries = redis.call('XRANGE', KEYS[1], string.format('%.0f', gone + 1), '+')
local waiting = redis.call('ZCOUNT', KEYS[2], string.format('(%.0f', gone), '+inf')
local oldest = now
if entries[1] then oldest = tonumber(string.match(entries[1][1], '^%d+')) end
local due = redis.call('ZRANGE', KEYS[2], string.format('(%.0f', gone), '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
if due[2] then oldest = math.min(oldest, tonumber(due[2])) end
local counts = redis.call('HMGET', KEYS[3], 'sent', 'full')
return {tonumber(counts[1] or 0), #entries + waiting, now - oldest, tonumber(counts[2] or 0)}
"""
)

# KEYS[1] stream of a shared channel. As STATISTICS: how many were offered, how many are not claimed, for how long the
# oldest of these has waited.
SHARED_STATISTICS = (
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return {0, 0, 0} end
local stream = redis.call('XINFO', 'STREAM', KEYS[1])
local added, last, claimed = 0, '0-0', 0
for i = 1, #stream, 2 do
  if stream[i] == 'entries-added' then added = stream[i + 1] end
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  for i = 1, #group, 2 do
    if group[i] == 'last-delivered-id' then last = group[i + 1] end
    if group[i] == 'pending' then claimed = group[i + 1] end
  end
end
local first = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)[1]
local age = first and now - tonumber(string.match(first[1], '^%d+')) or 0
return {added, redis.call('XLEN', KEYS[1]) - claimed, math.max(0, age)}
"""
)

# KEYS[1] stream of a mailbox, KEYS[2] hash of how many messages its process-local channels hold, if it counts them.
# ARGV: entry, then the local part and the capacity of each channel that the entry is for, in its order. Adds the entry,
# and to it which channels it is not for because they are full: their places in that order, from 0, which are returned.
# If that is all of them, it adds nothing. Nil if there is no such mailbox.
SEND_LOCAL = """#!lua
if redis.call('EXISTS', KEYS[1]) == 0 then return nil end
local full = {}
if redis.call('EXISTS', KEYS[2]) == 1 then
  for start = 2, #ARGV, 2000 do
    local parts = {}
    for i = start, math.min(start + 1998, #ARGV), 2 do parts[#parts + 1] = ARGV[i] end
    local counts, fields = redis.call('HMGET', KEYS[2], unpack(parts)), {}
    for n, part in ipairs(parts) do
      local count = tonumber(counts[n] or 0)
      if count >= tonumber(ARGV[start + 2 * n - 1]) then
        full[#full + 1] = start / 2 + n - 2
      else
        fields[#fields + 1], fields[#fields + 2] = part, count + 1
      end
    end
    if #fields > 0 then redis.call('HSET', KEYS[2], unpack(fields)) end
  end
end
if #full * 2 < #ARGV - 1 then
  if #full == 0 then
    redis.call('XADD', KEYS[1], '*', 'b', ARGV[1])
  else
    redis.call('XADD', KEYS[1], '*', 'b', ARGV[1], 'full', table.concat(full, ','))
  end
end
return full
"""

# KEYS[1] the hash of SEND_LOCAL. ARGV: local parts of channels, and for each how many of its messages were received, or
# have expired; at most 1000.
RECEIVED = """
local parts, fields, empty = {}, {}, {}
for i = 1, #ARGV, 2 do parts[#parts + 1] = ARGV[i] end
local counts = redis.call('HMGET', KEYS[1], unpack(parts))
for n, part in ipairs(parts) do
  local count = tonumber(counts[n] or 0) - ARGV[2 * n]
  if count > 0 then
    fields[#fields + 1], fields[#fields + 2] = part, count
  else
    empty[#empty + 1] = part
  end
end
if #empty > 0 then redis.call('HDEL', KEYS[1], unpack(empty)) end
if #fields > 0 then redis.call('HSET', KEYS[1], unpack(fields)) end
"""

# KEYS[1] sorted set of a group. ARGV: member, lifetime in s. Scores are the end of the membership, in ms.
GROUP_ADD = (
    "#!lua\n"
    + _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2] * 1000), ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] * 1000))
return 1
"""
)

# KEYS[1] sorted set of a group. The time in ms, and the members whose membership has not ended.
GROUP_MEMBERS = (
    _NOW
    + """
return {now, redis.call('ZRANGE', KEYS[1], string.format('(%.0f', now), '+inf', 'BYSCORE')}
"""
)

# KEYS[1] stream of a shared channel. ARGV: id of an entry. Deletes it if nobody has claimed it.
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

# KEYS[1] stream of a shared channel. The names of those who claim or claimed from it.
CONSUMERS = """
local groups = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('XINFO', 'GROUPS', KEYS[1]) or {}
if #groups == 0 then return {} end
local names = {}
for n, each in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], 'workers')) do names[n] = each[2] end
return names
"""

# KEYS[1] stream of a shared channel. ARGV: consumer. Ends it if nothing is pending under its name.
END_CONSUMER = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if #redis.call('XPENDING', KEYS[1], 'workers', '-', '+', 1, ARGV[1]) > 0 then return 0 end
return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'workers', ARGV[1])
"""

# KEYS[1] stream of a shared channel. ARGV: consumer, limit, other consumers. Gives the consumer what is pending under
# the names of the others, and ends those; 1 if there may be more than the limit allowed.
TAKE_OVER = """
local room = tonumber(ARGV[2])
for i = 3, #ARGV do
  if room == 0 then return 1 end
  local pending = redis.call('XPENDING', KEYS[1], 'workers', '-', '+', room, ARGV[i])
  if #pending > 0 then
    local ids = {}
    for n, each in ipairs(pending) do ids[n] = each[1] end
    redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], 0, unpack(ids))
    room = room - #ids
  end
  if room > 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'workers', ARGV[i]) end
end
return room == 0 and 1 or 0
"""

# KEYS[1] stream of a shared channel. ARGV: an id before all of these offers, how many entries to look through, then for
# each offer its id or '', and its payload. The ids under which they are there, claimed or not; '' for those
# that are not, '?' if there was more than what was looked through.
FIND_OFFERS = """
local ids, there, none = {}, nil, ''
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  if id == '' or #redis.call('XRANGE', KEYS[1], id, id) == 0 then
    if not there then
      there = {}
      local entries = redis.call('XREVRANGE', KEYS[1], '+', ARGV[1], 'COUNT', ARGV[2])
      for _, entry in ipairs(entries) do there[entry[2][2]] = entry[1] end
      if #entries == tonumber(ARGV[2]) then none = '?' end
    end
    id = there[ARGV[i + 1]] or none
  end
  ids[#ids + 1] = id
end
return ids
"""

# KEYS[1] sorted set of the processes: mailboxes, scores are the ends of their leases in ms. Three members more:
# `beaten`, when anybody was last here; `grace`, until when it is unknown who is absent and who has not been here yet;
# and, with the score +inf, `epoch:` with the time at which this set was begun.
# ARGV: mailbox, length of a lease, silence after which there is grace, length of the grace, how long an ended lease is
# listed, and how long its process is expected back; all in ms. Renews the lease. When nobody was here for long, that
# was the store's fault or everybody's: the leases that ran when somebody was last here are lengthened over the grace.
# When the clock was put back, no lease may run longer from now than one that begins now, or than the grace.
# Returns: whether the lease had ended, whether there is grace, now, ms until a lease ends that is not renewed (or -1),
# the mailboxes whose leases run, those whose leases have ended, those of these not expected back, and the epoch.
RENEW = (
    _NOW
    + """
local function text(number) return string.format('%.0f', number) end
local beaten = tonumber(redis.call('ZSCORE', KEYS[1], 'beaten') or 0)
local grace = tonumber(redis.call('ZSCORE', KEYS[1], 'grace') or 0)
local own = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
local silent = now - beaten > tonumber(ARGV[3])
if silent then grace = now + ARGV[4] end
if grace > now + ARGV[4] then
  grace = now + ARGV[4]
  redis.call('ZADD', KEYS[1], text(grace), 'grace')
end
local longest = text(math.max(now + ARGV[2], grace))
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], '(' .. longest, '+inf', 'BYSCORE')) do
  if string.sub(member, -1) == '!' then redis.call('ZADD', KEYS[1], longest, member) end
end
local forgotten = grace > now - ARGV[5] and -1 or now - ARGV[5]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(forgotten))
if silent then
  for _, member in ipairs(redis.call('ZRANGE', KEYS[1], '(' .. text(beaten), '+inf', 'BYSCORE')) do
    redis.call('ZADD', KEYS[1], 'GT', text(grace), member)
  end
  redis.call('ZADD', KEYS[1], text(grace), 'grace')
end
redis.call('ZADD', KEYS[1], text(now + ARGV[2]), ARGV[1], text(now), 'beaten')
redis.call('PEXPIRE', KEYS[1], 86400000)
if beaten == 0 then redis.call('ZADD', KEYS[1], '+inf', 'epoch:' .. text(now)) end
local epoch = redis.call('ZRANGE', KEYS[1], '+inf', '+inf', 'BYSCORE')[1] or ''
local live, ended, gone, first = {}, {}, {}, -1
local members = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #members, 2 do
  local member, score = members[i], tonumber(members[i + 1])
  if string.sub(member, -1) == '!' then
    if score <= now then
      ended[#ended + 1] = member
      if score <= now - ARGV[6] then gone[#gone + 1] = member end
    else
      live[#live + 1] = member
      if first == -1 and member ~= ARGV[1] then first = score - now end
    end
  end
end
return {own <= (silent and beaten or now) and 1 or 0, grace > now and 1 or 0, now, first, live, ended, gone, epoch}
"""
)

# KEYS[1] as RENEW. ARGV: mailbox. Takes it out, and the whole set with the last one: then it returns 1.
END_LEASE = """
redis.call('ZREM', KEYS[1], ARGV[1])
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if string.sub(member, -1) == '!' then return 0 end
end
return redis.call('DEL', KEYS[1])
"""

# KEYS[1] as RENEW. ARGV: mailbox. Ends its lease if it runs; the mailboxes of those that were alive, it among them.
DECLARE_DEAD = (
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '-1')
local live = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], string.format('(%.0f', now), '+inf', 'BYSCORE')) do
  if string.sub(member, -1) == '!' then live[#live + 1] = member end
end
redis.call('ZADD', KEYS[1], 'XX', 'LT', string.format('%.0f', now), ARGV[1])
return live
"""
)

# KEYS[1] sorted set of a group. ARGV: member, lifetime of a membership in s, a time in ms. Takes the member out unless
# it has joined again since that time.
GROUP_BURY = """
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if ends and ends - ARGV[2] * 1000 <= tonumber(ARGV[3]) then redis.call('ZREM', KEYS[1], ARGV[1]) end
"""
