-- The waiting lines of offers. Included in every sales script, after terms.lua; sales.lua states KEYS and ARGV.
-- Who waits is a hold in the state `waiting`: it takes no units and counts towards its viewer's limit. Units that come back are a hold of
-- the first in line in the same step, so nobody else can take them. Strictly in turn: who wants more than there is yet makes the others
-- wait, and leaves the line (`closed`) when no more than that can come back. A call serves a bounded number, the sweep the rest.
local SERVED_MAX = 100
local joined, departed, waits_ended = {}, 0, {}

local function waiting(offer) return offer.waiting or 0 end
local function line_name(id, hold) return string.format('%s|%012d|%s', hold.offer, hold.turn, id) end
local function line_range(offer_id) return '[' .. offer_id .. '|', '(' .. offer_id .. '}' end  -- `}` comes after `|`

local function join_line(id, hold, offer)
  offer.turns, offer.waiting = (offer.turns or 0) + 1, waiting(offer) + 1
  hold.turn, joined[hold.offer] = offer.turns, joined[hold.offer] or {}
  table.insert(joined[hold.offer], id)
  line[line_name(id, hold)] = 0
  add_count(hold, hold.quantity)
  keep(HOLDS, id, hold)
  keep(OFFERS, hold.offer, offer)
end

local function leave_line(id, hold)
  local offer = offer_of(hold.offer)
  line[line_name(id, hold)], departed = false, departed + 1
  if offer then
    offer.waiting = offer.waiting - 1
    keep(OFFERS, hold.offer, offer)
  end
end

local function end_wait(id, hold, to)  -- released by its viewer, or closed
  leave_line(id, hold)
  add_count(hold, -hold.quantity)
  hold.state, memories[id] = to, now + keep_ms
  keep(HOLDS, id, hold)
  local outcome = to == 'released' and 'left' or to
  waits_ended[#waits_ended + 1] = {wait = id, viewer = hold.viewer, offer = hold.offer, outcome = outcome}
end

local function promote(id, hold, offer)
  leave_line(id, hold)
  hold.price, hold.version, hold.policy, hold.expires, hold.promoted = price_of(offer), offer.version, offer.policy, now + hold.ttl, true
  move(id, hold, 'held', hold.expires)
  offer.holds = offer.holds + 1
  note_placed(id, hold)
end

local function ids_in_line(offer_id, most)  -- those of earlier calls, then those who joined in this one
  local from, to = line_range(offer_id)
  local names, ids = redis.call('ZRANGEBYLEX', LINE, from, to, 'LIMIT', 0, most), {}
  for _, name in ipairs(names) do
    local id = name:match('|%d+|(.+)$')
    if hold_of(id) then ids[#ids + 1] = id else line[name] = false end
  end
  if #names < most then
    for _, id in ipairs(joined[offer_id] or {}) do ids[#ids + 1] = id end
  end
  return ids
end

local function serve_line(offer_id, offer)
  repeat
    local before = departed
    if waiting(offer) == 0 or offer.available == 0 or before >= SERVED_MAX or why_no_sale(offer) then return end
    for _, id in ipairs(ids_in_line(offer_id, before + math.min(SERVED_MAX, offer.available))) do
      local hold = hold_of(id)
      if hold.state == 'waiting' and departed < SERVED_MAX then
        if hold.quantity > offer.total - offer.sold then end_wait(id, hold, 'closed')
        elseif hold.quantity <= offer.available then promote(id, hold, offer)
        else return end
      end
    end
  until departed == before
end

local function end_line(offer_id, most)  -- bounded; the number of waits it ended
  local ids = ids_in_line(offer_id, most)
  for _, id in ipairs(ids) do end_wait(id, hold_of(id), 'closed') end
  return #ids
end

local function serve_changed()
  for id in pairs(dirty[OFFERS]) do
    local offer = cache[OFFERS][id]
    if offer then serve_line(id, offer) end
  end
end

local function note_joined()  -- for SQL, which puts the line together again if the engine loses it
  local waits = {}
  for offer_id, ids in pairs(joined) do
    for _, id in ipairs(ids) do
      local hold = hold_of(id)
      if hold.state == 'waiting' then
        waits[#waits + 1] = {
          wait = id, viewer = hold.viewer, offer = offer_id, quantity = hold.quantity, turn = hold.turn, since = hold.since, ttl = hold.ttl,
        }
      end
    end
  end
  if #waits > 0 then tell('wait.joined', {waits = waits}) end
end

local function finish()  -- what every sales script ends with
  serve_changed()
  note_joined()
  if #waits_ended > 0 then tell('wait.ended', {waits = waits_ended}) end
  commit()
end
