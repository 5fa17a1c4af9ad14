-- Append a claimed entry that its consumer cannot read to its work queue again, or drop it after too many times.
--
-- KEYS[1]  stream of the queue
-- ARGV[1]  id of the entry
-- ARGV[2]  how often an entry may be released
-- Returns  1 if the entry was dropped, else 0

-- include requeue_entry.lua
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if redis.call('XACK', KEYS[1], 'workers', ARGV[1]) == 0 or not entry then return 0 end
local fields, count = entry[2], 1
if fields[5] == 'released' then count = (tonumber(fields[6]) or 0) + 1 end
if count > tonumber(ARGV[2]) then
  redis.call('XDEL', KEYS[1], ARGV[1])
  return 1
end
if fields[3] ~= 'since' then fields = {fields[1], fields[2], 'since', ARGV[1]} end
fields[5], fields[6] = 'released', count
requeue(ARGV[1], fields)
return 0
