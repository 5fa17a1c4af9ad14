-- List the members of a group, or of the processes on the bus.
--
-- KEYS[1]  sorted set of the group, or of the processes
-- Returns  {time in ms, {members whose membership or lease has not ended}}

-- include now.lua
return {now, redis.call('ZRANGE', KEYS[1], string.format('(%.0f', now), '+inf', 'BYSCORE')}
