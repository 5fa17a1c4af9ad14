#!lua
-- Keep a message of a group, in a stream that the store numbers itself, and drop what is over its limits.
--
-- KEYS[1]  hash of the stream, as in stream_begin.lua
-- KEYS[2]  stream of the batches; each has one message, and its id
-- KEYS[3]  hash: the number of each kept message by its id
-- ARGV[1]  id of the message
-- ARGV[2]  for how long messages are kept after the last one, in ms. Their numbers are known for longer
-- ARGV[3]  how many messages are kept
-- ARGV[4]  how many bytes are kept
-- ARGV[5]  the message
-- ARGV[6]  for how long the number of the last one is known after that, in ms
-- Returns  {1, or 0 if a message with that id is kept; epoch; its number}

-- include now.lua
-- include stream_state.lua
-- include stream_written.lua
if not is_open() then
  local epoch = text(math.max(now, tonumber(stream.epoch or 0) + 1))
  redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
  stream = {
    epoch = epoch, term = '1', writer = '', first = '1', last = '0', bytes = '0', cancelled = '0', state = 'open',
    error = '', grace = '0'
  }
end
if stream.gone and tonumber(stream.gone) <= now then redis.call('UNLINK', KEYS[2], KEYS[3]) end
local known = redis.call('HGET', KEYS[3], ARGV[1])
if known and tonumber(known) >= tonumber(stream.first) then return {0, stream.epoch, known} end
local first, last, bytes = tonumber(stream.first), tonumber(stream.last) + 1, stream.bytes + #ARGV[5]
redis.call('XADD', KEYS[2], stream.epoch .. '-' .. text(last), 'b', ARGV[5], 'i', ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], text(last))
first = math.max(first, last - ARGV[3] + 1)
while true do
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  local number = tonumber(string.match(oldest[1], '%-(%d+)$'))
  if number == last then bytes = #ARGV[5] end -- whatever has become of the others
  if number == last or (number >= first and bytes <= tonumber(ARGV[4])) then break end
  redis.call('XDEL', KEYS[2], oldest[1])
  redis.call('HDEL', KEYS[3], oldest[2][4])
  bytes = bytes - #oldest[2][2]
  first = math.max(first, number + 1)
end
stream.first, stream.last, stream.bytes = text(first), text(last), text(bytes)
stream.fails, stream.kept, stream.gone = text(now + ARGV[2] + ARGV[6]), ARGV[2], text(now + ARGV[2])
save(0)
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return {1, stream.epoch, text(last)}
