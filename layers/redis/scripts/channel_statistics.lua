-- Return the statistics of a channel. Changes nothing.
--
-- KEYS[1]  list of the messages
-- KEYS[2]  sorted set of the delayed messages
-- KEYS[3]  hash of the counts
-- ARGV[1]  expiry in ms
-- Returns  {messages that were sent, unread messages, ms since the oldest can be received, how often it was full}

-- include now.lua
local gone, oldest = now - ARGV[1], now
local function made(place)
  return tonumber(string.match(redis.call('LINDEX', KEYS[1], place), '^(%d+):%d+:')) or now
end
local length = redis.call('LLEN', KEYS[1])
local first, last = redis.call('LINDEX', KEYS[1], 0) == '' and 1 or 0, length
while first < last do
  local middle = math.floor((first + last) / 2)
  if made(middle) > gone then last = middle else first = middle + 1 end
end
if first < length then oldest = made(first) end
local waiting = redis.call('ZCOUNT', KEYS[2], string.format('(%.0f', gone), '+inf')
local due = redis.call('ZRANGE', KEYS[2], string.format('(%.0f', gone), '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
if due[2] then oldest = math.min(oldest, tonumber(due[2])) end
local counts = redis.call('HMGET', KEYS[3], 'sent', 'full')
return {tonumber(counts[1] or 0), length - first + waiting, now - oldest, tonumber(counts[2] or 0)}
