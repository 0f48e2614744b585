-- Ends what has run out and forgets what ended long ago, in bounded numbers. Runs after sales.lua, which states KEYS and ARGV (no members).
-- A sold hold is remembered for as long as its offer: it counts towards its viewer's limit, and the sums are checked against it.
--
-- Reply: a JSON object with the numbers settled and forgotten; fewer than ARGV[3] of each means nothing is due any more.
local function forget_offer(member, id)
  local offer = offer_of(id)
  if offer and offer.held + offer.ordered > 0 then
    memories[member] = now + keep_ms
  else
    keep(OFFERS, id, false)
    memories[member] = false
  end
end

local function forget_hold(id)
  local hold = hold_of(id)
  if hold and hold.state == 'sold' then
    if offer_of(hold.offer) then
      memories[id] = now + keep_ms
      return
    end
    add_count(hold, -hold.quantity)
  end
  memories[id] = false
  if hold and hold.state ~= 'held' and hold.state ~= 'ordered' then keep(HOLDS, id, false) end
end

local settled = settle_due()
local old = redis.call('ZRANGEBYSCORE', MEMORIES, '-inf', now, 'LIMIT', 0, settle_max)
for _, id in ipairs(old) do
  if id:sub(1, 2) == 'o:' then forget_offer(id, id:sub(3)) else forget_hold(id) end
end
commit()
return cjson.encode({settled = settled, forgotten = #old})
