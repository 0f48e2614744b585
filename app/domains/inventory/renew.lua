-- Fills a closed room's records with what was worked out from all that is known (rules.rebuild), in bounded parts, and opens it at last.
-- Runs after life.lua, which states why a room is closed, and sales.lua, which states KEYS and ARGV. Until the act `open` nobody else reads or writes these records,
-- so a renewal that is cut off anywhere is begun again and finds what it had written among what survived.
--
-- ARGV  6: `renew`   7: the run id of the engine that was looked at
-- Member: act and by act:
--   mark last: the outbox goes on behind SQL's intake mark, so that ids never go back · lost: something is missing, also for who tries again
--   session id state · offer id record ended · hold id record · count field units · deadline id at (ms; 0: none)
--   line name stands · void hold viewer offer, void_wait wait viewer offer: its viewer is told · open told epoch lost
-- Answer: word: done; stale: the engine has restarted since, or the room is open.
local act, word, waits_ended = {}, 'done', {}

function act.mark(member)
  local id = redis.pcall('XADD', OUTBOX, member.last, 't', '')  -- refused where the outbox is further already
  if type(id) == 'string' then redis.call('XDEL', OUTBOX, id) end
end

function act.lost() redis.call('HSET', ROOM, 'lost', '1') end

function act.session(member)
  local field = 's:' .. member.id
  if redis.call('HGET', ROOM, field) ~= 'ended' then redis.call('HSET', ROOM, field, member.state) end
end

function act.offer(member)
  keep(OFFERS, member.id, member.record)
  if member.ended then memories['o:' .. member.id] = now + keep_ms end
end

function act.hold(member)
  local state = member.record.state
  keep(HOLDS, member.id, member.record)
  memories[member.id] = state ~= 'held' and state ~= 'ordered' and now + keep_ms
end

function act.line(member) line[member.name] = member.stands and 0 end
function act.count(member) counts[member.field] = member.units end
function act.deadline(member) deadlines[member.id] = member.at > 0 and member.at end
function act.void(member) ended[#ended + 1] = {hold = member.hold, viewer = member.viewer, offer = member.offer, outcome = 'void'} end

function act.void_wait(member)
  waits_ended[#waits_ended + 1] = {wait = member.wait, viewer = member.viewer, offer = member.offer, outcome = 'closed'}
end

function act.open(member)
  redis.call('HSET', ROOM, 'life', life)
  redis.call('HDEL', ROOM, 'lost')
  if member.told then tell('sales.reopened', {epoch = member.epoch, lost = member.lost}) end
end

local answers = {}
if is_stale(ROOM, ARGV[7]) then word = 'stale' end
for index, member in ipairs(cjson.decode(ARGV[5])) do
  if word == 'done' then act[member.act](member) end
  answers[index] = {word = word}
end
if #waits_ended > 0 then tell('wait.ended', {waits = waits_ended}) end
if word == 'done' then commit() end
return cjson.encode(answers)
