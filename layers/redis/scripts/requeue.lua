-- Append claimed entries to their work queue again, for another consumer.
--
-- KEYS[1]  stream of the queue
-- ARGV     ids of the entries

-- include requeue_entry.lua
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  if redis.call('XACK', KEYS[1], 'workers', id) == 1 and entry then requeue(id, entry[2]) end
end
