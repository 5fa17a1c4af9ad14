-- Read a part of the users of a group.
--
-- KEYS[1]  hash of the users, as in presence_write.lua
-- KEYS[2]  hash of the processes, as there. The key of the users of a process is this one, a colon and its mailbox
-- ARGV[1]  cursor of HSCAN
-- ARGV[2]  about how many users to return
-- Returns  {next cursor, {mailboxes}, {{entries of the users at the first process}, …}}

local scanned = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local users = {}
for i = 1, #scanned[2], 2 do users[#users + 1] = scanned[2][i] end
local processes, entries = redis.call('HKEYS', KEYS[2]), {}
for i, mailbox in ipairs(processes) do
  entries[i] = {}
  for first = 1, #users, 1000 do
    local some = redis.call('HMGET', KEYS[2] .. ':' .. mailbox, unpack(users, first, math.min(first + 999, #users)))
    for _, entry in ipairs(some) do
      if entry then table.insert(entries[i], entry) end
    end
  end
end
return {scanned[1], processes, entries}
