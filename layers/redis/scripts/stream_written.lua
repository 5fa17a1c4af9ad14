-- Check that a writer may write to its stream, and return what refuses it otherwise: 1 if another writer has begun, 2 if
-- the stream is not open any more, 3 if it was deleted. If the store has lost the entries up to number `before`, the
-- stream begins again behind them, in the epoch of the writer; or 4 is returned, if the writer has some of them.

local function refusal(channel, epoch, term, before, can_lose, content_type)
  local found = tonumber(stream.epoch or 0)
  if found > epoch then return 1 end
  if found == epoch then
    if stream.state == 'deleted' then return 3 end
    if stream.writer ~= channel and tonumber(stream.term) >= term then return stream.writer == '' and 2 or 1 end
  end
  if found < epoch or tonumber(stream.term) < term or tonumber(stream.last) < before then
    if not can_lose then return 4 end
    redis.call('UNLINK', KEYS[1], KEYS[2])
    stream = {
      epoch = text(epoch), term = text(term), writer = channel, first = text(before + 1), last = text(before),
      bytes = '0', cancelled = '0', type = content_type
    }
  end
  stream.state, stream.error = 'open', ''
  return 0
end

local function save(kept)
  local fields = {}
  for name, value in pairs(stream) do
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  redis.call('HSET', KEYS[1], unpack(fields))
  local left = math.max(0, tonumber(stream.fails) - now) + kept
  redis.call('PEXPIRE', KEYS[1], text(left))
  redis.call('PEXPIRE', KEYS[2], text(left))
end
