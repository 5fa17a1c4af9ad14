-- Read the state of a stream into `stream`, a table of the fields of its hash; empty without one.

local stream = {}
do
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do stream[fields[i]] = fields[i + 1] end
end
local function text(number) return string.format('%.0f', number) end
local function is_open() return stream.state == 'open' and tonumber(stream.fails) > now end
