#!lua
-- Add a member to a group, or renew its membership.
--
-- KEYS[1]  sorted set of the group; scores are the ends of memberships, in ms
-- ARGV[1]  member
-- ARGV[2]  lifetime of the membership, in seconds
-- Returns  1

-- include now.lua
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2] * 1000), ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), math.ceil(ARGV[2] * 1000)))
return 1
