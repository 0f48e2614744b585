-- Freezes a draw's entrants and says so in the outbox, behind all entries; or cancels it in the same way. Runs after life.lua.
--
-- KEYS  1: meta hash  2: entrants hash  3: room outbox  4: room, hash (see life.lua)
-- ARGV  1: now in ms since 1970 (0: the engine's clock)  2: draw id  3: who does it; empty: only if its time is up
--       4: reason of a cancellation; empty: it is closed and will be drawn
-- Reply: `closed`, `already`, `not_due`, `frozen` (the room is closed), `missing`.
if is_closed(KEYS[4]) then return 'frozen' end
local state, closes = unpack(redis.call('HMGET', KEYS[1], 'state', 'closes'))
if not state then return 'missing' end
if state ~= 'open' then return 'already' end
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local deadline = tonumber(closes)
if ARGV[3] == '' and (deadline == 0 or now < deadline) then return 'not_due' end
redis.call('HSET', KEYS[1], 'state', 'closed')
local data = {draw = ARGV[2], count = redis.call('HLEN', KEYS[2]), actor = ARGV[3]}
local kind = 'draw.closed'
if ARGV[4] ~= '' then
  kind, data.reason = 'draw.cancelled', ARGV[4]
end
redis.call('XADD', KEYS[3], '*', 't', kind, 'd', cjson.encode(data))
return 'closed'
