-- Holds stock for viewers, a batch at a time. Runs after stock.lua and sales.lua, which states KEYS, ARGV and the reply.
-- A hold's id is derived from its viewer and key, so the hold is its own idempotency record: it is looked for first.
-- The order of the checks is part of the contract: repeated, key_reused, unknown, frozen, closed, not_open, order_limit, limit,
-- exhausted, held.
-- Of an offer that goes to who pays first nothing is set aside: the hold is the right to order it until its deadline, and says so.
-- Escrow (prizes) has no limit, window or deadline, and may be set aside before the session is live.
--
-- Member: id, viewer, offer, quantity, ttl ms, escrow.   Answer: word, expires (ms; 0: never), price, available, first_paid, repeated.
settle_due()
local frozen = redis.call('HGET', ROOM, 'frozen') == '1' or redis.call('XLEN', OUTBOX) >= tonumber(ARGV[4])
local sessions = {}

local function session_state(id)
  if not sessions[id] then sessions[id] = redis.call('HGET', ROOM, 's:' .. id) or 'waiting' end
  return sessions[id]
end

local function refusal(offer, member)
  if not offer then return 'unknown' end
  if frozen then return 'frozen' end
  local session = session_state(offer.session)
  if offer.state ~= 'listed' or session == 'ended' then return 'closed' end
  if not member.escrow then
    if offer.closes > 0 and offer.closes <= now then return 'closed' end
    if session == 'waiting' or offer.opens > now then return 'not_open' end
    if (offer.order_limit or 0) > 0 and member.quantity > offer.order_limit then return 'order_limit' end
    if offer.limit > 0 and count_of(member.offer, member.viewer) + member.quantity > offer.limit then return 'limit' end
  end
  if offer.available < member.quantity then return 'exhausted' end
  return nil
end

local function repeated(hold, member)
  if hold.viewer ~= member.viewer or hold.offer ~= member.offer or hold.quantity ~= member.quantity or hold.escrow ~= member.escrow then
    return {word = 'key_reused'}
  end
  return {word = 'held', expires = hold.expires, price = hold.price, first_paid = hold.first_paid, repeated = true}
end

local function reserve(member)
  local before, offer = hold_of(member.id), offer_of(member.offer)
  if before then return repeated(before, member) end
  local word = refusal(offer, member)
  if word then return {word = word, available = offer and offer.available or nil} end
  local expires = member.escrow and 0 or now + member.ttl
  local hold = {
    offer = member.offer, viewer = member.viewer, quantity = member.quantity, escrow = member.escrow, state = 'held',
    price = offer.price, version = offer.version, session = offer.session, policy = offer.policy, currency = offer.currency,
    expires = expires, deadline = expires, first_paid = offer.selling == 'first_paid' and not member.escrow or nil,
  }
  keep(HOLDS, member.id, hold)
  keep(OFFERS, member.offer, offer)
  if not hold.first_paid then offer.available, offer.held = offer.available - member.quantity, offer.held + member.quantity end
  add_count(hold, member.quantity)
  if not member.escrow then
    offer.holds = offer.holds + 1
    deadlines[member.id] = expires
    placed[#placed + 1] = {
      hold = member.id, viewer = member.viewer, offer = member.offer, quantity = member.quantity, expires = expires,
      first_paid = hold.first_paid,
    }
  end
  return {word = 'held', expires = expires, price = offer.price, available = offer.available, first_paid = hold.first_paid}
end

local answers = {}
for index, member in ipairs(cjson.decode(ARGV[5])) do answers[index] = reserve(member) end
commit()
return cjson.encode(answers)
