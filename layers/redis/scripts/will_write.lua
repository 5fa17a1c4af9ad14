#!lua
-- Write wills of this process, or renew the hash.
--
-- KEYS[1]  hash of the wills, as in will_take.lua
-- ARGV[1]  for how long the hash is kept that nobody renews, in seconds
-- ARGV[2]  1 if the hash must exist
-- ARGV[3…] number of a connection and its entry, again and again; an empty entry removes the will
-- Returns  1 if that was done; 0 if the hash does not exist

-- include now.lua
if ARGV[2] == '1' and redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for i = 3, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('HSET', KEYS[1], ':at', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[1] * 1000))
return 1
