"""The Lua scripts: each touches one key, and time in them is Redis's own.

Those that begin with `#!lua` are refused as a whole when Redis has no memory left; the others make room, or begin with
a write that needs none, behind which Redis allows the others.
"""

from __future__ import annotations

NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# KEYS[1] stream of a shared channel. How many were offered, how many are not claimed, for how long the
# oldest of these has waited.
SHARED_STATISTICS = (
    NOW
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
# ARGV: entry, capacity, then the local parts of the channels that the entry is for, in its order. Adds the entry, and
# to it which channels it is not for because they are full: their places in that order, from 0, which are returned.
# If that is all of them, it adds nothing. Nil if there is no such mailbox.
SEND_LOCAL = """#!lua
if redis.call('EXISTS', KEYS[1]) == 0 then return nil end
local full, capacity = {}, tonumber(ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 1 then
  for start = 3, #ARGV, 1000 do
    local last = math.min(start + 999, #ARGV)
    local counts, fields = redis.call('HMGET', KEYS[2], unpack(ARGV, start, last)), {}
    for n, count in ipairs(counts) do
      count = tonumber(count or 0)
      if count >= capacity then
        full[#full + 1] = start + n - 4
      else
        fields[#fields + 1], fields[#fields + 2] = ARGV[start + n - 1], count + 1
      end
    end
    if #fields > 0 then redis.call('HSET', KEYS[2], unpack(fields)) end
  end
end
if #full < #ARGV - 2 then
  if #full == 0 then
    redis.call('XADD', KEYS[1], '*', 'b', ARGV[1])
  else
    redis.call('XADD', KEYS[1], '*', 'b', ARGV[1], 'full', table.concat(full, ','))
  end
end
return full
"""

# The same for one channel, as most messages are: a command in a script costs as much as the rest of it.
SEND_TO_ONE = """#!lua
local counts = redis.call('EXISTS', KEYS[2]) == 1
if counts and redis.call('HINCRBY', KEYS[2], ARGV[3], 1) > tonumber(ARGV[2]) then
  redis.call('HINCRBY', KEYS[2], ARGV[3], -1)
  return {0}
end
if redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', 'b', ARGV[1]) then return {} end
if counts then redis.call('HINCRBY', KEYS[2], ARGV[3], -1) end
return nil
"""

# KEYS[1] the hash of SEND_LOCAL. ARGV: local parts of channels, and for each how many of its messages were received, or
# have expired; at most 1000. A number below 0 is added.
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
if #fields > 0 and redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], unpack(fields)) end
"""

# KEYS[1] as RECEIVED. Takes out the counts of all channels.
NONE_UNREAD = """
for _, part in ipairs(redis.call('HKEYS', KEYS[1])) do
  if part ~= '!' then redis.call('HDEL', KEYS[1], part) end
end
"""

# KEYS[1] sorted set of a group. ARGV: member, lifetime in s. Scores are the end of the membership, in ms.
GROUP_ADD = (
    "#!lua\n"
    + NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2] * 1000), ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), math.ceil(ARGV[2] * 1000)))
return 1
"""
)

# KEYS[1] sorted set of a group. The time in ms, and the members whose membership has not ended.
GROUP_MEMBERS = (
    NOW
    + """
return {now, redis.call('ZRANGE', KEYS[1], string.format('(%.0f', now), '+inf', 'BYSCORE')}
"""
)

# KEYS[1] stream of a shared channel. ARGV: id of an entry. Deletes it if nobody has claimed it; also when a claimant
# has put it back, so that it has another id.
WITHDRAW = """
local groups = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('XINFO', 'GROUPS', KEYS[1]) or {}
local function delete(id)
  for _ = 1, #groups do
    if #redis.call('XPENDING', KEYS[1], 'workers', id, id, 1) > 0 then return -1 end
  end
  return redis.call('XDEL', KEYS[1], id)
end
local deleted = delete(ARGV[1])
if deleted ~= 0 then return math.max(0, deleted) end
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', 1000)) do
  if entry[2][3] == 'since' and entry[2][4] == ARGV[1] then return math.max(0, delete(entry[1])) end
end
return 0
"""

# Puts an entry that was claimed and acknowledged back at the end. Its second field keeps the id that it had at first.
_PUT_BACK = """
local function put_back(id, fields)
  if fields[3] ~= 'since' then
    table.insert(fields, 3, 'since')
    table.insert(fields, 4, id)
  end
  redis.call('XADD', KEYS[1], '*', unpack(fields))
  redis.call('XDEL', KEYS[1], id)
end
"""

# KEYS[1] stream of a shared channel. ARGV: ids of claimed entries. Puts them back, for another claimant, at the end.
HAND_BACK = (
    _PUT_BACK
    + """
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  if redis.call('XACK', KEYS[1], 'workers', id) == 1 and entry then put_back(id, entry[2]) end
end
"""
)

