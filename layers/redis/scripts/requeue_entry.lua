-- Defines `requeue(id, fields)`: append an acknowledged entry to its stream again, for another consumer.
-- The field `since` keeps the id that the entry had at first.
local function requeue(id, fields)
  if fields[3] ~= 'since' then
    table.insert(fields, 3, 'since')
    table.insert(fields, 4, id)
  end
  redis.call('XADD', KEYS[1], '*', unpack(fields))
  redis.call('XDEL', KEYS[1], id)
end
