#!lua
-- Write users of one process in a group, or renew them, and tell who is the first or the last one in the group.
--
-- KEYS[1]  hash of the users: for each, the number of processes that have the user
-- KEYS[2]  hash of the processes: for each mailbox, the number of its connections
-- KEYS[3]  hash of the users of this process: their entries. Besides `:at`, when this script was last called in ms, and
--          `:events`, an entry for those who clean up after this process
-- ARGV[1]  mailbox
-- ARGV[2]  number of its connections
-- ARGV[3]  for how long the keys are kept that nobody renews, in seconds
-- ARGV[4]  entry for `:events`; may be empty
-- ARGV[5…] user and entry, again and again; an empty entry removes the user
-- Returns  {{1: the user is the first, -1: it was the last, 0: it was missing; user; number of users then; …},
--          {mailboxes of other processes, if this one had no users in the group}; the time, in microseconds}

-- include now.lua
local changes, others = {}, {}
local count = redis.call('HLEN', KEYS[1])
if redis.call('EXISTS', KEYS[3]) == 0 then others = redis.call('HKEYS', KEYS[2]) end
local function note(change, user)
  count = count + change
  changes[#changes + 1] = change
  changes[#changes + 1] = user
  changes[#changes + 1] = count
end
for i = 5, #ARGV, 2 do
  local user, entry = ARGV[i], ARGV[i + 1]
  if entry ~= '' then
    if redis.call('HSET', KEYS[3], user, entry) == 1 and redis.call('HINCRBY', KEYS[1], user, 1) == 1 then
      note(1, user)
    end
  elseif redis.call('HDEL', KEYS[3], user) == 0 then
    note(0, user)
  elseif redis.call('HINCRBY', KEYS[1], user, -1) <= 0 then
    redis.call('HDEL', KEYS[1], user)
    note(-1, user)
  end
end
redis.call('HSET', KEYS[3], ':at', string.format('%.0f', now), ':events', ARGV[4])
if redis.call('HLEN', KEYS[3]) <= 2 then
  redis.call('DEL', KEYS[3])
  redis.call('HDEL', KEYS[2], ARGV[1])
else
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
  for i = 1, 3 do
    redis.call('PEXPIRE', KEYS[i], math.max(redis.call('PTTL', KEYS[i]), math.ceil(ARGV[3] * 1000)))
  end
end
return {changes, others, string.format('%.0f', time[1] * 1000000 + time[2])}
