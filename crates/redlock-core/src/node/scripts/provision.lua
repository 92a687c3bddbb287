-- Begins a record on a server that has none; or, asked only to look, says whether it has one.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return {'', -1}
end
if ARGV[5] == 'begin' then
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  redis.call('HSET', KEYS[1], 'run', run, 'epoch', ARGV[2], 'config', ARGV[3], 'until', 0,
    'quarantine', ARGV[1], 'all', 1)
  return 1
end
return 0
