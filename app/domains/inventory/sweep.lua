-- Ends what has run out and forgets what ended long ago, in bounded numbers. Runs after line.lua and sales.lua, which states KEYS and
-- ARGV (no members).
-- A sold hold is remembered for as long as its offer: it counts towards its viewer's limit, and the sums are checked against it.
--
-- Nothing is forgotten while the outbox holds what SQL does not have yet.
--
-- Reply: a JSON object with the numbers settled and forgotten; fewer than ARGV[3] of each means nothing is due any more. `empty`: nothing
-- is left of the room's sales. (Its life stays, and its outbox without entries, which remembers its last id: a new one must be higher.)
local function forget_offer(member, id)
  local offer = offer_of(id)
  if offer and offer.held + offer.ordered + waiting(offer) > 0 then
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
  if hold and hold.state ~= 'waiting' and hold.state ~= 'held' and hold.state ~= 'ordered' then keep(HOLDS, id, false) end
end

local function forget_session(member, id)
  local all = redis.call('HGETALL', OFFERS)
  for index = 1, #all, 2 do
    if cjson.decode(all[index + 1]).session == id then
      memories[member] = now + keep_ms
      return
    end
  end
  memories[member] = false
  redis.call('HDEL', ROOM, 's:' .. id)
end

local function tend_lines(most)  -- serves what a bounded call left, and ends the lines of what sells no more
  local from, done = '-', 0
  while done < most do
    local first = redis.call('ZRANGEBYLEX', LINE, from, '+', 'LIMIT', 0, 1)[1]
    if not first then break end
    local id = first:match('^(.-)|')
    local offer = offer_of(id)
    if is_over(offer) then done = done + end_line(id, most - done) else serve_line(id, offer) end
    from = '(' .. id .. '}'
  end
  return done
end

local settled = settle_due()
settled = math.max(settled, tend_lines(settle_max))
local taken_in = redis.call('XLEN', OUTBOX) == 0 and #entries + #ended + #placed + #waits_ended == 0
local old = taken_in and redis.call('ZRANGEBYSCORE', MEMORIES, '-inf', now, 'LIMIT', 0, settle_max) or {}
for _, member in ipairs(old) do
  local kind, id = member:sub(1, 2), member:sub(3)
  if kind == 'o:' then forget_offer(member, id) elseif kind == 's:' then forget_session(member, id) else forget_hold(member) end
end
finish()
local empty = redis.call('EXISTS', OFFERS, HOLDS, COUNTS, DEADLINES, MEMORIES, LINE) == 0 and redis.call('XLEN', OUTBOX) == 0
empty = empty and redis.call('HLEN', ROOM) == 1
return cjson.encode({settled = settled, forgotten = #old, empty = empty})
