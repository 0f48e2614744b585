-- Moves holds from one state to the next, a batch at a time. Runs after sales.lua, which states KEYS, ARGV and the reply.
--   held -> released | expired | ordered | sold (an escrow's award)      ordered -> cancelled | lapsed | sold
--   lapsed -> sold only by the late-pay rule: the money came after the deadline, and stock is left.
-- No other step exists; asked for one, a hold answers with the state that it is in. `sold` may give units back to the shelf, once each.
--
-- Member: act, id, and by act:
--   release viewer · place viewer key digest ttl accepted name address · cancel viewer · confirm payment provider amount
--   award viewer winner prize name · give_back refund quantity
-- Answer: word, repeated, and for `place` price, quantity, currency, pay_by.
local frozen = redis.call('HGET', ROOM, 'frozen') == '1'
local act = {}

local function owned(member)
  local hold = hold_of(member.id)
  return hold and hold.viewer == member.viewer and hold
end

function act.release(member)
  local hold = owned(member)
  if not hold then return {word = 'unknown'} end
  if hold.state == 'held' then move(member.id, hold, is_due(hold) and 'expired' or 'released') end
  return {word = hold.state}
end

local function placed_answer(hold, again)
  return {word = 'placed', price = hold.price, quantity = hold.quantity, currency = hold.currency, pay_by = hold.pay_by, repeated = again}
end

function act.place(member)
  local hold = owned(member)
  if not hold or hold.escrow then return {word = 'unknown'} end
  if hold.place_key == member.key and hold.place_digest ~= member.digest then return {word = 'key_reused'} end
  if hold.place_key then return placed_answer(hold, true) end
  if hold.state == 'held' and is_due(hold) then move(member.id, hold, 'expired') end
  if hold.state ~= 'held' then return {word = hold.state} end
  if frozen then return {word = 'frozen'} end
  local offer = offer_of(hold.offer)
  if hold.policy == 'fresh_no_return' and not member.accepted then return {word = 'policy_not_accepted'} end
  hold.place_key, hold.place_digest, hold.pay_by = member.key, member.digest, now + member.ttl
  hold.placed, hold.name, hold.buyer = now, offer.name, member.name
  move(member.id, hold, 'ordered', hold.pay_by)
  tell('order.placed', {
    order = member.id, session = hold.session, offer = hold.offer, name = offer.name, viewer = hold.viewer, buyer = member.name,
    quantity = hold.quantity, price = hold.price, currency = hold.currency, version = hold.version, policy = hold.policy,
    placed = now, pay_by = hold.pay_by, address = member.address,
  })
  return placed_answer(hold, false)
end

function act.cancel(member)
  local hold = owned(member)
  if not hold or not hold.place_key then return {word = 'unknown'} end
  if hold.state == 'ordered' then move(member.id, hold, is_due(hold) and 'lapsed' or 'cancelled') end
  return {word = hold.state}
end

local function refuse_payment(member, hold, reason)  -- remembered, so that the provider's retry gets the same answer
  hold.refused = hold.refused or {}
  hold.refused[member.payment] = reason
  keep(HOLDS, member.id, hold)
  tell('order.refund_due', {order = member.id, payment = member.payment, provider = member.provider, amount = member.amount, reason = reason})
  return {word = 'refund', reason = reason}
end

function act.confirm(member)
  local hold = hold_of(member.id)
  if not hold or not hold.place_key then return {word = 'unknown'} end
  local refused = hold.refused and hold.refused[member.payment]
  if refused then return {word = 'refund', reason = refused, repeated = true} end
  if hold.payment == member.payment then return {word = 'paid', repeated = true} end
  if hold.state == 'sold' then return refuse_payment(member, hold, 'paid_twice') end
  if hold.state == 'cancelled' then return refuse_payment(member, hold, 'order_cancelled') end
  local late = hold.state == 'lapsed'
  local offer = offer_of(hold.offer)
  if late and (not offer or offer.available < hold.quantity) then return refuse_payment(member, hold, 'late_and_sold_out') end
  hold.payment = member.payment
  move(member.id, hold, 'sold')
  tell('order.paid', {order = member.id, payment = member.payment, provider = member.provider, amount = member.amount, late = late, at = now})
  return {word = 'paid'}
end

function act.award(member)
  local hold = owned(member)
  if not hold or not hold.escrow then return {word = 'unknown'} end
  if hold.winner == member.winner then return {word = 'awarded', repeated = true} end
  if hold.state ~= 'held' then return {word = hold.state} end
  hold.winner, hold.prize = member.winner, member.prize
  move(member.id, hold, 'sold')
  tell('order.awarded', {
    order = member.id, session = hold.session, offer = hold.offer, viewer = member.winner, prize = member.prize, quantity = hold.quantity,
    currency = hold.currency, version = hold.version, policy = hold.policy, at = now,
  })
  return {word = 'awarded'}
end

function act.give_back(member)
  local hold = hold_of(member.id)
  local offer = hold and offer_of(hold.offer)
  if not offer then return {word = 'unknown'} end  -- its show is over and forgotten: there is no shelf to return to
  hold.given = hold.given or {}
  if hold.given[member.refund] then return {word = 'given_back', repeated = true} end
  local returned = hold.returned or 0
  if hold.state ~= 'sold' or returned + member.quantity > hold.quantity then return {word = hold.state} end
  hold.given[member.refund], hold.returned = member.quantity, returned + member.quantity
  offer.sold = offer.sold - member.quantity
  give(offer, member.quantity)
  keep(HOLDS, member.id, hold)
  keep(OFFERS, hold.offer, offer)
  return {word = 'given_back'}
end

local answers = {}
for index, member in ipairs(cjson.decode(ARGV[5])) do answers[index] = act[member.act](member) end
commit()
return cjson.encode(answers)
