-- Publishes to channels of one hash tag: gives each publication its offset, keeps it in the channel's history and sends all of them
-- to the nodes in one message. Atomic, so that a subscriber who reads (epoch, offset, history) can never miss what comes between.
--
-- KEYS  1: pub/sub channel `{tag}:push`; then for each publication: stream, meta hash (epoch, offset), once-key (idempotency)
-- ARGV  1: epoch for a channel that has none; then for each publication:
--       channel name, data (JSON without a raw newline), history length, history ttl s, meta ttl s, once ttl s (0: no idempotency)
--       A history length of 0 makes the publication transient: offset 0, not kept.
-- Reply: a list of offsets; the offset of the first time for a publication that was made before.
local offsets, records = {}, {}
for i = 0, (#KEYS - 1) / 3 - 1 do
  local stream, meta, once = KEYS[i * 3 + 2], KEYS[i * 3 + 3], KEYS[i * 3 + 4]
  local a = i * 6 + 2
  local channel, data, length = ARGV[a], ARGV[a + 1], tonumber(ARGV[a + 2])
  local stream_ttl, meta_ttl, once_ttl = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5])
  local before = once_ttl > 0 and redis.call('GET', once)
  if before then
    offsets[i + 1] = tonumber(before)
  else
    local offset, epoch = 0, redis.call('HGET', meta, 'epoch')
    if not epoch then
      epoch = ARGV[1]
      redis.call('HSET', meta, 'epoch', epoch)
    end
    if length > 0 then
      offset = redis.call('HINCRBY', meta, 'offset', 1)
      if offset == 1 then redis.call('DEL', stream) end  -- a history that outlived its epoch belongs to an earlier life
      redis.call('XADD', stream, 'MAXLEN', length, '0-' .. offset, 'd', data)
      redis.call('EXPIRE', stream, stream_ttl)
    end
    redis.call('EXPIRE', meta, meta_ttl)
    if once_ttl > 0 then redis.call('SET', once, offset, 'EX', once_ttl) end
    offsets[i + 1] = offset
    records[#records + 1] = channel .. '\n' .. offset .. '\n' .. epoch .. '\n' .. data
  end
end
if #records > 0 then redis.call('SPUBLISH', KEYS[1], table.concat(records, '\n')) end
return offsets
