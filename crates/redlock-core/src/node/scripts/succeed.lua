local key, holder = KEYS[1], redis.pcall('get', KEYS[1])
local released = 0
if holder == ARGV[1] then
  released = redis.pcall('del', key)
elseif type(holder) == 'table' then
  released = holder
elseif holder then
  released = {holder, redis.pcall('pttl', key)}
end
return {released, redis.pcall('set', key, ARGV[2], 'nx', 'px', ARGV[3])}
