-- Append a claimed entry to its work queue again, for another consumer.
--
-- KEYS[1]  stream of the queue
-- ARGV[1]  id of the entry

-- include requeue_entry.lua
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if redis.call('XACK', KEYS[1], 'workers', ARGV[1]) == 1 and entry then requeue(ARGV[1], entry[2]) end
