-- The engine's life. Included first in every script that answers from a room's hot records or changes them: sales, draws, envelopes.
-- A room is closed while its `life` is not the run id of this engine: it has restarted, another has taken over, or the records are gone.
-- They may then be old, so nothing is done with them but what can never change, until the room's renewal has compared them with SQL. (INFO
-- costs 4 us a batch; what a process knows of its engine could be wrong behind a proxy, and a key of the engine would be copied with the rest.)
local life = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')

local function is_closed(room) return redis.call('HGET', room, 'life') ~= life end

local function is_stale(room, renewed) return life ~= renewed or not is_closed(room) end  -- of who renews a room that was closed in this life
