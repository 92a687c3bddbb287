-- All commands of a batch, after one look at whether this server may vote.
--
-- KEYS: the server's record, then the keys that each command takes.
-- ARGV: quarantine in ms, epoch, fingerprint, durable or not, then each command with what it takes.
local record = KEYS[1]
local quarantine, epoch, config = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local kept = redis.call('HMGET', record, 'run', 'epoch', 'config', 'until', 'quarantine', 'all')
local all_known = kept[6]

-- Why commands that count as votes are not executed; nil if they are.
local refusal

local function whole(number)
  return string.format('%.0f', number)
end

local function quarantine_until(ends, ...)
  local written = redis.pcall('HSET', record, 'until', whole(ends), ...)
  refusal = type(written) == 'table' and written or {err = 'QUARANTINED ' .. whole(ends - now)}
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
  refusal = type(written) == 'table' and written or nil
end

local key_at, arg_at = 1, 4
local function key()
  key_at = key_at + 1
  return KEYS[key_at]
end
local function arg()
  arg_at = arg_at + 1
  return ARGV[arg_at]
end

-- The counter of a bucket, and whether it counts all there ever was.
local function counter(bucket)
  local last = redis.call('HMGET', record, 'f' .. bucket, 'u' .. bucket)
  if last[1] or all_known then
    return tonumber(last[1] or 0), true
  end
  return tonumber(last[2] or 0), false
end

-- From now on the counter counts all there ever was.
local function raise(bucket, value, known)
  local written = redis.pcall('HSET', record, 'f' .. bucket, whole(value))
  if type(written) == 'table' then
    return written
  elseif not known then
    redis.pcall('HDEL', record, 'u' .. bucket)
  end
  return 1
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

-- Nothing below may raise an error: it would hide what the commands before it have done.
local function release(key, token)
  local holder = redis.pcall('GET', key)
  if holder == token then
    return redis.pcall('DEL', key)
  end
  return holder_of(key, holder)
end

local commands = {
  acquire = function()
    local key, void, token, ttl, proposal, bucket = key(), key(), arg(), arg(), arg(), arg()
    if refusal then
      return refusal
    end
    local voided = redis.pcall('EXISTS', void)
    if voided ~= 0 then
      return type(voided) == 'table' and voided or {err = 'VOID'}
    end
    -- The first write is one that a full server refuses: there is nothing half done then.
    local set = redis.pcall('SET', key, token, 'NX', 'PX', ttl)
    if not set then
      return holder_of(key, redis.pcall('GET', key))
    elseif set.err then
      return set
    end
    local last, known = counter(bucket)
    -- A clock that is far ahead must not use up the numbers.
    local raised = math.max(last + 1, math.min(tonumber(proposal), micros + 60000000))
    local written = redis.pcall('HSET', record, (known and 'f' or 'u') .. bucket, whole(raised))
    if type(written) == 'table' then
      return redis.pcall('DEL', key) == 1 and written or {err = 'HALFDONE ' .. written.err}
    end
    return {raised, known and 1 or 0}
  end,

  extend = function()
    local key, token, ttl = key(), arg(), arg()
    if refusal then
      return refusal
    end
    local holder = redis.pcall('GET', key)
    if holder == token then
      return redis.pcall('PEXPIRE', key, ttl)
    end
    return holder_of(key, holder)
  end,

  confirm = function()
    local key, token, fence, bucket = key(), arg(), arg(), arg()
    if refusal then
      return refusal
    end
    local holder = redis.pcall('GET', key)
    if holder ~= token then
      return holder_of(key, holder)
    end
    local last, known = counter(bucket)
    return raise(bucket, math.max(last, tonumber(fence)), known)
  end,

  count = function()
    local bucket = arg()
    if refusal then
      return refusal
    end
    local last, known = counter(bucket)
    return known and {last, 1} or {last, 0, tonumber(kept[4])}
  end,

  -- What the other servers remember. Only if nothing was lost since they were asked.
  learn = function()
    local bucket, value, since = arg(), arg(), arg()
    if refusal then
      return refusal
    elseif since ~= kept[4] then
      return 0
    end
    local last, known = counter(bucket)
    return known and 1 or raise(bucket, math.max(last, tonumber(value)), known)
  end,

  release = function()
    return release(key(), arg())
  end,

  -- A release that may be overtaken by what it undoes: the token is of no use afterwards.
  void = function()
    local key, void, token = key(), key(), arg()
    local released = release(key, token)
    if released ~= 1 then
      redis.pcall('SET', void, 1, 'PX', whole(quarantine))
    end
    return released
  end,

  inspect = function()
    local key = key()
    return holder_of(key, redis.pcall('GET', key))
  end,
}

local answers = {}
while arg_at < #ARGV do
  answers[#answers + 1] = commands[arg()]()
end
return answers
