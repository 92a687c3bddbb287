redis.call('get', KEYS[1])
redis.call('pttl', KEYS[1])
redis.call('pexpire', KEYS[1], 1)
return redis.call('del', KEYS[1])
