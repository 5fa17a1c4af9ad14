-- Forget all users of a group, because one of its keys has another type: its members are going to write them again.
--
-- KEYS[1…2] as in presence_write.lua
-- KEYS[3]  sorted set of the group, whose members may have users
-- Returns  1

for i = 2, 3 do
  local found = redis.pcall(i == 2 and 'HKEYS' or 'ZRANGE', KEYS[i], unpack(i == 2 and {} or {0, -1}))
  for _, mailbox in ipairs(found) do redis.call('DEL', KEYS[2] .. ':' .. mailbox) end
end
return redis.call('DEL', KEYS[1], KEYS[2])
