-- Count the entries of a work queue.
--
-- KEYS[1]  stream of the queue
-- Returns  {entries ever added, entries not claimed yet, age of the oldest of these in ms}

-- include now.lua
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
