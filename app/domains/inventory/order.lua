-- What becomes of a hold as an order: placed, cancelled, paid. Included in move.lua, which states KEYS, ARGV, members and answers.
local act = {}

local function owned(member)  -- who waits, or waited in vain, has no hold yet
  local hold = hold_of(member.id)
  return hold and hold.viewer == member.viewer and hold.state ~= 'waiting' and hold.state ~= 'closed' and hold
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
  if is_frozen() then return {word = 'frozen'} end
  local offer = offer_of(hold.offer)
  if hold.first_paid and (not offer or offer.available < hold.quantity) then return {word = 'exhausted'} end
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
  if (late or hold.first_paid) and (not offer or offer.available < hold.quantity) then
    if not late then move(member.id, hold, 'cancelled', nil, 'sold_out') end
    return refuse_payment(member, hold, late and 'late_and_sold_out' or 'sold_out')
  end
  hold.payment = member.payment
  move(member.id, hold, 'sold')
  tell('order.paid', {order = member.id, payment = member.payment, provider = member.provider, amount = member.amount, late = late, at = now})
  return {word = 'paid'}
end
