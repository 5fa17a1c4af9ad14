#!lua
-- Send a message to a channel that looks full, or one that is delayed: drop what has expired for room.
--
-- KEYS and ARGV[1] to ARGV[4] as in `channel_send`
-- ARGV[5]  delay in ms, if any
-- ARGV[6]  id of the delayed message
-- Returns  1, or 0 if the channel is full

-- include now.lua
-- include channel_oldest.lua
-- include channel_wake.lua
local expiry, capacity = tonumber(ARGV[2]), tonumber(ARGV[4])
local function full() return redis.call('LLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2]) >= capacity end
redis.call('PEXPIRE', KEYS[3], ARGV[3])
if full() then
  oldest(expiry)
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - expiry))
  if full() then
    redis.call('HINCRBY', KEYS[3], 'full', 1)
    return 0
  end
end
if ARGV[5] then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[5]), ARGV[6] .. ':1:' .. ARGV[1])
  redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), ARGV[5] + expiry))
  wake()
else
  redis.call('RPUSH', KEYS[1], string.format('%.0f:1:', now) .. ARGV[1])
  redis.call('PEXPIRE', KEYS[1], expiry)
end
redis.call('HINCRBY', KEYS[3], 'sent', 1)
return 1
