-- Put items back at the head of a channel, because the reader that took them was cancelled.
--
-- It begins with a write that needs no memory, so that Redis allows the others when it is out of memory.
--
-- KEYS[1]  list of the messages
-- ARGV[1]  expiry in ms
-- ARGV     items, oldest first

redis.call('PEXPIRE', KEYS[1], ARGV[1])
if redis.call('LINDEX', KEYS[1], 0) == '' then redis.call('LPOP', KEYS[1]) end
for i = #ARGV, 2, -1 do redis.call('LPUSH', KEYS[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
