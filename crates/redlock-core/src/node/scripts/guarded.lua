-- The votes of a batch, after one look at whether this server may vote.
--
-- KEYS: the server's record, then the key of each command that has one.
-- ARGV: quarantine in ms, epoch, fingerprint, durable or not; what the keys of void tokens begin
-- with; what the client's clock shows and by how much this one may differ, both empty if it may
-- differ by any time; how many counters the commands take and their names, in order; then the
-- commands in runs of a kind: its name, how many there are, what they share, and what each takes
-- besides its key.
-- Globals are slow, and these are read for every command.
local KEYS, ARGV, call, pcall = KEYS, ARGV, redis.call, redis.pcall
local record, key_at = KEYS[1], 1
local quarantine, epoch, config, void = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[5]
local said, most_skew = tonumber(ARGV[6]), tonumber(ARGV[7])
local arg_at = 8 + tonumber(ARGV[8])

local time = call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
local info = call('INFO', 'server')
local _, named = string.find(info, 'run_id:', 1, true)
local run = string.match(info, '^%w+', named + 1)
local kept = call('HMGET', record, 'run', 'epoch', 'config', 'until', 'quarantine', 'all',
  'void', unpack(ARGV, 9, arg_at))
local all_known, void_until = kept[6], tonumber(kept[7] or 0)

local function whole(number)
  return string.format('%.0f', number)
end

local function is_error(answer)
  return type(answer) == 'table' and answer.err
end

-- Why commands that count as votes are not executed; nil if they are.
local refusal

local function quarantine_until(ends, ...)
  local written = pcall('HSET', record, 'until', whole(ends), ...)
  refusal = is_error(written) and written or {err = 'QUARANTINED ' .. whole(ends - now)}
end

if kept[1] ~= run and not (kept[1] and ARGV[4] == '1') then
  -- Another process than the one that wrote the record, or no record: what this server knows of
  -- locks and counters may be old or nothing at all.
  call('DEL', record)
  quarantine_until(now + quarantine, 'run', run, 'epoch', epoch, 'config', config,
    'quarantine', whole(quarantine))
elseif epoch > tonumber(kept[2]) then
  local longest = math.max(quarantine, tonumber(kept[5]))
  quarantine_until(math.max(now + longest, tonumber(kept[4])), 'run', run, 'epoch', epoch,
    'config', config, 'quarantine', whole(quarantine))
elseif epoch < tonumber(kept[2]) then
  refusal = {err = 'EPOCH ' .. kept[2]}
elseif config ~= kept[3] then
  refusal = {err = 'CONFIG ' .. kept[2]}
elseif now < tonumber(kept[4]) then
  refusal = {err = 'QUARANTINED ' .. whole(tonumber(kept[4]) - now)}
elseif kept[1] ~= run then
  local written = pcall('HSET', record, 'run', run)
  refusal = is_error(written) and written or nil
end

if said and math.abs(micros - said) > most_skew then
  refusal = {err = 'SKEW ' .. whole((micros - said) / 1000)}
end

-- Nothing below may raise an error: it would hide what the commands before it have done.

local function key()
  key_at = key_at + 1
  return KEYS[key_at]
end
local function arg()
  arg_at = arg_at + 1
  return ARGV[arg_at]
end

-- The counters that were looked at, by name: the last value of each; which of them this server has
-- lost, and which of those it has learned again; and what is to be written, together at the end.
local last_of, lost, learned, written_as = {}, {}, {}, {}
local counter_at = 8
local function counter()
  counter_at = counter_at + 1
  local name = ARGV[counter_at]
  local last = last_of[name]
  if not last then
    last = kept[counter_at - 1]
    if not last and not all_known then
      lost[name] = true
      last = call('HMGET', record, 'u' .. name)[1]
    end
    last = tonumber(last or 0)
    last_of[name] = last
  end
  return name, last
end

-- It is known from now on: at least so much.
local function learn(name, last, text)
  local value = tonumber(text)
  if value > last then
    last_of[name], written_as[name] = value, text
  else
    written_as[name] = written_as[name] or whole(last)
  end
  if lost[name] then
    learned[name], lost[name] = true, nil
  end
end

local answers, answered = {}, 0
-- Which answers count only if the counters are written, and the key to delete otherwise.
local depending = {}

-- Who has a key that is not ours.
local function holder_of(key, holder)
  if not holder then
    return 0
  elseif type(holder) == 'table' then
    return holder
  end
  return {holder, pcall('PTTL', key)}
end

