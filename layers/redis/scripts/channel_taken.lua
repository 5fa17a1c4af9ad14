-- List the messages of a channel that are taken and not acknowledged.
--
-- KEYS[1]  hash of them
-- Returns  {id, consumer, id, consumer, …}

local reply = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  reply[#reply + 1], reply[#reply + 2] = all[i], string.match(all[i + 1], '^[^!]*!') or ''
end
return reply
