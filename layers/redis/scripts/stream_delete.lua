-- Delete a stream. For a while its hash says so to its writer and its followers.
--
-- KEYS[1]  hash of the stream, as in stream_begin.lua
-- KEYS[2]  stream of the batches
-- ARGV[1]  for how long its hash says so, in ms
-- Returns  nil if there is none, or {epoch; last; channel of its writer}

-- include now.lua
-- include stream_state.lua
if stream.state == 'deleted' then return nil end
redis.call('UNLINK', KEYS[1], KEYS[2])
if not stream.epoch then return nil end
redis.call('HSET', KEYS[1], 'epoch', stream.epoch, 'term', stream.term, 'writer', '', 'state', 'deleted',
  'first', text(stream.last + 1), 'last', stream.last, 'bytes', 0, 'cancelled', '0', 'fails', '0', 'kept', '0')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return {stream.epoch, stream.last, stream.writer}
