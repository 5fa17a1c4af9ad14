#!lua
-- Look for entries of a work queue whose writing is in doubt, and write those again that are missing.
--
-- A missing entry was never written; or it was claimed and acknowledged, and then its consumer posted to the mailbox of
-- its producer before; or Redis lost it. An entry that is written again has the field `since` 0-0: its consumer asks
-- the producer before it deals with the entry, and the question arrives behind that post.
--
-- KEYS[1]  stream of the queue
-- KEYS[2]  mailbox of the producer
-- ARGV[1]  an id before all of these entries
-- ARGV[2]  how many entries to scan
-- ARGV[3]  run id of the Redis server to which they were written; empty if it is not known
-- ARGV[4…] triples: id or ''; payload; when to write the entry again: 'always', 'never', or 'safe', which is if
--          no other process can have claimed it without a post to the mailbox
-- Returns  for each triple the id of its entry, or '' if it is missing and was not written

local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
local safe = run == ARGV[3] and redis.call('EXISTS', KEYS[2]) == 1
local ids, by_payload = {}, nil
for i = 4, #ARGV, 3 do
  local id, payload, when = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if id == '' or #redis.call('XRANGE', KEYS[1], id, id) == 0 then
    if not by_payload then
      by_payload = {}
      local entries = redis.call('XREVRANGE', KEYS[1], '+', ARGV[1], 'COUNT', ARGV[2])
      for _, entry in ipairs(entries) do by_payload[entry[2][2]] = entry[1] end
      safe = safe and #entries < tonumber(ARGV[2])
    end
    id = by_payload[payload] or ''
    if id == '' and (when == 'always' or (when == 'safe' and safe)) then
      id = redis.call('XADD', KEYS[1], '*', 'b', payload, 'since', '0-0')
    end
  end
  ids[#ids + 1] = id
end
return ids
