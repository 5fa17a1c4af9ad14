-- End a stream whose writer has died, or leave it open for a while if it is likely to be begun again.
--
-- It begins with a write that needs no memory, so that Redis allows the others when it is out of memory.
--
-- KEYS[1]  hash of the stream, as in stream_begin.lua
-- KEYS[2]  stream of the batches
-- ARGV[1]  channel of the writer
-- ARGV[2]  why the stream has failed
-- Returns  nil if that is not its writer, or {epoch; last; for how long it stays open, in ms}

-- include now.lua
redis.call('HDEL', KEYS[1], '')
-- include stream_state.lua
-- include stream_written.lua
if stream.state ~= 'open' or stream.writer ~= ARGV[1] then return nil end
stream.writer, stream.error = '', ARGV[2]
stream.fails = text(now + stream.grace)
if tonumber(stream.grace) == 0 then stream.state = 'failed' end
save(tonumber(stream.kept))
return {stream.epoch, stream.last, stream.grace}
