-- All commands of a batch, after one look at whether this server may vote.
--
-- KEYS: the server's record, then the keys that each command takes.
-- ARGV: quarantine in ms, epoch, fingerprint, durable or not; how many counters the commands take
-- and their names, in order; then each command with what else it takes.
local record = KEYS[1]
local quarantine, epoch, config = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local arg_at = 5 + tonumber(ARGV[5])
local names = {}
for i = 6, arg_at do
  names[i - 5] = ARGV[i]
end

local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local kept = redis.call('HMGET', record, 'run', 'epoch', 'config', 'until', 'quarantine', 'all',
  'void', unpack(names))
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
  local written = redis.pcall('HSET', record, 'until', whole(ends), ...)
  refusal = is_error(written) and written or {err = 'QUARANTINED ' .. whole(ends - now)}
end

if kept[1] ~= run and not (kept[1] and ARGV[4] == '1') then
  -- Another process than the one that wrote the record, or no record: what this server knows of
  -- locks and counters may be old or nothing at all.
  redis.call('DEL', record)
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
  local written = redis.pcall('HSET', record, 'run', run)
  refusal = is_error(written) and written or nil
end

-- Nothing below may raise an error: it would hide what the commands before it have done.

local key_at = 1
local function key()
  key_at = key_at + 1
  return KEYS[key_at]
end
local function arg()
  arg_at = arg_at + 1
  return ARGV[arg_at]
end

-- The counters that were looked at, by name. They are written together at the end.
local counters, taken = {}, 0
local function counter()
  taken = taken + 1
  local name = names[taken]
  if not counters[name] then
    local last = kept[7 + taken]
    local known = last or all_known
    if not known then
      last = redis.call('HMGET', record, 'u' .. name)[1]
    end
    counters[name] = {last = tonumber(last or 0), known = known, lost = not known}
  end
  return counters[name]
end

local answers = {}
-- Which answers count only if the counters are written, and the key to delete otherwise.
local depending = {}
local function depend_on(counter, value, key)
  counter.last, counter.changed = value, true
  depending[#answers + 1] = key or false
end

-- Who has a key that is not ours.
local function holder_of(key, holder)
  if not holder then
    return 0
  elseif type(holder) == 'table' then
    return holder
  end
  return {holder, redis.pcall('PTTL', key)}
end

local function release(key, token)
  local holder = redis.pcall('GET', key)
  if holder == token then
    return redis.pcall('DEL', key)
  end
  return holder_of(key, holder)
end

local commands = {}

-- Said before all others, by clients that are to notice clocks that were set: what theirs shows,
-- and by how much that of a server may differ which votes.
local said
function commands.clock()
  local most
  said, most = tonumber(arg()), tonumber(arg())
  local ahead = micros - said
  if math.abs(ahead) > most then
    refusal = {err = 'SKEW ' .. whole(ahead / 1000)}
  end
end

-- This server's clock was wrong while a majority agreed with the client's: a lock may have expired
-- too soon. What it was said counts, as this clock may still be wrong.
function commands.distrust()
  local ends = math.floor((said or micros) / 1000) + quarantine
  local votes_at = redis.pcall('HGET', record, 'until')
  if is_error(votes_at) then
    return votes_at
  elseif tonumber(votes_at or 0) < ends then
    local written = redis.pcall('HSET', record, 'until', whole(ends))
    if is_error(written) then
      return written
    end
    refusal = refusal or {err = 'QUARANTINED ' .. whole(ends - now)}
  end
  return 1
end

function commands.acquire()
  local key, void, token, ttl, proposal, counter = key(), key(), arg(), arg(), arg(), counter()
  if refusal then
    return refusal
  end
  if now < void_until then
    local voided = redis.pcall('EXISTS', void)
    if voided ~= 0 then
      return is_error(voided) and voided or {err = 'VOID'}
    end
  end
  -- The first write is one that a full server refuses: there is nothing half done then.
  local set = redis.pcall('SET', key, token, 'NX', 'PX', ttl)
  if not set then
    return holder_of(key, redis.pcall('GET', key))
  elseif set.err then
    return set
  end
  -- A clock that is far ahead must not use up the numbers.
  local proposed = math.min(tonumber(proposal), micros + 60000000)
  depend_on(counter, math.max(counter.last + 1, proposed), key)
  return {counter.last, counter.known and 1 or 0}
end

function commands.extend()
  local key, token, ttl = key(), arg(), arg()
  if refusal then
    return refusal
  end
  local holder = redis.pcall('GET', key)
  if holder ~= token then
    return holder_of(key, holder)
  end
  -- Never shorter: an extension that comes late must not cut off one that was confirmed since.
  local left = redis.pcall('PTTL', key)
  if type(left) == 'number' and left >= tonumber(ttl) then
    return 1
  end
  return redis.pcall('PEXPIRE', key, ttl)
end

function commands.confirm()
  local key, token, fence, counter = key(), arg(), arg(), counter()
  if refusal then
    return refusal
  end
  local holder = redis.pcall('GET', key)
  if holder ~= token then
    return holder_of(key, holder)
  end
  counter.known = true
  depend_on(counter, math.max(counter.last, tonumber(fence)))
  return 1
end

function commands.count()
  local counter = counter()
  if refusal then
    return refusal
  end
  return counter.known and {counter.last, 1} or {counter.last, 0, tonumber(kept[4])}
end

-- What the other servers remember. Only if nothing was lost since they were asked.
function commands.learn()
  local value, since, counter = arg(), arg(), counter()
  if refusal then
    return refusal
  elseif since ~= kept[4] then
    return 0
  elseif not counter.known then
    counter.known = true
    depend_on(counter, math.max(counter.last, tonumber(value)))
  end
  return 1
end

function commands.release()
  return release(key(), arg())
end

-- A release that may be overtaken by what it undoes: the token is of no use afterwards.
function commands.void()
  local key, void, token = key(), key(), arg()
  local released = release(key, token)
  if released ~= 1 then
    void_until = math.max(void_until, now + quarantine)
    redis.pcall('SET', void, 1, 'PX', whole(quarantine))
    redis.pcall('HSET', record, 'void', whole(void_until))
  end
  return released
end

function commands.inspect()
  local key = key()
  return holder_of(key, redis.pcall('GET', key))
end

while arg_at < #ARGV do
  answers[#answers + 1] = commands[arg()]()
end

local written, regained = {}, {}
for name, counter in pairs(counters) do
  if counter.changed then
    written[#written + 1] = counter.known and name or 'u' .. name
    written[#written + 1] = whole(counter.last)
    if counter.known and counter.lost then
      regained[#regained + 1] = 'u' .. name
    end
  end
end
if #written > 0 then
  local failed = redis.pcall('HSET', record, unpack(written))
  if is_error(failed) then
    for i, key in pairs(depending) do
      local undone = not key or redis.pcall('DEL', key) == 1
      answers[i] = undone and failed or {err = 'HALFDONE ' .. failed.err}
    end
  elseif #regained > 0 then
    redis.pcall('HDEL', record, unpack(regained))
  end
end
return answers
