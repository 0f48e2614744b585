-- Holds stock for viewers, and puts them into an offer's waiting line, a batch at a time, in the order of the batch. Runs after line.lua,
-- terms.lua, stock.lua and sales.lua, which states KEYS, ARGV and the reply.
-- A hold's id is derived from its viewer and key, so the hold is its own idempotency record: it is looked for first.
-- The order of the checks is part of the contract. Reserve: repeated, key_reused, unknown, frozen, closed, not_open, order_limit, limit,
-- exhausted, held. Wait: the same, with no_line after not_open and line_full before exhausted (more than the offer has), then waiting.
-- Of an offer that goes to who pays first nothing is set aside: the hold is the right to order it until its deadline, and says so.
-- Where somebody waits, everything is exhausted for who does not: nobody jumps the line.
-- Escrow (prizes) has no limit, window or deadline, and may be set aside before the session is live.
--
-- Member: id, viewer, offer, quantity, ttl ms, escrow; who wants to wait: line_max, the most that may stand in the line.
-- Answer: word, expires (ms; 0: never), price, available, first_paid, repeated, waiting (in the line), ahead (of who waits).
frozen = is_frozen() or redis.call('XLEN', OUTBOX) >= tonumber(ARGV[4])
settle_due()
serve_changed()  -- before whoever asks now

local function is_same(hold, member)
  return hold.viewer == member.viewer and hold.offer == member.offer and hold.quantity == member.quantity and hold.escrow == member.escrow
end

local function new_hold(member, offer)
  return {
    offer = member.offer, viewer = member.viewer, quantity = member.quantity, escrow = member.escrow, session = offer.session,
    price = price_of(offer), version = offer.version, policy = offer.policy, currency = offer.currency, expires = 0, deadline = 0,
  }
end

local function held(hold, offer, again)
  return {
    word = 'held', expires = hold.expires, price = hold.price, first_paid = hold.first_paid, available = offer and offer.available,
    repeated = again,
  }
end

local function refused(word, offer)
  if not offer then return {word = word} end
  return {word = word, available = offer.available, waiting = offer.selling == 'waitlist' and waiting(offer) or nil}
end

local function why_not_held(offer, member)
  if not offer then return 'unknown' end
  local word = why_no_sale(offer, member.escrow) or not member.escrow and why_too_many(offer, member)
  if word then return word end
  return (offer.available < member.quantity or waiting(offer) > 0) and 'exhausted' or nil
end

local function reserve(member)
  local before, offer = hold_of(member.id), offer_of(member.offer)
  if before then return is_same(before, member) and held(before, nil, true) or {word = 'key_reused'} end
  local word = why_not_held(offer, member)
  if word then return refused(word, offer) end
  local hold = new_hold(member, offer)
  hold.state, hold.first_paid = 'held', offer.selling == 'first_paid' and not member.escrow or nil
  hold.expires = member.escrow and 0 or now + member.ttl
  hold.deadline = hold.expires
  keep(HOLDS, member.id, hold)
  keep(OFFERS, member.offer, offer)
  if not hold.first_paid then offer.available, offer.held = offer.available - member.quantity, offer.held + member.quantity end
  add_count(hold, member.quantity)
  if not member.escrow then
    offer.holds = offer.holds + 1
    deadlines[member.id] = hold.expires
    note_placed(member.id, hold)
  end
  return held(hold, offer)
end

local function waiting_answer(id, hold, again)
  if hold.state == 'closed' or hold.state == 'released' and not hold.promoted then return {word = hold.state, repeated = again} end
  if hold.state ~= 'waiting' then return held(hold, nil, again) end
  local from = line_range(hold.offer)
  local ahead = again and redis.call('ZLEXCOUNT', LINE, from, '(' .. line_name(id, hold)) or waiting(offer_of(hold.offer)) - 1
  return {word = 'waiting', ahead = ahead, repeated = again}
end

local function why_not_in_line(offer, member)
  if not offer then return 'unknown' end
  local word = why_no_sale(offer) or offer.selling ~= 'waitlist' and 'no_line' or why_too_many(offer, member)
  if word then return word end
  if waiting(offer) >= member.line_max then return 'line_full' end
  return member.quantity > offer.total - offer.sold and 'exhausted' or nil
end

local function wait(member)
  local before, offer = hold_of(member.id), offer_of(member.offer)
  if before then return is_same(before, member) and waiting_answer(member.id, before, true) or {word = 'key_reused'} end
  local word = why_not_in_line(offer, member)
  if word then return refused(word, offer) end
  local hold = new_hold(member, offer)
  hold.state, hold.ttl, hold.since = 'waiting', member.ttl, now
  join_line(member.id, hold, offer)
  serve_line(member.offer, offer)
  return waiting_answer(member.id, hold)
end

local answers = {}
for index, member in ipairs(cjson.decode(ARGV[5])) do answers[index] = member.line_max and wait(member) or reserve(member) end
finish()
return cjson.encode(answers)
