-- Give a lease back. The last process to do so deletes the whole set.
--
-- KEYS[1]  sorted set of the processes, as in renew_lease.lua
-- ARGV[1]  mailbox
-- Returns  1 if the set was deleted, else 0

redis.call('ZREM', KEYS[1], ARGV[1])
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if string.sub(member, -1) == '!' then return 0 end
end
return redis.call('DEL', KEYS[1])
