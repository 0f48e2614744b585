-- A node's count of a room's viewers, and who is new among them. One step, by the engine's clock, so that nodes need not agree on the time.
--
-- KEYS  1: hash of the nodes (node -> `count:deadline in ms`)  2: HyperLogLog of the session's viewers
-- ARGV  1: now in ms since 1970 (0: the engine's clock)  2: node  3: its viewers now (0: it is left out)  4: life of the count in s
--       5: life of the HyperLogLog in s; then the viewers who came since the last call
-- Reply: `recorded`.
local now, node, count, ttl = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
if count > 0 then
  redis.call('HSET', KEYS[1], node, count .. ':' .. string.format('%d', now + ttl * 1000))
  redis.call('EXPIRE', KEYS[1], ttl)
else
  redis.call('HDEL', KEYS[1], node)
end
for i = 6, #ARGV, 500 do redis.call('PFADD', KEYS[2], unpack(ARGV, i, math.min(i + 499, #ARGV))) end
if #ARGV > 5 then redis.call('EXPIRE', KEYS[2], ARGV[5]) end
return 'recorded'
