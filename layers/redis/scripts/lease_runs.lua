-- Tell whether a process has a lease. If no process was here for long, leases count that ran when one was last here.
--
-- KEYS[1]  sorted set of the processes, as in renew_lease.lua
-- ARGV[1]  mailbox
-- ARGV[2]  after how long without any process that is so, in ms
-- Returns  {time in ms, 1 if the lease runs, 1 if no process was here for so long, {members with the score +inf}}

-- include now.lua
local beaten = tonumber(redis.call('ZSCORE', KEYS[1], 'beaten') or 0)
local own = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
local silent = now - beaten > tonumber(ARGV[2])
local epochs = redis.call('ZRANGE', KEYS[1], '+inf', '+inf', 'BYSCORE')
return {now, own > (silent and beaten or now) and 1 or 0, silent and 1 or 0, epochs}
