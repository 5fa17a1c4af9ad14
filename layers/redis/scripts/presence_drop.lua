-- Remove users of a dead process from a group, unless it has written again since its death.
--
-- It begins with a write that needs no memory, so that Redis allows the others when it is out of memory.
--
-- KEYS[1]  hash of the group, as in presence_hash.lua
-- ARGV[1]  mailbox of the process
-- ARGV[2]  time of the death, in ms
-- ARGV[3]  cursor of HSCAN
-- ARGV[4]  about how many users to look at
-- Returns  {next cursor; empty if the process lives, entry of its events, {the process's entry of a user that is in the
--          group no more, number of users then, …}, the time, in microseconds}

-- include now.lua
-- include presence_hash.lua
redis.call('HDEL', KEYS[1], '')
local at = string.format('%.0f', time[1] * 1000000 + time[2])
local own = find(servers, ARGV[1], 4)
if own and servers[own + 2] > tonumber(ARGV[2]) then return {'', '', {}, at} end
local events = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local scanned, left, count = redis.call('HSCAN', KEYS[1], ARGV[3], 'COUNT', ARGV[4]), {}, count_users()
local found = scanned[2]
for i = 1, #found, 2 do
  local user = found[i]
  local list = #user == 32 and read(found[i + 1]) or {}
  local place = find(list, ARGV[1], 2)
  if place and redis.call('HEXISTS', KEYS[1], user) == 1 then
    local entry = list[place + 1]
    if #list > 2 then
      table.remove(list, place)
      table.remove(list, place)
      redis.call('HSET', KEYS[1], user, cmsgpack.pack(list))
    else
      redis.call('HDEL', KEYS[1], user)
      count = count - 1
      if events ~= '' then
        left[#left + 1] = entry
        left[#left + 1] = count
      end
    end
  end
end
if scanned[1] == '0' and own then
  for _ = 1, 4 do table.remove(servers, own) end
  redis.call('HDEL', KEYS[1], ARGV[1])
  if #servers == 0 then
    redis.call('DEL', KEYS[1])
  else
    redis.call('HSET', KEYS[1], ':servers', cmsgpack.pack(servers))
  end
end
return {scanned[1], events, left, at}
