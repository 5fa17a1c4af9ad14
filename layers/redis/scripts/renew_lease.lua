-- Renew the lease of a process, and list the leases of all.
--
-- KEYS[1]  sorted set of the processes. Members are mailboxes, scores are the ends of their leases in ms. Besides:
--          `beaten`: when any process was last here;
--          `grace`: until when a process without a lease may be one that has not been here yet;
--          `epoch:TIME:RUN_ID[:again]`, with the score +inf: the epoch of the data, by the time at which it began and
--          the run id of the Redis server on which it began (empty if Redis may not be asked for it); `:again` if the
--          set existed before;
--          `asked`: when a process was last given suspects.
--          A lease that was lengthened over the grace ends half a millisecond before a whole one, until its process
--          renews it.
-- KEYS[2]  hash of the connections of processes, by mailbox: the run id of the Redis server, a colon, and their ids
--          there, with commas between. Without this key, there are no further arguments, and no suspects are returned
-- ARGV[1]  mailbox
-- ARGV[2]  length of a lease
-- ARGV[3]  after how long without any process there is grace
-- ARGV[4]  length of the grace
-- ARGV[5]  for how long an ended lease is listed
-- ARGV[6]  for how long the process of an ended lease may return
-- ARGV[7]  connections of this process; empty if it has none whose end says that the process has ended
-- ARGV[8]  how long after its last sign of life a process is a suspect; 0 to get none
-- ARGV[9]  after how long suspects may be returned again; these seven times are in ms
-- Returns  {1 if the lease had ended, 1 if there is grace, time in ms, ms until another lease ends (or -1),
--          {mailboxes with a lease}, {mailboxes whose lease has ended}, {those of them that will not return}, epoch,
--          {mailbox of a suspect, the end of its lease, its ids, …}}

-- include now.lua
local function text(number) return string.format('%.0f', number) end
local beaten = tonumber(redis.call('ZSCORE', KEYS[1], 'beaten') or 0)
local grace = tonumber(redis.call('ZSCORE', KEYS[1], 'grace') or 0)
local own = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
local silent = now - beaten > tonumber(ARGV[3])
local info, run, epoch, stamp = redis.pcall('INFO', 'server'), '', '', nil
if type(info) == 'string' then run = string.match(info, 'run_id:(%x+)') or '' end
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], '+inf', '+inf', 'BYSCORE')) do
  local begun, where = string.match(member, '^epoch:(%d+):?(%x*)')
  if begun and #begun < 16 then epoch, stamp = member, where end
end
-- On another server the data is a replica's or a snapshot's, and may be older: another epoch begins. Leases may be
-- missing, too, so there is grace.
local another = beaten > 0 and (not stamp or (run ~= '' and run ~= stamp))
local back = grace - ARGV[4]  -- when Redis has answered again after the last silence
if silent or another then grace = now + ARGV[4] end
-- If the clock was put back, no lease may run longer from now than one that begins now, or than the grace.
if grace > now + ARGV[4] then
  grace = now + ARGV[4]
  redis.call('ZADD', KEYS[1], text(grace), 'grace')
end
local longest = text(math.max(now + ARGV[2], grace))
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], '(' .. longest, '+inf', 'BYSCORE')) do
  if string.sub(member, -1) == '!' then redis.call('ZADD', KEYS[1], longest, member) end
end
local forgotten = grace > now - ARGV[5] and -1 or now - ARGV[5]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(forgotten))
-- If no process was here for long, Redis or all processes were stopped: the leases that ran when one was last here
-- are lengthened over the grace. One that was lengthened before keeps what is left of its grace: otherwise the grace of
-- a dead process would not end while Redis is away again and again. Too short a time between two silences does not
-- count, because not every process could connect again.
if silent then
  local answered = beaten - back
  if answered < ARGV[4] / 4 then answered = 0 end
  local running = redis.call('ZRANGE', KEYS[1], '(' .. text(beaten), '+inf', 'BYSCORE', 'WITHSCORES')
  for i = 1, #running, 2 do
    local member, score, left = running[i], tonumber(running[i + 1]), tonumber(ARGV[4])
    if score % 1 == 0.5 then left = math.min(left, score + 0.5 - back - answered) end
    if string.sub(member, -1) == '!' then redis.call('ZADD', KEYS[1], string.format('%.1f', now + left - 0.5), member) end
  end
end
if silent or another then redis.call('ZADD', KEYS[1], text(grace), 'grace') end
redis.call('ZADD', KEYS[1], text(now + ARGV[2]), ARGV[1], text(now), 'beaten')
redis.call('PEXPIRE', KEYS[1], 86400000)
if beaten == 0 or another then
  epoch = 'epoch:' .. text(now) .. ':' .. run .. (another and ':again' or '')
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '+inf', '+inf')
  redis.call('ZADD', KEYS[1], '+inf', epoch)
end
local live, ended, gone, first = {}, {}, {}, -1
local members = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #members, 2 do
  local member, score = members[i], tonumber(members[i + 1])
  if string.sub(member, -1) == '!' then
    if score <= now then
      ended[#ended + 1] = member
      if score <= now - ARGV[6] then gone[#gone + 1] = member end
    else
      live[#live + 1] = member
      if first == -1 and member ~= ARGV[1] then first = score - now end
    end
  end
end
local lapsed = own <= (silent and beaten or now) and 1 or 0
local reply = {lapsed, grace > now and 1 or 0, now, first, live, ended, gone, epoch}
if not KEYS[2] then return reply end
if ARGV[7] == '' then
  redis.call('HDEL', KEYS[2], ARGV[1])
else
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[7])
  redis.call('PEXPIRE', KEYS[2], 86400000)
end
-- Suspects have named connections to this server, and have given no sign of life for a while, in which another process
-- has: otherwise Redis was stopped, or all of them. Within the grace, processes may still be about to connect again,
-- unless it began with the epoch.
local suspects, since = {}, now - ARGV[8]
local asked = tonumber(redis.call('ZSCORE', KEYS[1], 'asked') or 0)
local settled = grace <= now or grace - ARGV[4] == tonumber(string.match(epoch, '^epoch:(%d+):%x*$'))
if tonumber(ARGV[8]) > 0 and settled and beaten > since and now - asked >= tonumber(ARGV[9]) then
  for i = 1, #members, 2 do
    local member, score = members[i], tonumber(members[i + 1])
    if score > now and score - ARGV[2] <= since and string.sub(member, -1) == '!' then
      local where, ids = string.match(redis.call('HGET', KEYS[2], member) or '', '^(%x+):([%d,]+)$')
      if where == run then
        suspects[#suspects + 1] = member
        suspects[#suspects + 1] = text(score)
        suspects[#suspects + 1] = ids
      end
    end
  end
  if #suspects > 0 then redis.call('ZADD', KEYS[1], text(now), 'asked') end
end
reply[#reply + 1] = suspects
return reply
