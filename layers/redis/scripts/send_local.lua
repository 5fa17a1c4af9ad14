#!lua
-- Append an entry to a mailbox for several process-local channels, unless all of them are full.
-- The entry's field `full` has the indexes of the full channels, so that its reader skips those.
--
-- KEYS[1]  stream of the mailbox
-- KEYS[2]  hash of unread messages per channel of the mailbox; missing if they are not counted
-- ARGV[1]  entry
-- ARGV[2]  capacity of each channel
-- ARGV[3…] channels, by their local names, in the order of the entry
-- Returns  zero-based indexes of the full channels; nil if the mailbox does not exist

if redis.call('EXISTS', KEYS[1]) == 0 then return nil end
local full, capacity = {}, tonumber(ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 1 then
  for start = 3, #ARGV, 1000 do
    local last = math.min(start + 999, #ARGV)
    local counts, fields = redis.call('HMGET', KEYS[2], unpack(ARGV, start, last)), {}
    for n, count in ipairs(counts) do
      count = tonumber(count or 0)
      if count >= capacity then
        full[#full + 1] = start + n - 4
      else
        fields[#fields + 1], fields[#fields + 2] = ARGV[start + n - 1], count + 1
      end
    end
    if #fields > 0 then redis.call('HSET', KEYS[2], unpack(fields)) end
  end
end
if #full < #ARGV - 2 then
  if #full == 0 then
    redis.call('XADD', KEYS[1], '*', 'b', ARGV[1])
  else
    redis.call('XADD', KEYS[1], '*', 'b', ARGV[1], 'full', table.concat(full, ','))
  end
end
return full
