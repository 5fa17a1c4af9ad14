-- Delete an entry of a work queue if nobody has claimed it, also when a consumer has requeued it under another id.
--
-- KEYS[1]  stream of the queue
-- ARGV[1]  id of the entry
-- ARGV[2]  its payload
-- Returns  1 if deleted, else 0

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
  if entry[2][2] == ARGV[2] then return math.max(0, delete(entry[1])) end
end
return 0
