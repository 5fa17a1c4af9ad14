#!lua
-- Write users of one process in a group, or renew them, and tell who is the first or the last one in the group.
--
-- KEYS[1]  hash of the group, as in presence_hash.lua
-- ARGV[1]  mailbox
-- ARGV[2]  number of its connections
-- ARGV[3]  number of its users after this
-- ARGV[4]  for how long the key is kept that nobody renews, in seconds
-- ARGV[5]  entry of its events; may be empty
-- ARGV[6]  how many of the users that follow are new: if they are here already, the reply to an earlier call was lost
-- ARGV[7…] user and entry, again and again; an empty entry removes the user
-- Returns  {{1: the user is the first, -1: it was the last, 0: it was missing; user; number of users then; …},
--          1 if this process had users in the group, {mailboxes of the others, if not}, the time, in microseconds}

-- include now.lua
-- include presence_hash.lua
local changes, others, count = {}, {}, count_users()
local own = find(servers, ARGV[1], 4)
local had = own and 1 or 0
if not own then
  for i = 1, #servers, 4 do others[#others + 1] = servers[i] end
  own = #servers + 1
  servers[own], servers[own + 1], servers[own + 2], servers[own + 3] = ARGV[1], 0, 0, 0
end
local function note(change, user)
  changes[#changes + 1] = change
  changes[#changes + 1] = user
  changes[#changes + 1] = count
end
for i = 7, #ARGV, 2 do
  local user, entry = ARGV[i], ARGV[i + 1]
  local list = read(redis.call('HGET', KEYS[1], user) or '')
  local at = find(list, ARGV[1], 2)
  if entry ~= '' then
    if #list == 0 then count = count + 1 end
    if #list == (at and 2 or 0) and (not at or i < 7 + 2 * ARGV[6]) then note(1, user) end
    at = at or #list + 1
    list[at], list[at + 1] = ARGV[1], entry
    redis.call('HSET', KEYS[1], user, cmsgpack.pack(list))
  elseif not at then
    note(0, user)
  elseif #list > 2 then
    table.remove(list, at)
    table.remove(list, at)
    redis.call('HSET', KEYS[1], user, cmsgpack.pack(list))
  else
    redis.call('HDEL', KEYS[1], user)
    count = count - 1
    note(-1, user)
  end
end
if tonumber(ARGV[3]) > 0 then
  servers[own + 1], servers[own + 2] = tonumber(ARGV[2]), now
  servers[own + 3] = ARGV[5] == '' and 0 or 1
else
  for _ = 1, 4 do table.remove(servers, own) end
end
if #servers == 0 then
  redis.call('DEL', KEYS[1])
else
  redis.call('HSET', KEYS[1], ':servers', cmsgpack.pack(servers))
  if servers[own] == ARGV[1] and ARGV[5] ~= '' then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[5])
  else
    redis.call('HDEL', KEYS[1], ARGV[1])
  end
  redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), math.ceil(ARGV[4] * 1000)))
end
return {changes, had, others, string.format('%.0f', time[1] * 1000000 + time[2])}
