-- Take a will of this process, to execute it.
--
-- KEYS[1]  hash of the wills of the process: for each connection, an entry. Besides `:at`, when the process was here
-- ARGV[1]  number of the connection
-- Returns  1 if the will was there; 0 if it is gone, and 2 if the whole hash is: another process has taken the wills, or
--          Redis has lost its data

if redis.call('HDEL', KEYS[1], ARGV[1]) == 1 then return 1 end
return redis.call('EXISTS', KEYS[1]) == 1 and 0 or 2
