-- Included by scripts whose KEYS[1] is the list of a channel. `oldest(expiry)` returns the oldest item that has not
-- expired, and drops what is before it: expired items, and the empty one that ended the waits of readers.

local function oldest(expiry)
  while true do
    local item = redis.call('LINDEX', KEYS[1], 0)
    if not item then return nil end
    if item ~= '' and (tonumber(string.match(item, '^(%d+):%d+:')) or now) > now - expiry then return item end
    redis.call('LPOP', KEYS[1])
  end
end
