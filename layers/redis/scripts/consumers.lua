-- List the consumers of a work queue.
--
-- KEYS[1]  stream of the queue
-- Returns  {names}

local groups = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('XINFO', 'GROUPS', KEYS[1]) or {}
if #groups == 0 then return {} end
local names = {}
for n, each in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], 'workers')) do names[n] = each[2] end
return names
