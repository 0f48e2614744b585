-- Moves holds from one state to the next, a batch at a time. Runs after sales.lua, which states KEYS, ARGV and the reply,
-- stock.lua, terms.lua, line.lua and order.lua, the steps of an order.
--   held -> released | expired | ordered | sold (an escrow's award)      ordered -> cancelled | lapsed | sold
--   lapsed -> sold only by the late-pay rule: the money came after the deadline, and stock is left.
--   ordered -> cancelled also when the money of a first-paid order comes and nothing is left: it goes back with the reason `sold_out`.
--   waiting -> held, by line.lua when its turn comes, | released (it left the line) | closed (the line ended)
-- No other step exists; asked for one, a hold answers with the state that it is in. `sold` may give units back to the shelf, once each.
--
-- Member: act, id, and by act:
--   release viewer · leave viewer · place viewer key digest ttl accepted name address · cancel viewer · confirm payment provider amount
--   award viewer winner prize name · give_back refund quantity
-- Answer: word, repeated, and for `place` price, quantity, currency, pay_by.
function act.release(member)
  local hold = owned(member)
  if not hold then return {word = 'unknown'} end
  if hold.state == 'held' then move(member.id, hold, is_due(hold) and 'expired' or 'released') end
  return {word = hold.state}
end

function act.leave(member)
  local hold = hold_of(member.id)
  if not hold or hold.viewer ~= member.viewer or not hold.turn then return {word = 'unknown'} end
  if hold.state == 'waiting' then end_wait(member.id, hold, 'released') end
  return {word = hold.state}
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
finish()
return cjson.encode(answers)
