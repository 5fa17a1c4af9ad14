-- Included by scripts whose KEYS[1] is the list of a channel and KEYS[2] the sorted set of its delayed messages.
-- `wake()` puts an empty item at the head, which ends the waits of all readers, so that they learn when the next delayed
-- message is due. The first reader that takes drops it.

local function wake()
  if redis.call('LINDEX', KEYS[1], 0) ~= '' then redis.call('LPUSH', KEYS[1], '') end
  redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), redis.call('PTTL', KEYS[2])))
end