local function release(key, token)
  local holder = pcall('GET', key)
  if holder == token then
    return pcall('DEL', key)
  end
  return holder_of(key, holder)
end

local function acquire(key, token, proposal, ttl)
  local name, last = counter()
  if refusal then
    return refusal
  end
  if now < void_until then
    local voided = pcall('EXISTS', void .. token)
    if voided ~= 0 then
      return is_error(voided) and voided or {err = 'VOID'}
    end
  end
  -- The first write is one that a full server refuses: there is nothing half done then.
  local set = pcall('SET', key, token, 'NX', 'PX', ttl)
  if not set then
    return holder_of(key, pcall('GET', key))
  elseif set.err then
    return set
  end
  -- A clock that is far ahead must not use up the numbers.
  local value, text = tonumber(proposal), proposal
  if value > micros + 60000000 then
    value, text = micros + 60000000, nil
  end
  if value <= last then
    value, text = last + 1, nil
  end
  last_of[name], written_as[name] = value, text or whole(value)
  depending[answered] = key
  return lost[name] and {value, 0} or value
end

local commands = {}

function commands.extend(ttl)
  local key, token = key(), arg()
  if refusal then
    return refusal
  end
  local holder = pcall('GET', key)
  if holder ~= token then
    return holder_of(key, holder)
  end
  -- Never shorter: an extension that comes late must not cut off one that was confirmed since.
  local left = pcall('PTTL', key)
  if type(left) == 'number' and left >= tonumber(ttl) then
    return 1
  end
  return pcall('PEXPIRE', key, ttl)
end

function commands.confirm()
  local key, token, fence = key(), arg(), arg()
  local name, last = counter()
  if refusal then
    return refusal
  end
  local holder = pcall('GET', key)
  if holder ~= token then
    return holder_of(key, holder)
  end
  learn(name, last, fence)
  depending[answered] = false
  return 1
end

function commands.count()
  local name, last = counter()
  if refusal then
    return refusal
  end
  return lost[name] and {last, 0, tonumber(kept[4])} or {last, 1}
end

-- What the other servers remember. Only if nothing was lost since they were asked.
function commands.learn()
  local value, since = arg(), arg()
  local name, last = counter()
  if refusal then
    return refusal
  elseif since ~= kept[4] then
    return 0
  elseif lost[name] then
    learn(name, last, value)
    depending[answered] = false
  end
  return 1
end

-- A release that may be overtaken by what it undoes: the token is of no use afterwards.
function commands.void()
  local key, token = key(), arg()
  local released = release(key, token)
  if released ~= 1 then
    void_until = math.max(void_until, now + quarantine)
    pcall('SET', void .. token, 1, 'PX', whole(quarantine))
    pcall('HSET', record, 'void', whole(void_until))
  end
  return released
end

-- This server's clock was wrong while a majority agreed with the client's: a lock may have expired
-- too soon. What it was said counts, as this clock may still be wrong.
function commands.distrust()
  local ends = math.floor((said or micros) / 1000) + quarantine
  local votes_at = pcall('HGET', record, 'until')
  if is_error(votes_at) then
    return votes_at
  elseif tonumber(votes_at or 0) < ends then
    local written = pcall('HSET', record, 'until', whole(ends))
    if is_error(written) then
      return written
    end
    refusal = refusal or {err = 'QUARANTINED ' .. whole(ends - now)}
  end
  return 1
end

function commands.release()
  return release(key(), arg())
end

while arg_at < #ARGV do
  local name, count = arg(), arg()
  if name == 'acquire' then
    local ttl = arg()
    for _ = 1, count do
      answered, key_at, arg_at = answered + 1, key_at + 1, arg_at + 2
      answers[answered] = acquire(KEYS[key_at], ARGV[arg_at - 1], ARGV[arg_at], ttl)
    end
  else
    local command, ttl = commands[name], name == 'extend' and arg()
    for _ = 1, count do
      answered = answered + 1
      answers[answered] = command(ttl)
    end
  end
end

local written, regained = {}, {}
for name, text in pairs(written_as) do
  written[#written + 1] = lost[name] and 'u' .. name or name
  written[#written + 1] = text
end
for name in pairs(learned) do
  regained[#regained + 1] = 'u' .. name
end
if #written > 0 then
  local failed = pcall('HSET', record, unpack(written))
  if is_error(failed) then
    for i, key in pairs(depending) do
      local undone = not key or pcall('DEL', key) == 1
      answers[i] = undone and failed or {err = 'HALFDONE ' .. failed.err}
    end
  elseif #regained > 0 then
    pcall('HDEL', record, unpack(regained))
  end
end
return answers
