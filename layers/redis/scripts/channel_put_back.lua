-- Put items back at the head of a channel, because the call that took them was cancelled. If it took none, wake the
-- other readers if there are delayed messages: that call may have known alone when the next one is due.
--
-- It begins with a write that needs no memory, so that Redis allows the others when it is out of memory.
--
-- KEYS[1]  list of the messages
-- KEYS[2]  sorted set of the delayed messages
-- ARGV[1]  expiry in ms
-- ARGV     items, oldest first

-- include channel_wake.lua
redis.call('PEXPIRE', KEYS[1], ARGV[1])
if redis.call('LINDEX', KEYS[1], 0) == '' then redis.call('LPOP', KEYS[1]) end
for i = #ARGV, 2, -1 do redis.call('LPUSH', KEYS[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
if #ARGV == 1 and redis.call('EXISTS', KEYS[2]) == 1 then wake() end
