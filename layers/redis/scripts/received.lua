-- Subtract received or expired messages from the unread messages of process-local channels.
--
-- KEYS[1]  hash of unread messages per channel
-- ARGV     pairs: channel, by its local name; number of messages, negative to add. At most 1000 pairs

local parts, fields, empty = {}, {}, {}
for i = 1, #ARGV, 2 do parts[#parts + 1] = ARGV[i] end
local counts = redis.call('HMGET', KEYS[1], unpack(parts))
for n, part in ipairs(parts) do
  local count = tonumber(counts[n] or 0) - ARGV[2 * n]
  if count > 0 then
    fields[#fields + 1], fields[#fields + 2] = part, count
  else
    empty[#empty + 1] = part
  end
end
if #empty > 0 then redis.call('HDEL', KEYS[1], unpack(empty)) end
if #fields > 0 and redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], unpack(fields)) end
