-- Reset the unread messages of all process-local channels to 0.
--
-- KEYS[1]  hash of unread messages per channel; its field `!` keeps it in existence

for _, part in ipairs(redis.call('HKEYS', KEYS[1])) do
  if part ~= '!' then redis.call('HDEL', KEYS[1], part) end
end
