-- Put items back at the head of a channel, because the reader that took them was cancelled.
--
-- KEYS[1]  list of the messages
-- ARGV[1]  expiry in ms
-- ARGV     items, oldest first

if redis.call('LINDEX', KEYS[1], 0) == '' then redis.call('LPOP', KEYS[1]) end
for i = #ARGV, 2, -1 do redis.call('LPUSH', KEYS[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
