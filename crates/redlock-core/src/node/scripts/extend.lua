local holder = redis.call('get', KEYS[1])
if holder == ARGV[1] then
  return redis.call('pexpire', KEYS[1], ARGV[2])
end
if not holder then
  return 0
end
return {holder, redis.call('pttl', KEYS[1])}
