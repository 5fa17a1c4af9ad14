-- Let messages that were taken be taken again.
--
-- KEYS[1]  list of the messages
-- KEYS[2]  sorted set of the delayed messages
-- KEYS[3]  hash of the messages that are taken and not acknowledged
-- ARGV[1]  expiry in ms
-- ARGV[2]  delay in ms
-- ARGV[3]  1 if the messages were handled, so that this was an attempt; 0 if they could not be read
-- ARGV     ids
-- Returns  how many messages there were

-- include now.lua
-- include channel_wake.lua
local back = 0
for i = 4, #ARGV do
  local value = redis.call('HGET', KEYS[3], ARGV[i])
  if value then
    redis.call('HDEL', KEYS[3], ARGV[i])
    back = back + 1
    local attempt, payload = string.match(value, '^[^!]*!(%d+):(.*)$')
    attempt = string.format(':%d:', attempt + ARGV[3])
    if tonumber(ARGV[2]) > 0 then
      redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[2]), ARGV[i] .. attempt .. payload)
      redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), ARGV[2] + ARGV[1]))
      wake()
    else
      redis.call('RPUSH', KEYS[1], string.format('%.0f', now) .. attempt .. payload)
      redis.call('PEXPIRE', KEYS[1], ARGV[1])
    end
  end
end
return back
