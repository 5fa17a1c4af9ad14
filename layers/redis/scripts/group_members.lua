-- List the members of a group.
--
-- KEYS[1]  sorted set of the group
-- Returns  {time in ms, {members whose membership has not ended}}

-- include now.lua
return {now, redis.call('ZRANGE', KEYS[1], string.format('(%.0f', now), '+inf', 'BYSCORE')}
