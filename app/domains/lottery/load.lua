-- Makes a draw of SQL enterable. Runs after life.lua.
-- The same announcement may load it twice: what is there stays, whatever has become of it. In the renewal of a closed room, which has
-- read the outbox to its end, entrants whom SQL has stand beside those who survived, a part of them a call; a draw that is over in SQL is
-- over here.
--
-- KEYS  1: room, hash (see life.lua)  2: meta hash (state, closes, keyword, entrants_max)
--       3: entrants hash (viewer -> key and keyword of the entry; empty where they come from SQL, which does not know them)
-- ARGV  1: the life in which the room is renewed; empty: the room is open  2: `open`, or `over`
--       3: deadline in ms since 1970 (0: closed by hand)  4: life of the keys in ms  5: keyword (empty: no condition)  6: most entrants;
--       then the viewers who are in
-- Reply: `loaded`, `kept`, `frozen` (the room is closed), `stale` (the engine has restarted once more).
local ROOM, META, ENTRANTS = unpack(KEYS)
local renewed = ARGV[1]
if renewed == '' and is_closed(ROOM) then return 'frozen' end
if renewed ~= '' and is_stale(ROOM, renewed) then return 'stale' end
local state = redis.call('HGET', META, 'state')
if ARGV[2] == 'over' then
  if state == 'open' then redis.call('HSET', META, 'state', 'closed') end
  return 'kept'
end
if state and renewed == '' then return 'kept' end

if not state then
  redis.call('DEL', ENTRANTS)
  redis.call('HSET', META, 'state', 'open', 'closes', ARGV[3], 'keyword', ARGV[5], 'entrants_max', ARGV[6])
end
for i = 7, #ARGV do redis.call('HSETNX', ENTRANTS, ARGV[i], '') end
redis.call('PEXPIRE', META, ARGV[4])
redis.call('PEXPIRE', ENTRANTS, ARGV[4])
return 'loaded'
