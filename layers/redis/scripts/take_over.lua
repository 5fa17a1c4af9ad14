-- Give one consumer the pending entries of others, and remove the others.
--
-- KEYS[1]  stream of the queue
-- ARGV[1]  consumer
-- ARGV[2]  how many entries to move at most
-- ARGV[3…] the other consumers
-- Returns  1 if there may be more entries than the limit, else 0

local room = tonumber(ARGV[2])
for i = 3, #ARGV do
  if room == 0 then return 1 end
  local pending = redis.call('XPENDING', KEYS[1], 'workers', '-', '+', room, ARGV[i])
  if #pending > 0 then
    local ids = {}
    for n, each in ipairs(pending) do ids[n] = each[1] end
    redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], 0, unpack(ids))
    room = room - #ids
  end
  if room > 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'workers', ARGV[i]) end
end
return room == 0 and 1 or 0
