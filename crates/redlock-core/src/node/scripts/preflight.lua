-- Runs the commands of the scripts on a key that does not exist, so that a missing right shows when
-- connecting and not when a lock is to be released, and says which it is. That the server is full
-- is no reason not to connect: it can still release.
for _, command in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(command, '%S+') do
    words[#words + 1] = word == '@' and KEYS[1] or word
  end
  local answer = redis.pcall(unpack(words))
  if type(answer) == 'table' and answer.err and not string.find(answer.err, 'OOM ', 1, true) then
    return {err = answer.err .. ' (' .. string.lower(words[1]) .. ')'}
  end
end
return 1
