-- Renew the lease of a process, and list the leases of all.
--
-- KEYS[1]  sorted set of the processes. Members are mailboxes, scores are the ends of their leases in ms. Besides:
--          `beaten`: when any process was last here;
--          `grace`: until when a process without a lease may be one that has not been here yet;
--          `epoch:TIME:RUN_ID[:again]`, with the score +inf: the epoch of the data, by the time at which it began and
--          the run id of the Redis server on which it began (empty if Redis may not be asked for it); `:again` if the
--          set existed before.
-- ARGV[1]  mailbox
-- ARGV[2]  length of a lease
-- ARGV[3]  after how long without any process there is grace
-- ARGV[4]  length of the grace
-- ARGV[5]  for how long an ended lease is listed
-- ARGV[6]  for how long the process of an ended lease may return; these five are in ms
-- Returns  {1 if the lease had ended, 1 if there is grace, time in ms, ms until another lease ends (or -1),
--          {mailboxes with a lease}, {mailboxes whose lease has ended}, {those of them that will not return}, epoch}

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
-- are lengthened over the grace.
if silent then
  for _, member in ipairs(redis.call('ZRANGE', KEYS[1], '(' .. text(beaten), '+inf', 'BYSCORE')) do
    redis.call('ZADD', KEYS[1], 'GT', text(grace), member)
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
return {own <= (silent and beaten or now) and 1 or 0, grace > now and 1 or 0, now, first, live, ended, gone, epoch}
