-- Defines `read`, `find` and `count_users` for the hash of the users of a group, and `servers`.
--
-- KEYS[1]  hash of the group. By user: {mailbox of a process that has the user, its entry of the user, …}. Besides
--          `:servers`: {mailbox of a process with users, number of its connections, when it last wrote in ms, 1 if it has
--          events, …}; and by mailbox: an entry of the events, for those who clean up after that process

local function read(packed)
  local ok, list = pcall(cmsgpack.unpack, packed)
  return ok and type(list) == 'table' and list or {}
end
local function find(list, mailbox, step)
  for i = 1, #list, step do
    if list[i] == mailbox then return i end
  end
end
local servers = read(redis.call('HGET', KEYS[1], ':servers') or '')
for i = 1, #servers do
  if type(servers[i]) ~= (i % 4 == 1 and 'string' or 'number') or #servers % 4 > 0 then
    servers = {}
    break
  end
end
local function count_users()
  local count = redis.call('HLEN', KEYS[1]) - redis.call('HEXISTS', KEYS[1], ':servers')
  for i = 4, #servers, 4 do count = count - servers[i] end
  return count
end
