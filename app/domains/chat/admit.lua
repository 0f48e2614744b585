-- Admits a batch of chat messages to one room. For each message, in this order: the answer it had before, the room is closed, banned,
-- muted, slow mode, the general rate. What is admitted gets its time, is written to the room's archive stream (from which SQL is filled) and
-- remembered under (viewer, key), all in one step: a retry finds the first answer, and no admitted message can miss the archive.
-- Refusals are not remembered: the same key may be tried again later.
--
-- KEYS  1: archive stream, 2: state hash (`words`, `slow_mode_s`, `m:<viewer>` muted until ms, `b:<viewer>` banned), 3: said hash;
--       then for each message: its key record, its viewer's list of recent send times
-- ARGV  1: now ms (0: the engine's clock), 2: the live session (empty: none), 3: digest of the word list the messages were checked with,
--       4: messages a viewer may send in a window, 5: that window ms, 6: life of a key record ms, 7: most entries the archive stream may hold;
--       then for each message: id, digest of its body, 1 if slow mode does not apply, viewer, listed words in it (empty: none), line as JSON
-- Reply: {'stale'} when the state is missing or its word list is another one: nothing was done, mirror the room and call again;
--        else 'ok', then for each message: word, id, at ms, wait ms
local now = tonumber(ARGV[1])
if now == 0 then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local session, rate, window, life = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local state = redis.call('HMGET', KEYS[2], 'words', 'slow_mode_s')
if session ~= '' and state[1] ~= ARGV[3] then return { 'stale' } end
local slow = (tonumber(state[2] or '') or 0) * 1000
local room_left = tonumber(ARGV[7]) - redis.call('XLEN', KEYS[1])
local said = 0
local reply = { 'ok' }

local function wait_after(sent_at, interval)
  local sent = tonumber(sent_at or '')
  return sent and math.max(0, sent + interval - now) or 0
end

-- The word for a message that was not answered before, and how long to wait where waiting helps.
local function decide(viewer, exempt, times)
  if session == '' then return 'closed', 0 end
  local sanctions = redis.call('HMGET', KEYS[2], 'b:' .. viewer, 'm:' .. viewer)
  if sanctions[1] then return 'banned', 0 end
  local muted_for = (tonumber(sanctions[2] or '') or 0) - now
  if muted_for > 0 then return 'muted', muted_for end
  if slow > 0 and not exempt then
    local wait = wait_after(redis.call('LINDEX', times, 0), slow)
    if wait > 0 then return 'slow_mode', wait end
  end
  local wait = wait_after(redis.call('LINDEX', times, rate - 1), window)
  if wait > 0 then return 'too_fast', wait end
  if room_left <= 0 then return 'full', 0 end
  return 'sent', 0
end

for i = 0, (#KEYS - 3) / 2 - 1 do
  local record, times = KEYS[i * 2 + 4], KEYS[i * 2 + 5]
  local a = i * 6 + 8
  local id, digest, viewer, words = ARGV[a], ARGV[a + 1], ARGV[a + 3], ARGV[a + 4]
  local word, at, wait = '', now, 0
  local before = redis.call('GET', record)
  if before then
    local first_digest, first_word, first_at = string.match(before, '^(%S+) (%S+) (%d+)$')
    word, at = first_word, first_at
    if first_digest ~= digest then word = 'key_reused' end
  else
    word, wait = decide(viewer, ARGV[a + 2] == '1', times)
    if word == 'sent' then
      if words ~= '' then word = 'held_for_review' else said = said + 1 end
      redis.call('XADD', KEYS[1], '*', 'i', id, 'a', now, 's', session, 'w', words, 'd', ARGV[a + 5])
      redis.call('SET', record, digest .. ' ' .. word .. ' ' .. now, 'PX', life)
      redis.call('LPUSH', times, now)
      redis.call('LTRIM', times, 0, rate - 1)
      redis.call('PEXPIRE', times, math.max(window, slow))
      room_left = room_left - 1
    end
  end
  local at_reply = #reply
  reply[at_reply + 1], reply[at_reply + 2], reply[at_reply + 3], reply[at_reply + 4] = word, id, tostring(at), tostring(wait)
end

if said > 0 then
  local second = math.floor(now / 1000)
  local last = redis.call('HMGET', KEYS[3], 'second', 'count')
  local gap = second - (tonumber(last[1] or '') or 0)
  if gap == 0 then
    redis.call('HINCRBY', KEYS[3], 'count', said)
  else
    redis.call('HSET', KEYS[3], 'second', second, 'before', gap == 1 and last[2] or 0, 'count', said)
  end
  redis.call('EXPIRE', KEYS[3], 60)
end
return reply
