-- Puts an envelope's open shares where they can be grabbed. Does nothing when the envelope is there, whatever has become of it, so the
-- same announcement may load it twice. After an engine was lost it is loaded again from SQL, without what SQL knows to be taken.
--
-- KEYS  1: meta hash (state, expires)  2: shares list ("position amount", next first)  3: takers hash (viewer -> "position amount key")
-- ARGV  1: deadline in ms since 1970  2: life of the keys in ms  3: number of takers; then viewer and record of each taker;
--       then the open shares
-- Reply: `loaded` or `kept`.
if redis.call('EXISTS', KEYS[1]) == 1 then return 'kept' end
local takers = tonumber(ARGV[3])
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('HSET', KEYS[1], 'state', 'open', 'expires', ARGV[1])
for i = 0, takers - 1 do redis.call('HSET', KEYS[3], ARGV[4 + i * 2], ARGV[5 + i * 2]) end
for i = 4 + takers * 2, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
if #ARGV < 4 + takers * 2 then redis.call('HSET', KEYS[1], 'state', 'emptied') end
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
return 'loaded'
