-- Runs the commands of the scripts on a key that does not exist, so that a missing right shows when
-- connecting and not when a lock is to be released, and says which it is. Nothing else refuses the
-- server: one that is full, for example, can still release.
--
-- In a script, no server has a code for a missing right, and any may have commands that are renamed.
-- The texts of Redis 6.2 and 7.0, those of later ones and Valkey, and of both for no such command.
local REFUSALS = {
  'NOPERM',
  'user executing the script',
  'ACL failure in script',
  'nknown Redis command',
  'nknown command',
}

local function is_about_rights(text)
  for _, said in ipairs(REFUSALS) do
    if string.find(text, said, 1, true) then
      return true
    end
  end
  return false
end

for _, command in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(command, '%S+') do
    words[#words + 1] = word == '@' and KEYS[1] or word
  end
  local answer = redis.pcall(unpack(words))
  if type(answer) == 'table' and answer.err and is_about_rights(answer.err) then
    return {err = answer.err .. ' (' .. string.lower(words[1]) .. ')'}
  end
end
return 1
