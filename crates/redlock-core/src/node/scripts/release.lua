-- Globals are slow.
local ARGV, pcall, answers = ARGV, redis.pcall, {}
for i, key in ipairs(KEYS) do
  local holder = pcall('get', key)
  if holder == ARGV[i] then
    answers[i] = pcall('del', key)
  elseif not holder then
    answers[i] = 0
  elseif type(holder) == 'table' then
    answers[i] = holder
  else
    answers[i] = {holder, pcall('pttl', key)}
  end
end
return answers
