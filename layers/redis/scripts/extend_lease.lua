-- Extend the lease of a process if it has not ended.
--
-- KEYS[1]  sorted set of the processes, as in renew_lease.lua
-- ARGV[1]  mailbox
-- ARGV[2]  length of a lease, in ms
-- Returns  1 if extended, else 0

-- include now.lua
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) <= now then return 0 end
redis.call('ZADD', KEYS[1], 'XX', 'GT', string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('ZADD', KEYS[1], 'XX', 'GT', string.format('%.0f', now), 'beaten')
return 1
