-- Brings the room's offers and sessions in line with SQL. Runs after line.lua and sales.lua, which states KEYS, ARGV and the reply.
-- Idempotent: an offer changes only to a higher version; a session that has ended stays ended. A change of the total moves `available`;
-- what a cut takes beyond it is owed in `short`, so that nothing goes below zero. The counters of a known offer come from the engine alone.
--
-- Member: act and by act:
--   offer id session version total price steps (list of at ms, price) currency limit order_limit selling state policy name
--     opens closes (ms; 0: none)
--   session id state · archived id · frozen on
-- Answer: word: done or stale.
local act = {}

function act.offer(member)
  local offer = offer_of(member.id)
  if offer and offer.version >= member.version then return 'stale' end
  local fresh = not offer
  if fresh and redis.call('HGET', ROOM, 's:' .. member.session) == 'ended' then return 'stale' end  -- it was forgotten, and stays so
  if fresh then offer = {total = 0, available = 0, short = 0, held = 0, ordered = 0, sold = 0, holds = 0, out = false} end
  local change = member.total - offer.total
  if change > 0 then
    give(offer, change)
  else
    local taken = math.min(offer.available, -change)
    offer.available, offer.short = offer.available - taken, offer.short - change - taken
  end
  for name, value in pairs(member) do
    if name ~= 'act' and name ~= 'id' then offer[name] = value end
  end
  keep(OFFERS, member.id, offer)
  return 'done'
end

local function forget_offers_later(session)
  local all = redis.call('HGETALL', OFFERS)  -- an offer a field: a room has tens
  for index = 1, #all, 2 do
    if cjson.decode(all[index + 1]).session == session then memories['o:' .. all[index]] = now + keep_ms end
  end
end

function act.session(member)
  local field = 's:' .. member.id
  if redis.call('HGET', ROOM, field) == 'ended' then return 'stale' end
  redis.call('HSET', ROOM, field, member.state)
  if member.state == 'ended' then forget_offers_later(member.id) end
  return 'done'
end

function act.archived(member)  -- nothing comes after it: that the session has ended need not be known for ever
  if redis.call('ZSCORE', MEMORIES, 's:' .. member.id) then return 'stale' end
  redis.call('HSET', ROOM, 's:' .. member.id, 'ended')
  forget_offers_later(member.id)
  memories['s:' .. member.id] = now + keep_ms
  return 'done'
end

function act.frozen(member)
  if member.on then redis.call('HSET', ROOM, 'frozen', '1') else redis.call('HDEL', ROOM, 'frozen') end
  return 'done'
end

function act.close()  -- as after a restart: until it is renewed
  redis.call('HSET', ROOM, 'life', 'closed')
  return 'done'
end

local answers = {}
for index, member in ipairs(cjson.decode(ARGV[5])) do answers[index] = {word = act[member.act](member)} end
finish()
return cjson.encode(answers)
