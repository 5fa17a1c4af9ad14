-- Take a process off the claimants of a pool, and remove the entries that it has not claimed.
--
-- KEYS[1]  sorted set of the claimants, as in offer_by_key.lua
-- KEYS[2]  stream of the process
-- ARGV[1]  mailbox of the process
-- Returns  {payloads}

redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 0 then return {} end
local last, payloads, ids = '-', {}, {}
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
  for i = 1, #group, 2 do
    if group[i] == 'last-delivered-id' then last = '(' .. group[i + 1] end
  end
end
for n, entry in ipairs(redis.call('XRANGE', KEYS[2], last, '+')) do
  payloads[n], ids[n] = entry[2][2], entry[1]
end
for _, id in ipairs(ids) do redis.call('XDEL', KEYS[2], id) end
return payloads
