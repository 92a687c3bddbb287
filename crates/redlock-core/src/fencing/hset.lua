-- Writes fields of a hash, unless a later lock has written to it.
--
-- KEYS: the hash. ARGV: the fencing token, then each field with its value.
-- Answers 1, or 0 if it was refused.
if not string.find(ARGV[1] or '', '^%d+$') then
  return redis.error_reply('ERR the fencing token is not a number')
end
local last = redis.call('HGET', KEYS[1], 'fence')
if last and tonumber(ARGV[1]) < tonumber(last) then
  return 0
end
redis.call('HSET', KEYS[1], 'fence', unpack(ARGV))
return 1
