-- On which terms an offer sells now. Included in every sales script, after stock.lua; sales.lua states KEYS and ARGV.
local sessions = {}

local function session_state(id)
  if not sessions[id] then sessions[id] = redis.call('HGET', ROOM, 's:' .. id) or 'waiting' end
  return sessions[id]
end

local function is_over(offer)  -- it sells nothing any more, whatever comes back
  return not offer or offer.state == 'withdrawn' or session_state(offer.session) == 'ended' or offer.closes > 0 and offer.closes <= now
end

local function why_no_sale(offer, escrow)  -- the word of a refusal; nil: it sells
  if is_frozen() then return 'frozen' end
  local session = session_state(offer.session)
  if offer.state ~= 'listed' or session == 'ended' then return 'closed' end
  if escrow then return nil end
  if offer.closes > 0 and offer.closes <= now then return 'closed' end
  if session == 'waiting' or offer.opens > now then return 'not_open' end
  return nil
end

local function price_of(offer)  -- of the last step that is due: SQL follows a moment later
  local price = offer.price
  for _, step in ipairs(offer.steps or {}) do
    if step.at > now then break end
    price = step.price
  end
  return price
end

local function why_too_many(offer, member)
  if (offer.order_limit or 0) > 0 and member.quantity > offer.order_limit then return 'order_limit' end
  if offer.limit > 0 and count_of(member.offer, member.viewer) + member.quantity > offer.limit then return 'limit' end
  return nil
end
