-- Take a dead process out of a group, unless it has joined again since its death.
--
-- KEYS[1]  sorted set of the group
-- ARGV[1]  member
-- ARGV[2]  lifetime of a membership, in seconds
-- ARGV[3]  time of the death, in ms

local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if ends and ends - ARGV[2] * 1000 <= tonumber(ARGV[3]) then redis.call('ZREM', KEYS[1], ARGV[1]) end
