-- Lets a batch of viewers into draws. An entry and its outbox entry are one step, and nothing enters after close.lua, so the list that
-- intake reads up to `draw.closed` is the whole list. Runs after life.lua.
-- Order of checks: the viewer's own entry first (a retry gets its answer, also in a closed room: an entry never goes), then whether the room
-- is closed, then time, then who may, then whether there is room.
--
-- KEYS  1: room outbox  2: room, hash (see life.lua); then for each draw: meta hash, entrants hash (see load.lua)
-- ARGV  1: now in ms since 1970 (0: the engine's clock)  2: number of draws; then their ids;
--       then for each member: draw number (from 1), viewer, name, key, keyword, refusal (empty: eligible)
-- Reply: for each member three strings: word (entered, again, key_reused, frozen, not_eligible, closed, full, missing), the condition that was
--        not met, number of entrants.
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local count, frozen = tonumber(ARGV[2]), is_closed(KEYS[2])

local draws = {}
for d = 1, count do
  local meta, entrants = KEYS[d * 2 + 1], KEYS[d * 2 + 2]
  local fields = redis.call('HMGET', meta, 'state', 'closes', 'keyword', 'entrants_max')
  draws[d] = {
    id = ARGV[2 + d], meta = meta, entrants = entrants, state = fields[1], closes = tonumber(fields[2] or 0), keyword = fields[3],
    max = tonumber(fields[4] or 0), count = redis.call('HLEN', entrants),
  }
  if draws[d].state and draws[d].count == 0 then draws[d].ttl = redis.call('PTTL', meta) end
end

local function add(draw, viewer, name, record)
  redis.call('HSET', draw.entrants, viewer, record)
  if draw.ttl then
    redis.call('PEXPIRE', draw.entrants, draw.ttl)  -- a hash cannot carry a deadline before it has a field
    draw.ttl = nil
  end
  draw.count = draw.count + 1
  redis.call('XADD', KEYS[1], '*', 't', 'draw.entered', 'd', cjson.encode({draw = draw.id, viewer = viewer, name = name}))
end

local function enter(draw, viewer, name, key, keyword, refusal)
  local record = key .. '\n' .. keyword
  local before = redis.call('HGET', draw.entrants, viewer)
  if before == '' then redis.call('HSET', draw.entrants, viewer, record) end  -- loaded from SQL: whichever key comes again is taken for the first
  if before == record or before == '' then return 'entered', '' end
  if before and string.sub(before, 1, #key + 1) == key .. '\n' then return 'key_reused', '' end
  if before then return 'again', '' end
  if frozen then return 'frozen', '' end
  if not draw.state then return 'missing', '' end
  if draw.state ~= 'open' or (draw.closes > 0 and now >= draw.closes) then return 'closed', '' end
  if refusal ~= '' then return 'not_eligible', refusal end
  if draw.keyword ~= '' and draw.keyword ~= keyword then return 'not_eligible', 'keyword' end
  if draw.count >= draw.max then return 'full', '' end
  add(draw, viewer, name, record)
  return 'entered', ''
end

local replies = {}
for a = 3 + count, #ARGV, 6 do
  local draw = draws[tonumber(ARGV[a])]
  local word, condition = enter(draw, ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], ARGV[a + 5])
  local at = #replies
  replies[at + 1], replies[at + 2], replies[at + 3] = word, condition, tostring(draw.count)
end
return replies
