-- End the lease of a process that has died, and announce that to the others in the same step: a heartbeat in between
-- would report the end of the lease, too.
--
-- It begins with a write that needs no memory, so that Redis allows the others when it is out of memory.
--
-- KEYS[1]  sorted set of the processes, as in renew_lease.lua
-- KEYS[2…] mailboxes of the others
-- ARGV[1]  mailbox of the process
-- ARGV[2]  when its lease ends, if it must not have been renewed since; empty if that does not matter
-- ARGV[3…] entries for the mailboxes of the others
-- Returns  1 if the lease was ended and announced, else 0

-- include now.lua
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '-1')
if ARGV[2] ~= '' then
  local ends = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
  if ends ~= tonumber(ARGV[2]) or ends <= now then return 0 end
end
redis.call('ZADD', KEYS[1], 'XX', 'LT', string.format('%.0f', now), ARGV[1])
for i = 2, #KEYS do redis.pcall('XADD', KEYS[i], 'NOMKSTREAM', '*', 'b', ARGV[i + 1]) end
return 1
