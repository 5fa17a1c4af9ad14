#!lua
-- Do the same as send_local.lua for one channel, as for most messages: with fewer commands.
--
-- KEYS[1]  stream of the mailbox
-- KEYS[2]  hash of unread messages per channel of the mailbox; missing if they are not counted
-- ARGV[1]  entry
-- ARGV[2]  capacity of the channel
-- ARGV[3]  channel, by its local name
-- Returns  {} if sent, {0} if the channel is full, nil if the mailbox does not exist

local counts = redis.call('EXISTS', KEYS[2]) == 1
if counts and redis.call('HINCRBY', KEYS[2], ARGV[3], 1) > tonumber(ARGV[2]) then
  redis.call('HINCRBY', KEYS[2], ARGV[3], -1)
  return {0}
end
if redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', 'b', ARGV[1]) then return {} end
if counts then redis.call('HINCRBY', KEYS[2], ARGV[3], -1) end
return nil
