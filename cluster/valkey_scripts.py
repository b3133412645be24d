"""What happens at the server: each script is one step, whoever else is asking. Its one key is the name of the service;
what a service keeps has that in front, in one slot of a server that is a cluster itself:

    {name}:alive     until when the lease of each process runs, in ms
    {name}:total     requests at each endpoint, and to each of its models, of all processes; {name}:own:ID those of one
    {name}:line      how many wait in each process, and since when, in µs
    {name}:notes     small facts that all know
    {name}:peers     the number and the address of each process
    {name}:serving   those that have started
    {name}:starting  the one that starts
    {name}:dead      processes whose lease ended: who inherits what they had begun, and their address
    {name}:state     version (of the three before), deletions, members, secret, epoch
    {name}:leader    who does what one of all has to do
    {name}:warm:NAME where what is warm

A process that is not alive here gets UNKNOWN for an answer, whatever it asks: it begins anew with JOIN. So whatever was
lost is there again as soon as each has asked once.
"""

from __future__ import annotations

from hashlib import blake2b

from core.valkey import Script

UNKNOWN = -1
# What goes through the channel, by its first letter, with the id of who has sent it: there is another version of what
# is shared (V), or one in which a process's line (L), a note (N) or the deletions (D) are others; a slot may be free
# (W), at these endpoints, of which each has so many requests.
VERSIONED = "LND"

COMMON = """
local P = '{' .. KEYS[1] .. '}:'
local id = ARGV[1]
local function clock() local t = redis.call('TIME') return t[1] * 1000000 + t[2] end
local function publish(text) redis.call('PUBLISH', P .. 'news', text) end
local function is_known() return redis.call('ZSCORE', P .. 'alive', id) end
local function next_version() return redis.call('HINCRBY', P .. 'state', 'version', 1) end
-- What is 0 is not there: there may be many names over time.
local function subtract(hash, name, amount)
    local left = redis.call('HINCRBY', hash, name, -amount)
    if left <= 0 then redis.call('HDEL', hash, name) end
    return left
end
local function forget(who)
    redis.call('SREM', P .. 'serving', who)
    local own = redis.call('HGETALL', P .. 'own:' .. who)
    local freed = false
    for at = 1, #own, 2 do
        if tonumber(own[at + 1]) > 0 then freed = true end
        subtract(P .. 'total', own[at], tonumber(own[at + 1]))
    end
    redis.call('DEL', P .. 'own:' .. who)
    redis.call('HDEL', P .. 'line', who)
    redis.call('HDEL', P .. 'peers', who)
    redis.call('ZREM', P .. 'alive', who)
    return freed
end
"""


def short(name: str) -> str:
    """A name of any length, and with whatever password in it, as the server has it."""
    return blake2b(name.encode(), digest_size=9).hexdigest()


def script(text: str) -> Script:
    """One that begins with what all have in common."""
    return Script(COMMON + text)


# id, lease in ms, number (-1: a new one), address, deletions, epoch, secret, waiting, since, whether it serves; how
# many endpoints and models, and each with its requests; then notes. Gives the number, and whether nothing was there
# before.
JOIN = script(
    """
forget(id)
redis.call('HDEL', P .. 'dead', id)
local lease, number, address = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local state = P .. 'state'
if number < 0 then
    number = redis.call('HINCRBY', state, 'members', 1) - 1
elseif number >= tonumber(redis.call('HGET', state, 'members') or '0') then
    redis.call('HSET', state, 'members', number + 1)
end
redis.call('ZADD', P .. 'alive', math.floor(clock() / 1000) + lease, id)
redis.call('HSET', P .. 'peers', id, number .. ' ' .. address)
if tonumber(ARGV[5]) > tonumber(redis.call('HGET', state, 'deletions') or '0') then
    redis.call('HSET', state, 'deletions', ARGV[5])
end
local is_new = redis.call('HGET', state, 'epoch') ~= ARGV[6]
local is_empty = redis.call('HSETNX', state, 'epoch', ARGV[6])
redis.call('HSETNX', state, 'secret', ARGV[7])
if tonumber(ARGV[8]) > 0 then redis.call('HSET', P .. 'line', id, ARGV[8] .. ' ' .. ARGV[9]) end
if ARGV[10] == '1' then redis.call('SADD', P .. 'serving', id) end
local last = 11 + 2 * tonumber(ARGV[11])
for at = 12, last, 2 do
    redis.call('HSET', P .. 'own:' .. id, ARGV[at], ARGV[at + 1])
    redis.call('HINCRBY', P .. 'total', ARGV[at], ARGV[at + 1])
end
if is_new then
    for at = last + 1, #ARGV, 2 do redis.call('HSETNX', P .. 'notes', ARGV[at], ARGV[at + 1]) end
end
next_version()
publish('V ' .. id)
return {number, is_empty}
"""
)

