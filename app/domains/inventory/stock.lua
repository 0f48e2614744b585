-- The second part of every sales script, after sales.lua, which states KEYS and ARGV: how units move. A hold's state, its offer's counters,
-- its viewer's count, its deadline and the outbox entry change together here and nowhere else.
-- Of each offer: total + short = available + held + ordered + sold. `short` is what a cut of the total owes to promises already made.
-- A hold of an offer that goes to who pays first (`first_paid`) takes no unit before it is sold, and counts towards its viewer's limit.
local BUCKET = {held = 'held', ordered = 'ordered', sold = 'sold'}  -- the counter of a state; the other states hold no stock
local COUNTED = {waiting = true, held = true, ordered = true, sold = true}  -- the states that count towards a viewer's limit

local function is_due(hold) return hold.deadline > 0 and hold.deadline <= now end

local function bucket(hold, state)
  if hold.first_paid and state ~= 'sold' then return nil end
  return BUCKET[state]
end

local function add_count(hold, units)
  if hold.escrow then return end
  local count, field = count_of(hold.offer, hold.viewer)
  counts[field] = math.max(0, count + units)
end

local function give(offer, units)  -- back to the shelf; what is owed comes first
  local owed = math.min(offer.short, units)
  offer.short = offer.short - owed
  offer.available = offer.available + units - owed
end

local function move(id, hold, to, deadline, reason)
  local offer, from, into = offer_of(hold.offer), bucket(hold, hold.state), bucket(hold, to)
  if offer and (from or into) then
    if from then offer[from] = offer[from] - hold.quantity else offer.available = offer.available - hold.quantity end
    if into then offer[into] = offer[into] + hold.quantity else give(offer, hold.quantity) end
    keep(OFFERS, hold.offer, offer)
  end
  if offer and (to == 'expired' or to == 'lapsed') then  -- so far, for the team: no part of the sum
    offer.expired = (offer.expired or 0) + hold.quantity
    keep(OFFERS, hold.offer, offer)
  end
  if COUNTED[hold.state] and not COUNTED[to] then add_count(hold, -hold.quantity)
  elseif COUNTED[to] and not COUNTED[hold.state] then add_count(hold, hold.quantity) end
  if to == 'released' or to == 'expired' then
    ended[#ended + 1] = {hold = id, viewer = hold.viewer, offer = hold.offer, outcome = to}
  elseif to == 'cancelled' or to == 'lapsed' then
    tell('order.ended', {order = id, viewer = hold.viewer, outcome = to == 'lapsed' and 'expired' or to, reason = reason})
  end
  hold.state, hold.deadline = to, deadline or 0
  deadlines[id] = deadline or false
  memories[id] = not deadline and now + keep_ms
  keep(HOLDS, id, hold)
end

local function note_placed(id, hold)
  placed[#placed + 1] = {
    hold = id, viewer = hold.viewer, offer = hold.offer, quantity = hold.quantity, expires = hold.expires,
    first_paid = hold.first_paid, promoted = hold.promoted, price = hold.promoted and hold.price or nil,
  }
end

local function settle_due()  -- bounded; what it leaves, the next call or the expiry loop takes
  local due = redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', now, 'LIMIT', 0, settle_max)
  for _, id in ipairs(due) do
    local hold = hold_of(id)
    if hold and hold.state == 'held' then move(id, hold, 'expired')
    elseif hold and hold.state == 'ordered' then move(id, hold, 'lapsed')
    else deadlines[id] = false end
  end
  return #due
end
