local answers = {}
for i, key in ipairs(KEYS) do
  local holder = redis.pcall('get', key)
  if holder == ARGV[i] then
    answers[i] = redis.pcall('del', key)
  elseif not holder then
    answers[i] = 0
  elseif type(holder) == 'table' then
    answers[i] = holder
  else
    answers[i] = {holder, redis.pcall('pttl', key)}
  end
end
return answers
