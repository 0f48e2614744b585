-- Publishes to channels of one hash tag: gives each publication its offset, keeps it in the channel's history and sends all of them
-- to the nodes in one message. Atomic, so that a subscriber who reads (epoch, offset, history) can never miss what comes between.
-- A channel is opened and written back once a call, however many publications it gets; what its history would not keep is not added.
--
-- KEYS  1: pub/sub channel `{tag}:push`; for each channel: stream, meta hash (epoch, offset); for each publication with a once-key: that
-- ARGV  1: epoch for a channel that has none  2: number of channels  3: life of the meta hashes in s  4: life of the once-keys in s;
--       for each channel: name, history length (publications), life of the history in s;
--       for each publication: number of its channel from 1 on (negative: transient, offset 0, not kept), 1 if it has a once-key, 2 if that
--       of the one before it is its own too, else 0; data (JSON without a raw newline)
-- Reply: for each publication its offset; that of the first time if it was made before (of the first that shares its key); the word `broken` where the engine holds something
--       under the channel's keys that is no channel. Such a channel keeps none of the others from being published.
local count, meta_ttl, once_ttl = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local channels = {}
for c = 1, count do
  local stream, meta = KEYS[c * 2], KEYS[c * 2 + 1]
  local known, size = redis.pcall('HMGET', meta, 'epoch', 'offset'), redis.pcall('XLEN', stream)
  channels[c] = { broken = known.err ~= nil or type(size) == 'table', epoch = known[1] or ARGV[1], is_new = not known[1],
    top = tonumber(known[2] or 0), size = size, kept = {}, touched = false }
end

-- Records of one channel in a row share a header: channel, epoch, first offset, how many.
local lines, head, run, first, length = {}, 0, 0, 0, 0
local function close_run()
  if length > 0 then
    local channel = run < 0 and -run or run
    lines[head] = ARGV[channel * 3 + 2] .. '\n' .. channels[channel].epoch .. '\n' .. first .. '\n' .. length
  end
end

local replies, once, before = {}, count * 2 + 2, false
for p = 1, (#ARGV - 4 - count * 3) / 3 do
  local a = 2 + count * 3 + p * 3
  local number, data = tonumber(ARGV[a]), ARGV[a + 2]
  local channel = channels[number < 0 and -number or number]
  local offset = number > 0 and channel.top + 1 or 0
  if ARGV[a + 1] == '0' then
    before = false
  elseif ARGV[a + 1] == '1' then
    local is_shared = ARGV[a + 4] == '2'
    before = (is_shared or not channel.broken) and redis.pcall('SET', KEYS[once], offset, 'NX', 'GET', 'EX', once_ttl)
    once = once + 1
  end
  if channel.broken or type(before) == 'table' then
    replies[p] = 'broken'
  elseif before then
    replies[p] = tonumber(before)
  else
    replies[p], channel.touched = offset, true
    if offset > 0 then
      channel.top = offset
      channel.kept[#channel.kept + 1] = data
    end
    if number ~= run then
      close_run()
      head, run, first, length = #lines + 1, number, offset, 0
      lines[head] = ''
    end
    length = length + 1
    lines[#lines + 1] = data
  end
end
close_run()

for c = 1, count do
  local channel, stream, meta = channels[c], KEYS[c * 2], KEYS[c * 2 + 1]
  local kept, most = #channel.kept, tonumber(ARGV[c * 3 + 3])
  if kept > 0 then
    local before = channel.top - kept
    redis.call('HSET', meta, 'epoch', channel.epoch, 'offset', channel.top)
    if before == 0 and channel.size > 0 then redis.call('DEL', stream) end  -- a history that outlived its epoch belongs to an earlier life
    for i = math.max(1, kept - most + 1), kept - 1 do redis.call('XADD', stream, '0-' .. (before + i), 'd', channel.kept[i]) end
    redis.call('XADD', stream, 'MAXLEN', most, '0-' .. channel.top, 'd', channel.kept[kept])
    redis.call('EXPIRE', stream, ARGV[c * 3 + 4])
  elseif channel.touched and channel.is_new then
    redis.call('HSET', meta, 'epoch', channel.epoch)
  end
  if channel.touched then redis.call('EXPIRE', meta, meta_ttl) end
end
if #lines > 0 then redis.call('SPUBLISH', KEYS[1], table.concat(lines, '\n')) end
return replies
