#!lua
-- Append a batch to a stream and drop what is over its limits, or give a sign of life of its writer.
--
-- KEYS[1]  hash of the stream, as in stream_begin.lua
-- KEYS[2]  stream of the batches
-- ARGV[1]  channel of the writer
-- ARGV[2]  epoch
-- ARGV[3]  term of the writer
-- ARGV[4]  after how long without a sign of life the stream fails
-- ARGV[5]  for how long the stream stays open if the writer dies
-- ARGV[6]  for how long the stream is kept after its end; these three times are in ms
-- ARGV[7]  content type of the stream
-- ARGV[8]  number in front of the first entry of the batch
-- ARGV[9]  number of the last entry of the batch
-- ARGV[10] 1 unless the writer has some of the entries before, to store them again
-- ARGV[11] how many entries are kept
-- ARGV[12] how many bytes are kept
-- ARGV[13] the batch. Without it, there are no further arguments behind ARGV[10]
-- Returns  {0, or why the writer may not write as in stream_written.lua; 1 if somebody has asked it to stop; the bytes
--          that are kept}

-- include now.lua
-- include stream_state.lua
-- include stream_written.lua
local refused = refusal(ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[8]), ARGV[10] == '1', ARGV[7])
if refused > 0 then return {refused, '0', '0'} end
local last = tonumber(ARGV[9])
if ARGV[13] and tonumber(stream.last) < last then -- the batch is stored already if the connection broke
  redis.call('XADD', KEYS[2], ARGV[2] .. '-' .. ARGV[9], 'b', ARGV[13])
  local first, bytes, limit = tonumber(stream.first), stream.bytes + #ARGV[13], tonumber(ARGV[12])
  if last - first >= tonumber(ARGV[11]) or bytes > limit then
    first = math.max(first, last - ARGV[11] + 1)
    while true do
      local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
      local ends = tonumber(string.match(oldest[1], '%-(%d+)$'))
      if ends == last then bytes = #ARGV[13] end -- whatever has become of the others
      if ends == last or (ends >= first and bytes <= limit) then break end
      redis.call('XDEL', KEYS[2], oldest[1])
      bytes = bytes - #oldest[2][2]
      first = math.max(first, ends + 1)
    end
  end
  stream.first, stream.last, stream.bytes = text(first), text(last), text(bytes)
end
stream.fails, stream.grace, stream.kept = text(now + ARGV[4]), ARGV[5], ARGV[6]
save(tonumber(ARGV[6]))
return {0, stream.cancelled, stream.bytes}
