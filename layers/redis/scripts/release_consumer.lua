-- Remove a consumer of a work queue and requeue the entries that it has claimed and not acknowledged.
--
-- KEYS[1]  stream of the queue
-- ARGV[1]  consumer

-- include requeue_entry.lua
for _, pending in ipairs(redis.call('XPENDING', KEYS[1], 'workers', '-', '+', 1000, ARGV[1])) do
  local entry = redis.call('XRANGE', KEYS[1], pending[1], pending[1])[1]
  redis.call('XACK', KEYS[1], 'workers', pending[1])
  if entry then requeue(pending[1], entry[2]) end
end
if #redis.call('XPENDING', KEYS[1], 'workers', '-', '+', 1, ARGV[1]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'workers', ARGV[1])
end
