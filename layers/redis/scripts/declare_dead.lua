-- End the lease of a process that is known to have died, and announce that to the others in the same step: a heartbeat
-- in between would report the end of the lease, too.
--
-- It begins with a write that needs no memory, so that Redis allows the others when it is out of memory.
--
-- KEYS[1]  sorted set of the processes, as in renew_lease.lua
-- KEYS[2…] mailboxes of the others
-- ARGV[1]  mailbox of the process
-- ARGV[2…] entries for the mailboxes of the others

-- include now.lua
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '-1')
redis.call('ZADD', KEYS[1], 'XX', 'LT', string.format('%.0f', now), ARGV[1])
for i = 2, #KEYS do redis.pcall('XADD', KEYS[i], 'NOMKSTREAM', '*', 'b', ARGV[i]) end
