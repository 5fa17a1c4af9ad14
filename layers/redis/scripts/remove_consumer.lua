-- Remove a consumer of a work queue if it has no pending entries.
--
-- KEYS[1]  stream of the queue
-- ARGV[1]  consumer
-- Returns  0

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if #redis.call('XPENDING', KEYS[1], 'workers', '-', '+', 1, ARGV[1]) > 0 then return 0 end
return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'workers', ARGV[1])
