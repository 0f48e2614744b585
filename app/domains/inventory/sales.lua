-- The first part of every sales script after life.lua, the room's records: reads them through caches, and writes all changes in `commit`, so that a
-- script that fails half-way has written nothing. What changes them is in stock.lua, which comes next.
--
-- KEYS  1: offers, hash id -> JSON   2: holds, hash id -> JSON   3: counts, hash offer|viewer -> units
--       4: deadlines, sorted set of open holds   5: outbox stream   6: sessions, hash: `s:`session -> state, frozen, life
--       7: memories, sorted set: when to forget a hold that has ended, `o:`offer or `s:`session
--       8: line, sorted set of offer|turn|hold in the order of the names: who waits for which offer
-- ARGV  1: now in ms, 0 for the engine's clock   2: how long what has ended is remembered, ms   3: most deadlines to settle at once
--       4: outbox entries from which on new sales are refused   5: members, a JSON list
--       6: `renew`, for the script that fills a room which is closed
-- Reply: a JSON list with one object a member, `word` first. Of a room that is closed, an array: for each member 1 if its answer is here.
local OFFERS, HOLDS, COUNTS, DEADLINES, OUTBOX, ROOM, MEMORIES, LINE = unpack(KEYS)
local now, keep_ms, settle_max = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local cache, dirty = {[OFFERS] = {}, [HOLDS] = {}}, {[OFFERS] = {}, [HOLDS] = {}}
local counts, deadlines, memories, line, entries, placed, ended = {}, {}, {}, {}, {}, {}, {}

local function record(key, id)
  local found = cache[key][id]
  if found == nil then
    local text = redis.call('HGET', key, id)
    found = text and cjson.decode(text) or false
    cache[key][id] = found
  end
  return found
end

local function offer_of(id) return record(OFFERS, id) end
local function hold_of(id) return record(HOLDS, id) end
local function keep(key, id, value) cache[key][id], dirty[key][id] = value, value end  -- a value of `false` forgets it

local frozen

local function is_frozen()  -- no new holds, no new orders
  if frozen == nil then frozen = redis.call('HGET', ROOM, 'frozen') == '1' end
  return frozen
end

if ARGV[6] ~= 'renew' and is_closed(ROOM) then
  local known = {}
  for index, member in ipairs(cjson.decode(ARGV[5])) do
    local hold = member.id and hold_of(member.id)
    known[index] = hold and (member.act ~= 'place' or hold.place_key) and 1 or 0
  end
  return known
end

local function tell(kind, data) entries[#entries + 1] = {kind, data} end

local function count_of(offer, viewer)
  local field = offer .. '|' .. viewer
  if counts[field] == nil then counts[field] = tonumber(redis.call('HGET', COUNTS, field) or 0) end
  return counts[field], field
end

local function call_all(command, key, arguments)  -- one call for all; far below Lua's limit of some 8,000 arguments
  if #arguments > 0 then redis.call(command, key, unpack(arguments)) end
end

local function write(key, values, put, remove, value_first)  -- a value of `false` is removed
  local set, gone = {}, {}
  for id, value in pairs(values) do
    if not value then gone[#gone + 1] = id
    elseif value_first then set[#set + 1] = value set[#set + 1] = id
    else set[#set + 1] = id set[#set + 1] = type(value) == 'table' and cjson.encode(value) or value end
  end
  call_all(put, key, set)
  call_all(remove, key, gone)
end

local function commit()
  for id in pairs(dirty[OFFERS]) do
    local offer = cache[OFFERS][id]
    if offer and offer.out ~= (offer.available == 0) then
      offer.out = not offer.out
      tell(offer.out and 'offer.sold_out' or 'offer.restocked', {offer = id})
    end
  end
  if #ended > 0 then table.insert(entries, 1, {'hold.ended', {holds = ended}}) end
  if #placed > 0 then table.insert(entries, 1, {'hold.placed', {holds = placed}}) end
  write(OFFERS, dirty[OFFERS], 'HSET', 'HDEL')
  write(HOLDS, dirty[HOLDS], 'HSET', 'HDEL')
  for field, count in pairs(counts) do counts[field] = count > 0 and count end
  write(COUNTS, counts, 'HSET', 'HDEL')
  write(DEADLINES, deadlines, 'ZADD', 'ZREM', true)
  write(MEMORIES, memories, 'ZADD', 'ZREM', true)
  write(LINE, line, 'ZADD', 'ZREM', true)
  for _, entry in ipairs(entries) do redis.call('XADD', OUTBOX, '*', 't', entry[1], 'd', cjson.encode(entry[2])) end
end
