-- Read the state of a stream into `stream`, a table of the fields of its hash; empty without one, or if it is `damaged`.

local stream, damaged = {}, false
do
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do stream[fields[i]] = fields[i + 1] end
  if #fields > 0 then
    for _, name in ipairs({'epoch', 'term', 'first', 'last', 'bytes', 'fails', 'kept', 'grace', 'gone'}) do
      local number = stream[name] or ((name == 'grace' or name == 'gone') and '0' or '')
      damaged = damaged or #number > 16 or not string.find(number, '^%d+$')
    end
    damaged = damaged or #fields > 100 or not stream.cancelled or not string.find(stream.writer or ' ', '^[%w._!-]*$')
      or not ({open = 1, ended = 1, failed = 1, deleted = 1})[stream.state or '']
    if damaged then stream = {} end
  end
end
local function text(number) return string.format('%.0f', number) end
if stream.gone and tonumber(stream.gone) <= now then stream.first, stream.bytes = text(stream.last + 1), '0' end
local function is_open() return stream.state == 'open' and tonumber(stream.fails) > now end
