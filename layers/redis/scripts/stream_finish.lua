-- End a stream, because its writer has left it.
--
-- It begins with a write that needs no memory, so that Redis allows the others when it is out of memory.
--
-- KEYS[1]  hash of the stream, as in stream_begin.lua
-- KEYS[2]  stream of the batches
-- ARGV[1]  channel of the writer
-- ARGV[2]  epoch
-- ARGV[3]  term of the writer
-- ARGV[4]  number of the newest entry
-- ARGV[5]  for how long the stream is kept, in ms
-- ARGV[6]  the state: ended or failed
-- ARGV[7]  why it has failed
-- ARGV[8]  for how long it stays open, as it is likely to be begun again, in ms; then it fails
-- ARGV[9]  content type of the stream
-- ARGV[10] 1 unless the writer has some of the entries, to store them again
-- Returns  0, or why the writer may not write as in stream_written.lua

-- include now.lua
redis.call('HDEL', KEYS[1], '')
-- include stream_state.lua
-- include stream_written.lua
if stream.epoch == ARGV[2] and stream.ended == ARGV[1] then -- this was written again, or ends what was left open
  if not is_open() or ARGV[8] ~= '0' then return 0 end
else
  local refused = refusal(
    ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[10] == '1', ARGV[9]
  )
  if refused > 0 then return refused end
end
stream.writer, stream.ended, stream.error, stream.kept = '', ARGV[1], ARGV[7], ARGV[5]
stream.fails = text(now + ARGV[8])
if ARGV[8] == '0' then stream.state = ARGV[6] end
save(tonumber(ARGV[5]))
return 0
