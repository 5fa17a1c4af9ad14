#!lua
-- Append a message to a channel, unless the channel is full at first sight. It is short because each command in it
-- costs as much as the rest.
--
-- KEYS[1]  list of the messages; an item is `ms:attempt:payload`, with the time at which it was appended
-- KEYS[2]  sorted set of the delayed messages, by when they are due; a member is `id:attempt:payload`
-- KEYS[3]  hash of the counts
-- ARGV[1]  payload
-- ARGV[2]  expiry in ms
-- ARGV[3]  for how long the counts are kept, in ms
-- ARGV[4]  capacity
-- Returns  1, or nil if the channel looks full: then `channel_send_checked` decides

local time = redis.call('TIME')
local item = string.format('%.0f:1:', time[1] * 1000 + math.floor(time[2] / 1000)) .. ARGV[1]
if redis.call('RPUSH', KEYS[1], item) + redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[4]) then
  redis.call('RPOP', KEYS[1])
  return nil
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('HINCRBY', KEYS[3], 'sent', 1)
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return 1
