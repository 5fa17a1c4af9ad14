-- Delete a key that is of another type than expected.
--
-- KEYS[1]  any key
-- ARGV[1]  the expected type, as TYPE names it
-- Returns  1 if deleted, else 0

local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' or kind == ARGV[1] then return 0 end
return redis.call('UNLINK', KEYS[1])
