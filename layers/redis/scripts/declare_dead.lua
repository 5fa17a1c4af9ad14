-- End the lease of a process that is known to have died.
--
-- KEYS[1]  sorted set of the processes, as in renew_lease.lua
-- ARGV[1]  mailbox
-- Returns  {mailboxes of the processes that had a lease, this one included}

-- include now.lua
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '-1')
local live = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], string.format('(%.0f', now), '+inf', 'BYSCORE')) do
  if string.sub(member, -1) == '!' then live[#live + 1] = member end
end
redis.call('ZADD', KEYS[1], 'XX', 'LT', string.format('%.0f', now), ARGV[1])
return live
