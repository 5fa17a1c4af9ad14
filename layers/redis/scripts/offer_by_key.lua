#!lua
-- Offer an entry to the process that a key is assigned to. A key without a process is assigned to the one with the
-- fewest keys.
--
-- A key stays with its process while that has a lease and is a claimant. The stream that is written belongs to the
-- claimant, so its name is known here only; it is in the slot of the others. A claimant that has been dead for so long
-- that its lease is not listed any more is removed; one that returns nevertheless becomes a claimant again by itself.
--
-- KEYS[1]  sorted set of the processes, as in renew_lease.lua
-- KEYS[2]  sorted set of the claimants: the processes of the pool that claim by key. Scores are their numbers of keys
-- KEYS[3]  hash: the process that each key is assigned to
-- KEYS[4]  sorted set of the keys. Scores are when they expire, in ms
-- ARGV[1]  key
-- ARGV[2]  lifetime of a key, in ms
-- ARGV[3]  how many keys there may be: then the one is forgotten that would expire first
-- ARGV[4]  after how long without any process leases count that ran when one was last here, in ms
-- ARGV[5]  beginning of the name of a claimant's stream; its mailbox without the `!` follows
-- ARGV[6]  payload of the entry; empty to assign the key alone
-- ARGV[7]  process to assign the key to if it has none; empty for the claimant with the fewest keys; `?` not to assign it
-- Returns  {mailbox of the process, or '' if there is none; id of the entry, or ''; number of keys forgotten too soon}

-- include now.lua
local function is_claimant(worker)
  if not worker or not redis.call('ZSCORE', KEYS[2], worker) then return false end
  local lease = tonumber(redis.call('ZSCORE', KEYS[1], worker) or -1)
  if lease > now then return true end
  if lease == -1 then return tonumber(redis.call('ZSCORE', KEYS[1], 'grace') or 0) > now end
  local beaten = tonumber(redis.call('ZSCORE', KEYS[1], 'beaten') or 0)
  return now - beaten > tonumber(ARGV[4]) and lease > beaten
end
local function forget(key)
  local worker = redis.call('HGET', KEYS[3], key)
  redis.call('HDEL', KEYS[3], key)
  redis.call('ZREM', KEYS[4], key)
  if worker and redis.call('ZSCORE', KEYS[2], worker) then redis.call('ZINCRBY', KEYS[2], -1, worker) end
end
local worker, forgotten = redis.call('HGET', KEYS[3], ARGV[1]), 0
if worker and tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1]) or 0) <= now then
  forget(ARGV[1])
  worker = false
end
if not worker and ARGV[7] == '?' then return {'', '', 0} end
local known = is_claimant(worker)
if not known then
  if worker then forget(ARGV[1]) end
  for _, key in ipairs(redis.call('ZRANGE', KEYS[4], '-inf', now, 'BYSCORE', 'LIMIT', 0, 10)) do forget(key) end
  worker = is_claimant(ARGV[7]) and ARGV[7] or nil
  for _, each in ipairs(worker and {} or redis.call('ZRANGE', KEYS[2], 0, -1)) do
    if is_claimant(each) then
      worker = each
      break
    end
    if not redis.call('ZSCORE', KEYS[1], each) then redis.call('ZREM', KEYS[2], each) end
  end
  if not worker then return {'', '', 0} end
  while redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[3]) do
    forget(redis.call('ZRANGE', KEYS[4], 0, 0)[1])
    forgotten = forgotten + 1
  end
  redis.call('HSET', KEYS[3], ARGV[1], worker)
  redis.call('ZINCRBY', KEYS[2], 1, worker)
end
redis.call('ZADD', KEYS[4], string.format('%.0f', now + ARGV[2]), ARGV[1])
local stream, id = ARGV[5] .. string.sub(worker, 1, -2), ''
if ARGV[6] ~= '' then id = redis.call('XADD', stream, '*', 'b', ARGV[6]) end
if not known then
  for i = 3, 4 do redis.call('PEXPIRE', KEYS[i], 2 * ARGV[2]) end
  redis.call('EXPIRE', stream, 86400)
end
return {worker, id, forgotten}
