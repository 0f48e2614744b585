-- Hands out shares to a batch of viewers. A share leaves the list, its taker is recorded and its outbox entry is appended in one step,
-- so a share is never handed out twice and never lost. The last share closes the envelope behind all grabs. Runs after life.lua.
-- Order of checks: the viewer's own share first (a retry gets its answer, also in a closed room: a share never changes), then whether the
-- room is closed, then time, then who may, then what is left.
--
-- KEYS  1: room outbox  2: room, hash (see life.lua); then for each envelope: meta hash, shares list, takers hash (see load.lua)
-- ARGV  1: now in ms since 1970 (0: the engine's clock)  2: number of envelopes; then their ids;
--       then for each member: envelope number (from 1), viewer, key, refusal (empty: eligible)
-- Reply: for each member three strings: word (opened, already, frozen, empty, not_eligible, closed, missing), amount in minor units, position.
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local count, frozen = tonumber(ARGV[2]), is_closed(KEYS[2])

local envelopes = {}
for e = 1, count do
  local meta, shares, takers = KEYS[e * 3], KEYS[e * 3 + 1], KEYS[e * 3 + 2]
  local fields = redis.call('HMGET', meta, 'state', 'expires')
  envelopes[e] = {id = ARGV[2 + e], meta = meta, shares = shares, takers = takers, state = fields[1], expires = tonumber(fields[2] or 0)}
end

local function announce(type, data)
  redis.call('XADD', KEYS[1], '*', 't', type, 'd', cjson.encode(data))
end

local function open_share(envelope, viewer, key)
  local share = redis.call('LPOP', envelope.shares)
  if not share then return 'empty', '', '' end
  local position, amount = string.match(share, '^(%d+) (%d+)$')
  if redis.call('HSET', envelope.takers, viewer, share .. ' ' .. key) == 1 and redis.call('HLEN', envelope.takers) == 1 then
    redis.call('PEXPIRE', envelope.takers, redis.call('PTTL', envelope.meta))  -- a hash cannot carry a deadline before it has a field
  end
  announce('share.opened', {envelope = envelope.id, viewer = viewer, position = tonumber(position), amount = tonumber(amount)})
  if redis.call('LLEN', envelope.shares) == 0 then
    envelope.state = 'emptied'
    redis.call('HSET', envelope.meta, 'state', 'emptied')
    announce('envelope.closed', {envelope = envelope.id, by = 'emptied', actor = ''})
  end
  return 'opened', amount, position
end

local function grab(envelope, viewer, key, refusal)
  local taken = redis.call('HGET', envelope.takers, viewer)
  if taken then
    local position, amount, first_key = string.match(taken, '^(%d+) (%d+) (.*)$')
    if first_key == '' then  -- loaded from SQL: whichever key comes again is taken for the first
      redis.call('HSET', envelope.takers, viewer, taken .. key)
      first_key = key
    end
    return first_key == key and 'opened' or 'already', amount, position
  end
  if frozen then return 'frozen', '', '' end
  if not envelope.state then return 'missing', '', '' end
  if envelope.state == 'closed' or now >= envelope.expires then return 'closed', '', '' end
  if refusal ~= '' then return 'not_eligible', '', '' end
  return open_share(envelope, viewer, key)
end

local replies = {}
for a = 3 + count, #ARGV, 4 do
  local word, amount, position = grab(envelopes[tonumber(ARGV[a])], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3])
  local at = #replies
  replies[at + 1], replies[at + 2], replies[at + 3] = word, amount, position
end
return replies
