"""The journal's scripts; Redis runs each as a whole."""

# KEYS: guard hash, run hash, events. ARGV: guard field, its value, event, its data, how many
# events are kept, the driver's epoch or nothing, then fields of the run hash with their values.
# Answers 0, and changes nothing, where the guard field is already set, and -1 where a later epoch
# was given out. The guard is set last: Redis does not undo a script that fails.
WRITE_ONCE = """
if ARGV[6] ~= '' and redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[6] then return -1 end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'event', ARGV[3], 'data', ARGV[4])
if #ARGV > 6 then redis.call('HSET', KEYS[2], unpack(ARGV, 7)) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""

# KEYS: drivers, events. ARGV: who writes, the count of its events, the event, its data, how many
# are kept.
EVENT = """
if tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0) >= tonumber(ARGV[2]) then return end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'event', ARGV[3], 'data', ARGV[4])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""

# KEYS: run hash, events, then hashes. ARGV: the driver's epoch or nothing, event, its data, how
# many events are kept, as JSON the fields that go from each of the hashes, then fields of the run
# hash with their values.
# Answers 0, and changes nothing, where none of the fields is there, and -1 where a later epoch was
# given out. What goes goes last: Redis does not undo a script that fails.
TAKE_BACK = """
if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return -1 end
local lost, there = cjson.decode(ARGV[5]), 0
for i, names in ipairs(lost) do
  for _, name in ipairs(names) do there = there + redis.call('HEXISTS', KEYS[i + 2], name) end
end
if there == 0 then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'event', ARGV[2], 'data', ARGV[3])
if #ARGV > 5 then redis.call('HSET', KEYS[1], unpack(ARGV, 6)) end
for i, names in ipairs(lost) do
  for _, name in ipairs(names) do redis.call('HDEL', KEYS[i + 2], name) end
end
return 1
"""
