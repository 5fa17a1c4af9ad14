-- Ask the writer of a stream to stop.
--
-- It begins with a write that needs no memory, so that Redis allows the other when it is out of memory.
--
-- KEYS[1]  hash of the stream, as in stream_begin.lua
-- Returns  nil if the stream is not open, or the channel of its writer; empty without one

-- include now.lua
redis.call('HDEL', KEYS[1], '')
-- include stream_state.lua
if not is_open() then return nil end
redis.call('HSET', KEYS[1], 'cancelled', '1')
return stream.writer
