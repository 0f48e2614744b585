-- Where the streams of channels of one hash tag stand. A channel without a life gets one, so that a client that subscribes now can recover
-- later; whoever asks keeps the life going.
--
-- KEYS  the channels' meta hashes (epoch, offset)
-- ARGV  1: epoch for a channel that has none; 2: meta ttl s
-- Reply: epoch and offset of each, in order.
local reply = {}
for i, meta in ipairs(KEYS) do
  local found = redis.call('HMGET', meta, 'epoch', 'offset')
  if not found[1] then
    redis.call('HSET', meta, 'epoch', ARGV[1])
  end
  redis.call('EXPIRE', meta, ARGV[2])
  reply[#reply + 1] = found[1] or ARGV[1]
  reply[#reply + 1] = found[2] or '0'
end
return reply
