-- Remove users of a dead process from a group, unless it has written again since its death.
--
-- It begins with a write that needs no memory, so that Redis allows the others when it is out of memory.
--
-- KEYS[1…3] as in presence_write.lua
-- ARGV[1]  mailbox of the process
-- ARGV[2]  time of the death, in ms
-- ARGV[3]  the largest number of users to remove
-- Returns  {1 if there may be more, entry of `:events`, {user that is in the group no more, its entry, number of users
--          then, …}, the time, in microseconds}

-- include now.lua
redis.call('HDEL', KEYS[2], '')
local at = string.format('%.0f', time[1] * 1000000 + time[2])
if tonumber(redis.call('HGET', KEYS[3], ':at') or 0) > tonumber(ARGV[2]) then return {0, '', {}, at} end
local events = redis.call('HGET', KEYS[3], ':events') or ''
local count = redis.call('HLEN', KEYS[1])
local found, left, removed = redis.call('HRANDFIELD', KEYS[3], ARGV[3] + 2, 'WITHVALUES'), {}, 0
for i = 1, #found, 2 do
  local user = found[i]
  if string.sub(user, 1, 1) ~= ':' then
    removed = removed + 1
    redis.call('HDEL', KEYS[3], user)
    if redis.call('HINCRBY', KEYS[1], user, -1) <= 0 then
      redis.call('HDEL', KEYS[1], user)
      count = count - 1
      left[#left + 1] = user
      left[#left + 1] = found[i + 1]
      left[#left + 1] = count
    end
  end
end
if redis.call('HLEN', KEYS[3]) <= 2 then
  redis.call('DEL', KEYS[3])
  redis.call('HDEL', KEYS[2], ARGV[1])
  return {0, events, left, at}
end
return {1, events, left, at}
