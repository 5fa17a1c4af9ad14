-- Take wills of a dead process, unless it has been here again since its death.
--
-- It begins with a write that needs no memory, so that Redis allows the others when it is out of memory.
--
-- KEYS[1]  hash of the wills, as in will_take.lua
-- ARGV[1]  time of the death, in ms
-- ARGV[2]  the largest number of wills to take
-- Returns  {number of a connection, its entry, …}

redis.call('HDEL', KEYS[1], '')
if tonumber(redis.call('HGET', KEYS[1], ':at') or 0) > tonumber(ARGV[1]) then return {} end
local found, taken = redis.call('HRANDFIELD', KEYS[1], ARGV[2] + 1, 'WITHVALUES'), {}
for i = 1, #found, 2 do
  if found[i] ~= ':at' then
    redis.call('HDEL', KEYS[1], found[i])
    taken[#taken + 1] = found[i]
    taken[#taken + 1] = found[i + 1]
  end
end
if redis.call('HLEN', KEYS[1]) <= 1 then redis.call('DEL', KEYS[1]) end
return taken