# KEYS[1] stream of a shared channel. ARGV: id of a claimed entry that its claimant cannot read, how often that may be.
# Puts it back, for another claimant, at the end; if that has been too often, deletes it and returns 1.
RELEASE = (
    _PUT_BACK
    + """
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if redis.call('XACK', KEYS[1], 'workers', ARGV[1]) == 0 or not entry then return 0 end
local fields, count = entry[2], 1
if fields[5] == 'released' then count = (tonumber(fields[6]) or 0) + 1 end
if count > tonumber(ARGV[2]) then
  redis.call('XDEL', KEYS[1], ARGV[1])
  return 1
end
if fields[3] ~= 'since' then fields = {fields[1], fields[2], 'since', ARGV[1]} end
fields[5], fields[6] = 'released', count
put_back(ARGV[1], fields)
return 0
"""
)

# KEYS[1] stream of a shared channel. ARGV: consumer. Puts back what it has claimed and not dealt with; ends it.
LEAVE = (
    _PUT_BACK
    + """
for _, pending in ipairs(redis.call('XPENDING', KEYS[1], 'workers', '-', '+', 1000, ARGV[1])) do
  local entry = redis.call('XRANGE', KEYS[1], pending[1], pending[1])[1]
  redis.call('XACK', KEYS[1], 'workers', pending[1])
  if entry then put_back(pending[1], entry[2]) end
end
if #redis.call('XPENDING', KEYS[1], 'workers', '-', '+', 1, ARGV[1]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'workers', ARGV[1])
end
"""
)

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

# KEYS[1] any key. ARGV: its type, as TYPE names it. Deletes it if it is of another type; whether it did.
DROP_OTHER_TYPE = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' or kind == ARGV[1] then return 0 end
return redis.call('UNLINK', KEYS[1])
"""

# KEYS[1] sorted set of the processes: mailboxes, scores are the ends of their leases in ms. Three members more:
# `beaten`, when anybody was last here; `grace`, until when it is unknown who is absent and who has not been here yet;
# and, with the score +inf, the epoch: `epoch:`, the time at which it was begun, `:` and the run id of the Redis server
# on which that was (nothing, if Redis may not be asked for it), and `:again` if the set was there before. A beat on
# another server begins another epoch: what is there is a replica's or a snapshot's, older than what was lost.
# Leases may be missing, too, so there is grace.
# ARGV: mailbox, length of a lease, silence after which there is grace, length of the grace, how long an ended lease is
# listed, and how long its process is expected back; all in ms. Renews the lease. When nobody was here for long, that
# was the store's fault or everybody's: the leases that ran when somebody was last here are lengthened over the grace.
# When the clock was put back, no lease may run longer from now than one that begins now, or than the grace.
# Returns: whether the lease had ended, whether there is grace, now, ms until a lease ends that is not renewed (or -1),
# the mailboxes whose leases run, those whose leases have ended, those of these not expected back, and the epoch.
RENEW = (
    NOW
    + """
local function text(number) return string.format('%.0f', number) end
local beaten = tonumber(redis.call('ZSCORE', KEYS[1], 'beaten') or 0)
local grace = tonumber(redis.call('ZSCORE', KEYS[1], 'grace') or 0)
local own = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
local silent = now - beaten > tonumber(ARGV[3])
local info, run, epoch, stamp = redis.pcall('INFO', 'server'), '', '', nil
if type(info) == 'string' then run = string.match(info, 'run_id:(%x+)') or '' end
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], '+inf', '+inf', 'BYSCORE')) do
  local begun, where = string.match(member, '^epoch:(%d+):?(%x*)')
  if begun and #begun < 16 then epoch, stamp = member, where end
end
local another = beaten > 0 and (not stamp or (run ~= '' and run ~= stamp))
if silent or another then grace = now + ARGV[4] end
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
end
if silent or another then redis.call('ZADD', KEYS[1], text(grace), 'grace') end
redis.call('ZADD', KEYS[1], text(now + ARGV[2]), ARGV[1], text(now), 'beaten')
redis.call('PEXPIRE', KEYS[1], 86400000)
if beaten == 0 or another then
  epoch = 'epoch:' .. text(now) .. ':' .. run .. (another and ':again' or '')
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '+inf', '+inf')
  redis.call('ZADD', KEYS[1], '+inf', epoch)
end
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

# KEYS[1] as RENEW. ARGV: mailbox, the silence of RENEW. The time in ms, whether the lease runs, whether nobody was here
# for so long (then the lease counts that ran when somebody was last here), and the members among which the epoch is.
LEASE_RUNS = (
    NOW
    + """
local beaten = tonumber(redis.call('ZSCORE', KEYS[1], 'beaten') or 0)
local own = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
local silent = now - beaten > tonumber(ARGV[2])
local epochs = redis.call('ZRANGE', KEYS[1], '+inf', '+inf', 'BYSCORE')
return {now, own > (silent and beaten or now) and 1 or 0, silent and 1 or 0, epochs}
"""
)

# KEYS[1] as RENEW. ARGV: mailbox, length of a lease in ms. Lengthens its lease if that runs; whether it does.
EXTEND_LEASE = (
    NOW
    + """
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) <= now then return 0 end
redis.call('ZADD', KEYS[1], 'XX', 'GT', string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('ZADD', KEYS[1], 'XX', 'GT', string.format('%.0f', now), 'beaten')
return 1
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
    NOW
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
