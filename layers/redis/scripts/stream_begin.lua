#!lua
-- Make a process-local channel the writer of a stream. One that is over or absent is begun anew, in a later epoch.
--
-- KEYS[1]  hash of the stream:
--          `epoch`: when it was begun, in ms;
--          `term`: the number of its writer in this epoch;
--          `writer`: the channel of the writer; empty without one;
--          `ended`: the channel of the writer that has ended it;
--          `first`, `last`: the numbers of the first entry that is kept and of the newest one;
--          `bytes`: the size of the batches that are kept;
--          `state`: open, ended, failed or deleted;
--          `error`: why it has failed, or will fail;
--          `cancelled`: 1 if somebody has asked the writer to stop;
--          `fails`: when an open stream fails, unless its writer gives a sign of life;
--          `grace`: for how long it stays open if its writer dies;
--          `kept`: for how long it is kept after its end;
--          `gone`: when the kept messages of a group expire, if it has those; these four times are in ms; and
--          `type`: its content type for HTTP clients, if the writer has given one
-- KEYS[2]  stream of the batches. The id of one is its epoch and the number of its last entry
-- ARGV[1]  channel of the writer
-- ARGV[2]  1 to begin an open stream anew, too
-- ARGV[3]  after how long without a sign of life the stream fails
-- ARGV[4]  for how long the stream stays open if the writer dies
-- ARGV[5]  for how long the stream is kept after its end; these three times are in ms
-- ARGV[6]  content type; empty for that of the last writer
-- Returns  {channel of the writer that is fenced, or an empty text; epoch; term; first; last; 1 if cancelled}

-- include now.lua
-- include stream_state.lua
-- include stream_written.lua
local fenced = ''
if not (is_open() and stream.writer == ARGV[1]) then -- it is, if the connection broke and this was written again
  if is_open() then fenced = stream.writer end
  if not is_open() or ARGV[2] == '1' then
    -- Who asked to stop while no writer was there means the next one.
    local cancelled = is_open() and stream.writer == '' and stream.cancelled or '0'
    local epoch = text(math.max(now, tonumber(stream.epoch or 0) + 1))
    redis.call('UNLINK', KEYS[1], KEYS[2])
    stream = {epoch = epoch, term = '0', first = '1', last = '0', bytes = '0', cancelled = cancelled}
  end
  stream.term = text(stream.term + 1)
  if ARGV[6] ~= '' then stream.type = ARGV[6] end
  stream.writer, stream.ended, stream.state, stream.error = ARGV[1], '', 'open', ''
  stream.fails, stream.grace, stream.kept = text(now + ARGV[3]), ARGV[4], ARGV[5]
  save(tonumber(ARGV[5]))
end
return {fenced, stream.epoch, stream.term, stream.first, stream.last, stream.cancelled}
