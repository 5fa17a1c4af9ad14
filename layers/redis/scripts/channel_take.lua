-- Take the oldest messages of a channel that can be received. Drops what has expired.
--
-- A reader that gets a message may not come back for long. So the others are woken then, to learn of delayed messages.
--
-- KEYS[1]  list of the messages
-- KEYS[2]  sorted set of the delayed messages
-- KEYS[3]  hash of the messages that are taken and not acknowledged: `consumer` + `attempt:payload` by id
-- ARGV[1]  expiry in ms
-- ARGV[2]  how many messages to take at most
-- ARGV[3]  if they are to be acknowledged: consumer
-- ARGV[4]  how long the hash is kept, in ms
-- ARGV[5]  how the ids begin
-- Returns  {1 if there are more to take, ms until a delayed message is due (or -1), id or '', item, id or '', item, …}

-- include now.lua
-- include channel_oldest.lua
-- include channel_wake.lua
local expiry = tonumber(ARGV[1])
local reply = {0, -1}
local delayed = redis.call('EXISTS', KEYS[2]) == 1
if delayed then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - expiry)) end
local first = oldest(expiry)
for n = 1, tonumber(ARGV[2]) do
  local due = delayed and redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES') or {}
  local score = tonumber(due[2])
  local id, item = '', first
  if score and score <= now and not (first and (tonumber(string.match(first, '^(%d+):')) or 0) <= score) then
    redis.call('ZREM', KEYS[2], due[1])
    item = string.format('%.0f', score) .. (string.match(due[1], '^%w+(:.*)$') or ':1:')
  elseif first then
    redis.call('LPOP', KEYS[1])
    first = oldest(expiry)
  else
    break
  end
  if ARGV[3] then
    id = ARGV[5] .. 'x' .. n
    redis.call('HSET', KEYS[3], id, ARGV[3] .. (string.match(item, '^%d+:(%d+:.*)$') or '1:' .. item))
    redis.call('PEXPIRE', KEYS[3], ARGV[4])
  end
  reply[#reply + 1], reply[#reply + 2] = id, item
end
if first then reply[1] = 1 end
local next = delayed and redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
if next then
  reply[2] = math.max(0, tonumber(next) - now)
  if #reply > 2 then wake() end
end
return reply
