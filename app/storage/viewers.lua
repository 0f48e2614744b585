-- A room's viewers, summed over the nodes whose counts are in force. What dead nodes left behind is deleted.
--
-- KEYS  1: hash of the nodes (node -> `count:deadline in ms`)
-- ARGV  1: now in ms since 1970 (0: the engine's clock)
-- Reply: the sum.
local now, sum = tonumber(ARGV[1]), 0
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local nodes = redis.call('HGETALL', KEYS[1])
for i = 1, #nodes, 2 do
  local count, deadline = string.match(nodes[i + 1], '^(%d+):(%d+)$')
  if count and tonumber(deadline) > now then
    sum = sum + count
  else
    redis.call('HDEL', KEYS[1], nodes[i])
  end
end
return sum
