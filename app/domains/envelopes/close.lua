-- Closes an envelope. The outbox entry goes behind those of all grabs before it, so whoever reads it has every opened share in SQL.
-- Runs after life.lua.
--
-- KEYS  1: meta hash  2: room outbox  3: room, hash (see life.lua)
-- ARGV  1: now in ms since 1970 (0: the engine's clock)  2: envelope id  3: who ends it now; empty: only if its time is up
-- Reply: `closed`, `already` (closed or emptied before), `not_due`, `frozen` (the room is closed), `missing`.
if is_closed(KEYS[3]) then return 'frozen' end
local state, expires = unpack(redis.call('HMGET', KEYS[1], 'state', 'expires'))
if not state then return 'missing' end
if state ~= 'open' then return 'already' end
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local due = now >= tonumber(expires)
if ARGV[3] == '' and not due then return 'not_due' end
redis.call('HSET', KEYS[1], 'state', 'closed')
local data = {envelope = ARGV[2], by = due and 'expired' or 'ended', actor = ARGV[3]}
redis.call('XADD', KEYS[2], '*', 't', 'envelope.closed', 'd', cjson.encode(data))
return 'closed'
