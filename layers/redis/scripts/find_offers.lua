-- Find entries of a work queue by their ids or payloads.
--
-- KEYS[1]  stream of the queue
-- ARGV[1]  an id before all of these entries
-- ARGV[2]  how many entries to scan
-- ARGV[3…] pairs: id or '', payload
-- Returns  for each pair its id; '' if it is not there, '?' if there was more to scan

local ids, there, none = {}, nil, ''
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  if id == '' or #redis.call('XRANGE', KEYS[1], id, id) == 0 then
    if not there then
      there = {}
      local entries = redis.call('XREVRANGE', KEYS[1], '+', ARGV[1], 'COUNT', ARGV[2])
      for _, entry in ipairs(entries) do there[entry[2][2]] = entry[1] end
      if #entries == tonumber(ARGV[2]) then none = '?' end
    end
    id = there[ARGV[i + 1]] or none
  end
  ids[#ids + 1] = id
end
return ids
