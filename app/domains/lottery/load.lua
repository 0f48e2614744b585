-- Makes a draw enterable. Does nothing when it is there, whatever has become of it, so the same announcement may load it twice.
-- After an engine was lost it is loaded again with the entrants that SQL has.
--
-- KEYS  1: meta hash (state, closes, keyword, entrants_max)  2: entrants hash (viewer -> key and keyword of the entry)
-- ARGV  1: deadline in ms since 1970 (0: closed by hand)  2: life of the keys in ms  3: keyword (empty: no condition)  4: most entrants;
--       then the viewers who are in
-- Reply: `loaded` or `kept`.
if redis.call('EXISTS', KEYS[1]) == 1 then return 'kept' end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'state', 'open', 'closes', ARGV[1], 'keyword', ARGV[3], 'entrants_max', ARGV[4])
for i = 5, #ARGV do redis.call('HSET', KEYS[2], ARGV[i], '') end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 'loaded'
