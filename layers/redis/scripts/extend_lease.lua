-- Extend the lease of a process if it has not ended.
--
-- KEYS[1]  sorted set of the processes, as in renew_lease.lua
-- KEYS[2]  hash of the connections, as in renew_lease.lua
-- ARGV[1]  mailbox
-- ARGV[2]  length of a lease, in ms
-- ARGV[3…5] connections, and times for suspects, as in renew_lease.lua
-- Returns  0 if the lease has ended, 2 if it was extended and renew_lease.lua would return suspects, else 1

-- include now.lua
local ends = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
if ends <= now then return 0 end
-- A lease that was lengthened over the grace is a usual one again.
redis.call('ZADD', KEYS[1], 'XX', ends % 1 == 0 and 'GT' or 'CH', string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('ZADD', KEYS[1], 'XX', 'GT', string.format('%.0f', now), 'beaten')
if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], ARGV[1], ARGV[3]) end
if tonumber(ARGV[4]) == 0 then return 1 end
if now - tonumber(redis.call('ZSCORE', KEYS[1], 'asked') or 0) < tonumber(ARGV[5]) then return 1 end
local from, to = string.format('(%.0f', now), string.format('%.0f', now + ARGV[2] - ARGV[4])
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], from, to, 'BYSCORE')) do
  if redis.call('HEXISTS', KEYS[2], member) == 1 then return 2 end
end
return 1
