-- Read the state of a stream, and batches behind an offset.
--
-- KEYS[1]  hash of the stream, as in stream_begin.lua
-- KEYS[2]  stream of the batches
-- ARGV[1]  epoch of the offset; 0 for the beginning
-- ARGV[2]  number of the offset
-- ARGV[3]  for how many entries batches are returned; 0 for none
-- ARGV[4]  after how many bytes no further ones are
-- Returns  {} without a stream, {'damaged'} if its state cannot be used, or {epoch; first; last; bytes; state; error; 1 if cancelled; ms until an open stream
--          fails; 1 if entries behind the offset are gone; number behind which the batches are; content type; {id, batch,
--          …}}

-- include now.lua
-- include stream_state.lua
if not stream.epoch then return damaged and {'damaged'} or {} end
local epoch, first, last = tonumber(stream.epoch), tonumber(stream.first), tonumber(stream.last)
local state, left = stream.state, 0
if is_open() then left = stream.fails - now elseif state == 'open' then state = 'failed' end
local of, after = tonumber(ARGV[1]), tonumber(ARGV[2])
-- A store that has lost entries gets them again from their writer. Without one, other entries get their numbers.
local lost = after > last and stream.writer == '' and is_open()
local reset = (of > 0 and of ~= epoch) or after < first - 1 or lost
if reset then after = first - 1 end
local batches, count, bytes = {}, 0, 0
local limit = math.min(tonumber(ARGV[3]), last - after)
local from = stream.epoch .. '-' .. text(after + 1)
while count < limit and bytes < tonumber(ARGV[4]) do
  local found = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', 16)
  for _, batch in ipairs(found) do
    batches[#batches + 1] = batch[1]
    batches[#batches + 1] = batch[2][2]
    bytes = bytes + #batch[2][2]
    count = string.match(batch[1], '%-(%d+)$') - after
    from = '(' .. batch[1]
    if bytes >= tonumber(ARGV[4]) then break end
  end
  if #found < 16 then break end
end
return {
  stream.epoch, stream.first, stream.last, stream.bytes, state, stream.error or '', stream.cancelled, left,
  reset and 1 or 0, text(after), stream.type or '', batches
}
