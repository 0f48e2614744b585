-- Puts an envelope of SQL where it can be grabbed. Runs after life.lua.
-- The same announcement may load it twice: what is there stays, whatever has become of it. In the renewal of a closed room, which has
-- read the outbox to its end, takers whom SQL has stand beside those who survived, and what neither has taken is open again; an envelope
-- that is over in SQL is over here.
--
-- KEYS  1: room, hash (see life.lua)  2: meta hash (state, expires)  3: shares list ("position amount", next first)
--       4: takers hash (viewer -> "position amount key"; SQL does not know the key)
-- ARGV  1: the life in which the room is renewed; empty: the room is open  2: `open`, or `over`  3: deadline in ms since 1970
--       4: life of the keys in ms  5: number of takers; then viewer and record of each; then the shares that SQL has as open
-- Reply: `loaded`, `kept`, `frozen` (the room is closed), `stale` (the engine has restarted once more).
local ROOM, META, SHARES, TAKERS = unpack(KEYS)
local renewed, takers, left = ARGV[1], tonumber(ARGV[5]), 0
if renewed == '' and is_closed(ROOM) then return 'frozen' end
if renewed ~= '' and is_stale(ROOM, renewed) then return 'stale' end
local state = redis.call('HGET', META, 'state')
if ARGV[2] == 'over' then
  if state == 'open' then redis.call('HSET', META, 'state', 'closed') end
  return 'kept'
end
if state and renewed == '' then return 'kept' end

if not state then
  redis.call('DEL', TAKERS)
  redis.call('HSET', META, 'state', 'open', 'expires', ARGV[3])
end
for i = 0, takers - 1 do redis.call('HSETNX', TAKERS, ARGV[6 + i * 2], ARGV[7 + i * 2]) end
local taken = {}
for _, record in ipairs(redis.call('HVALS', TAKERS)) do taken[string.match(record, '^%d+')] = true end
redis.call('DEL', SHARES)
for i = 6 + takers * 2, #ARGV do
  if not taken[string.match(ARGV[i], '^%d+')] then
    redis.call('RPUSH', SHARES, ARGV[i])
    left = left + 1
  end
end
if left == 0 then redis.call('HSET', META, 'state', 'emptied') end
for i = 2, 4 do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
return 'loaded'
