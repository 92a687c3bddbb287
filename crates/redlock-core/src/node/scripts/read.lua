-- Says who has each key. It writes nothing.
local pcall, answers = redis.pcall, {}
for i, key in ipairs(KEYS) do
  local holder = pcall('get', key)
  if not holder then
    answers[i] = 0
  elseif type(holder) == 'table' then
    answers[i] = holder
  else
    answers[i] = {holder, pcall('pttl', key)}
  end
end
return answers