# id, lease in ms, the version that it knows, whether to add up all requests anew. Gives UNKNOWN; or the time in µs, the
# version, whether it leads, whose work it inherits, each with its address, whose work others inherit; and, where the
# version is another one, the lines, notes, peers, deletions, epoch and secret.
BEAT = script(
    """
if not is_known() then return -1 end
local now, lease = clock(), tonumber(ARGV[2])
local now_ms = math.floor(now / 1000)
redis.call('ZADD', P .. 'alive', now_ms + lease, id)
local ended = redis.call('ZRANGEBYSCORE', P .. 'alive', '-inf', now_ms)
if now_ms - tonumber(redis.call('HGET', P .. 'state', 'seen') or '0') > lease * 2 / 3 then
    -- Nobody was heard, so nobody could be: it was the server that was away.
    for _, who in ipairs(ended) do redis.call('ZADD', P .. 'alive', now_ms + lease, who) end
    ended = {}
end
redis.call('HSET', P .. 'state', 'seen', now_ms)
for _, who in ipairs(ended) do
    local peer = redis.call('HGET', P .. 'peers', who) or ''
    redis.call('HSET', P .. 'dead', who, id .. ' ' .. string.gsub(peer, '^%S* ?', ''))
    forget(who)
end
if #ended > 0 then
    next_version()
    publish('V ' .. id)
    publish('W ' .. id)
end
local inherited, elsewhere = {}, {}
local dead = redis.call('HGETALL', P .. 'dead')
for at = 1, #dead, 2 do
    local heir, address = string.match(dead[at + 1], '^(%S*) (.*)$')
    if heir ~= id and not redis.call('ZSCORE', P .. 'alive', heir) then
        redis.call('HSET', P .. 'dead', dead[at], id .. ' ' .. address)
        heir = id
    end
    local list = heir == id and inherited or elsewhere
    table.insert(list, dead[at])
    table.insert(list, address)
end
local leader = redis.call('GET', P .. 'leader')
local leads = 0
if not leader or leader == id then
    redis.call('SET', P .. 'leader', id, 'PX', lease)
    leads = 1
end
if leads == 1 and ARGV[4] == '1' then
    local sums = {}
    for _, who in ipairs(redis.call('ZRANGE', P .. 'alive', 0, -1)) do
        local own = redis.call('HGETALL', P .. 'own:' .. who)
        for at = 1, #own, 2 do sums[own[at]] = (sums[own[at]] or 0) + tonumber(own[at + 1]) end
    end
    redis.call('DEL', P .. 'total')
    for endpoint, sum in pairs(sums) do redis.call('HSET', P .. 'total', endpoint, sum) end
end
local state = P .. 'state'
local version = tonumber(redis.call('HGET', state, 'version') or '0')
local answer = {now, version, leads, inherited, elsewhere}
if version ~= tonumber(ARGV[3]) then
    table.insert(answer, redis.call('HGETALL', P .. 'line'))
    table.insert(answer, redis.call('HGETALL', P .. 'notes'))
    table.insert(answer, redis.call('HGETALL', P .. 'peers'))
    table.insert(answer, redis.call('HGET', state, 'deletions') or '0')
    table.insert(answer, redis.call('HGET', state, 'epoch') or '')
    table.insert(answer, redis.call('HGET', state, 'secret') or '')
end
return answer
"""
)

# id, and endpoints and models. Gives UNKNOWN; or the requests there, of all processes and of this one.
LOOK = script(
    """
if not is_known() then return -1 end
local names = {unpack(ARGV, 2)}
return {redis.call('HMGET', P .. 'total', unpack(names)), redis.call('HMGET', P .. 'own:' .. id, unpack(names))}
"""
)

# id. It has gone, and whoever lives looks at what it has left.
LEAVE = script(
    """
if not is_known() then return -1 end
local freed = forget(id)
if redis.call('GET', P .. 'leader') == id then redis.call('DEL', P .. 'leader') end
redis.call('HSET', P .. 'dead', id, ' ')
next_version()
publish('V ' .. id)
if freed then publish('W ' .. id) end
return 0
"""
)

# id, then processes that were there before the server forgot all, each with its address: those that have not come back
# are dead.
MISSING = script(
    """
if not is_known() then return -1 end
for at = 2, #ARGV, 2 do
    if not redis.call('ZSCORE', P .. 'alive', ARGV[at]) then
        redis.call('HSETNX', P .. 'dead', ARGV[at], id .. ' ' .. ARGV[at + 1])
    end
end
return 0
"""
)

# id, and those whose work it has taken over.
TAKEN_OVER = script(
    """
for at = 2, #ARGV do
    local heir = string.match(redis.call('HGET', P .. 'dead', ARGV[at]) or '', '^(%S*) ')
    if heir == id then redis.call('HDEL', P .. 'dead', ARGV[at]) end
end
return 0
"""
)

# id, the name of a note, and its text.
NOTE = script(
    """
redis.call('HSET', P .. 'notes', ARGV[2], ARGV[3])
publish('N ' .. id .. ' ' .. next_version() .. ' ' .. ARGV[2] .. ' ' .. ARGV[3])
return 0
"""
)

# id, how many were deleted. Gives how many ever were.
DELETE = script(
    """
local all = redis.call('HINCRBY', P .. 'state', 'deletions', ARGV[2])
publish('D ' .. id .. ' ' .. next_version() .. ' ' .. all)
return all
"""
)

# id, for how many ms it starts at most. Gives UNKNOWN where another one is starting; else how many serve.
START = script(
    """
local starting = redis.call('GET', P .. 'starting')
if starting and starting ~= id then return -1 end
redis.call('SET', P .. 'starting', id, 'PX', ARGV[2])
return redis.call('SCARD', P .. 'serving')
"""
)

# id, whether it has started, whether it was the first: then nobody has to inherit any more what was there before.
STARTED = script(
    """
if redis.call('GET', P .. 'starting') == id then redis.call('DEL', P .. 'starting') end
if ARGV[2] == '1' then redis.call('SADD', P .. 'serving', id) end
if ARGV[3] == '1' then redis.call('DEL', P .. 'dead') end
return 0
"""
)

# id, its number and address.
ANSWERS = script(
    """
if not is_known() then return -1 end
redis.call('HSET', P .. 'peers', id, ARGV[2] .. ' ' .. ARGV[3])
next_version()
publish('V ' .. id)
return 0
"""
)

ALL = (JOIN, BEAT, LOOK, LEAVE, MISSING, TAKEN_OVER, NOTE, DELETE, START, STARTED, ANSWERS)
