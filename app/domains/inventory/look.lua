-- What kind of life the engine leads, and how far a room's records go: read before a closed room is renewed.
--
-- KEYS  1: sessions, hash (see sales.lua)   2: outbox stream
-- ARGV  none
-- Reply: run id; the run id by which the room is open (empty: none); last id of the outbox (empty: there is none); 1 if this engine may lack
--        the end of what was acknowledged, since it was a replica or keeps no append-only file, else 0; 1 if a renewal of a loss was cut off.
local info = redis.call('INFO', 'server') .. redis.call('INFO', 'replication') .. redis.call('INFO', 'persistence')
local room = redis.call('HMGET', KEYS[1], 'life', 'lost')
local promoted = string.match(info, 'second_repl_offset:(-?%d+)') ~= '-1'
local kept = string.match(info, 'aof_enabled:(%d)') == '1'

local last = ''
if redis.call('EXISTS', KEYS[2]) == 1 then
  local stream = redis.call('XINFO', 'STREAM', KEYS[2])
  for index = 1, #stream, 2 do
    if stream[index] == 'last-generated-id' then last = stream[index + 1] end
  end
end
return {string.match(info, 'run_id:(%x+)'), room[1] or '', last, (promoted or not kept) and 1 or 0, room[2] and 1 or 0}
