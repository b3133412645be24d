"""What happens at the server: each script is one step, whoever else is asking. Its one key is the name of the service;
what a service keeps has that in front, in one slot of a server that is a cluster itself:

    {name}:alive     until when the lease of each process runs, in ms
    {name}:total     requests at each endpoint, of all processes; {name}:own:ID those of one
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

from core.valkey import Script

UNKNOWN = -1
# What goes through the channel, by its first letter, with the id of who has sent it: there is another version of what
# is shared (V), or one in which a process's line (L), a note (N) or the deletions (D) are others; a slot may be free
# (W), at these endpoints, of which each has so many requests.
VERSIONED = "LND"

_COMMON = """
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


def _script(text: str) -> Script:
    return Script(_COMMON + text)


# id, lease in ms, number (-1: a new one), address, deletions, epoch, secret, waiting, since, whether it serves; how
# many endpoints, and each with its requests; then notes. Gives the number, and whether nothing was there before.
JOIN = _script(
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
# version, whether it leads, whose work it inherits, each with its address; and, where the version is another one, the
# lines, notes, peers, deletions, epoch and secret.
BEAT = _script(
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
local inherited = {}
local dead = redis.call('HGETALL', P .. 'dead')
for at = 1, #dead, 2 do
    local heir, address = string.match(dead[at + 1], '^(%S*) (.*)$')
    if heir ~= id and not redis.call('ZSCORE', P .. 'alive', heir) then
        redis.call('HSET', P .. 'dead', dead[at], id .. ' ' .. address)
        heir = id
    end
    if heir == id then
        table.insert(inherited, dead[at])
        table.insert(inherited, address)
    end
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
local answer = {now, version, leads, inherited}
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

# id, and endpoints. Gives UNKNOWN; or the requests there, of all processes and of this one.
LOOK = _script(
    """
if not is_known() then return -1 end
local names = {unpack(ARGV, 2)}
return {redis.call('HMGET', P .. 'total', unpack(names)), redis.call('HMGET', P .. 'own:' .. id, unpack(names))}
"""
)

# id. It has gone, and whoever lives looks at what it has left.
LEAVE = _script(
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

# id, an endpoint, for how many ms it is known, and names of what is warm there.
REMEMBER = _script(
    """
for at = 4, #ARGV do redis.call('SET', P .. 'warm:' .. ARGV[at], ARGV[2], 'PX', ARGV[3]) end
return 0
"""
)

# id, then processes that were there before the server forgot all, each with its address: those that have not come back
# are dead.
MISSING = _script(
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
TAKEN_OVER = _script(
    """
for at = 2, #ARGV do
    local heir = string.match(redis.call('HGET', P .. 'dead', ARGV[at]) or '', '^(%S*) ')
    if heir == id then redis.call('HDEL', P .. 'dead', ARGV[at]) end
end
return 0
"""
)

# id, the endpoint, its limit; then, where another endpoint might be warm: how many of those there are, each with its
# limit, the load above that of the chosen one up to which it is preferred, and the names of what may be warm. Gives
# UNKNOWN; or whether it is taken, how many requests of others run there, and 0 or the number of the other endpoint that
# it is instead.
TAKE = _script(
    """
if not is_known() then return {-1, 0, 0} end
local own = P .. 'own:' .. id
local endpoint, limit, place = ARGV[2], tonumber(ARGV[3]), 0
local total = tonumber(redis.call('HGET', P .. 'total', endpoint) or '0')
if #ARGV > 3 then
    local last = 4 + 2 * tonumber(ARGV[4])
    for at = last + 2, #ARGV do
        local warm = redis.call('GET', P .. 'warm:' .. ARGV[at])
        if warm == endpoint then break end
        local found = 0
        for other = 5, last, 2 do
            if ARGV[other] == warm then found = other end
        end
        if found > 0 then
            local there, most = tonumber(redis.call('HGET', P .. 'total', warm) or '0'), tonumber(ARGV[found + 1])
            local least = total >= limit and there / most or total / limit
            if there < most and there / most <= least + tonumber(ARGV[last + 1]) then
                endpoint, limit, total, place = warm, most, there, (found - 3) / 2
            end
            break
        end
    end
end
local mine = tonumber(redis.call('HGET', own, endpoint) or '0')
if total >= limit then return {0, total - mine, 0} end
redis.call('HINCRBY', P .. 'total', endpoint, 1)
redis.call('HINCRBY', own, endpoint, 1)
return {1, total - mine, place}
"""
)

# id, then endpoints, each with how many of its requests there have ended.
END = _script(
    """
if not is_known() then return -1 end
local own, text = P .. 'own:' .. id, 'W ' .. id
for at = 2, #ARGV, 2 do
    local had = tonumber(redis.call('HGET', own, ARGV[at]) or '0')
    local ended = math.min(had, tonumber(ARGV[at + 1]))
    subtract(own, ARGV[at], ended)
    text = text .. ' ' .. ARGV[at] .. ' ' .. subtract(P .. 'total', ARGV[at], ended)
end
local waiting = redis.call('HLEN', P .. 'line')
if waiting > 1 or (waiting == 1 and redis.call('HEXISTS', P .. 'line', id) == 0) then publish(text) end
return 0
"""
)

# id: a slot may be free.
WAKE = _script(
    """
publish('W ' .. id)
return 0
"""
)

# id, how many wait in it, and since when, in µs.
LINE = _script(
    """
if not is_known() then return -1 end
if tonumber(ARGV[2]) > 0 then
    redis.call('HSET', P .. 'line', id, ARGV[2] .. ' ' .. ARGV[3])
elseif redis.call('HDEL', P .. 'line', id) == 0 then
    return 0
end
publish('L ' .. id .. ' ' .. next_version() .. ' ' .. ARGV[2] .. ' ' .. ARGV[3])
return 0
"""
)

# id, the name of a note, and its text.
NOTE = _script(
    """
redis.call('HSET', P .. 'notes', ARGV[2], ARGV[3])
publish('N ' .. id .. ' ' .. next_version() .. ' ' .. ARGV[2] .. ' ' .. ARGV[3])
return 0
"""
)

# id, how many were deleted. Gives how many ever were.
DELETE = _script(
    """
local all = redis.call('HINCRBY', P .. 'state', 'deletions', ARGV[2])
publish('D ' .. id .. ' ' .. next_version() .. ' ' .. all)
return all
"""
)

# id, for how many ms it starts at most. Gives UNKNOWN where another one is starting; else how many serve.
START = _script(
    """
local starting = redis.call('GET', P .. 'starting')
if starting and starting ~= id then return -1 end
redis.call('SET', P .. 'starting', id, 'PX', ARGV[2])
return redis.call('SCARD', P .. 'serving')
"""
)

# id, whether it has started, whether it was the first: then nobody has to inherit any more what was there before.
STARTED = _script(
    """
if redis.call('GET', P .. 'starting') == id then redis.call('DEL', P .. 'starting') end
if ARGV[2] == '1' then redis.call('SADD', P .. 'serving', id) end
if ARGV[3] == '1' then redis.call('DEL', P .. 'dead') end
return 0
"""
)

# id, its number and address.
ANSWERS = _script(
    """
if not is_known() then return -1 end
redis.call('HSET', P .. 'peers', id, ARGV[2] .. ' ' .. ARGV[3])
next_version()
publish('V ' .. id)
return 0
"""
)

# id, then quotas, each with its limit, its period in ms (0: so many at once) and how much is wanted of it: all of it or
# nothing. The name of one of so many at once is an endpoint's. Gives UNKNOWN; or the number of the first that has no
# room, 0 where all have, the time in µs, and by quota what its counter holds behind that: bucket, previous, current.
DRAW = _script(
    """
if not is_known() then return -1 end
local now_us = clock()
local now = now_us / 1000
local counters, refused = {}, 0
for at = 2, #ARGV, 4 do
    local name, limit, period, amount = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    local counter, count
    if period == 0 then
        count = tonumber(redis.call('HGET', P .. 'total', name) or '0')
        counter = {0, 0, count}
    else
        local kept = redis.call('HMGET', P .. 'quota:' .. name, 'bucket', 'previous', 'current')
        local bucket, place = math.floor(now / period), now / period
        local behind = bucket - tonumber(kept[1] or '0')
        local previous, current = tonumber(kept[2] or '0'), tonumber(kept[3] or '0')
        if behind == 1 then previous, current = current, 0 elseif behind > 1 then previous, current = 0, 0 end
        count = current + previous * (1 - (place - bucket))
        counter = {bucket, previous, current}
    end
    if amount > 0 and count + amount > limit and refused == 0 then refused = (at + 2) / 4 end
    table.insert(counters, counter)
end
if refused == 0 then
    for at = 2, #ARGV, 4 do
        local name, period, amount = ARGV[at], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
        local counter = counters[(at + 2) / 4]
        counter[3] = counter[3] + amount
        if amount ~= 0 then
            if period == 0 then
                redis.call('HINCRBY', P .. 'total', name, amount)
                redis.call('HINCRBY', P .. 'own:' .. id, name, amount)
            else
                local key = P .. 'quota:' .. name
                redis.call('HSET', key, 'bucket', counter[1], 'previous', counter[2], 'current', counter[3])
                redis.call('PEXPIRE', key, 2 * period + 1000)
            end
        end
    end
end
return {refused, now_us, counters}
"""
)

# id, then quotas of a period, each with its period in ms, the bucket in which it was taken, and how much more was used,
# negative for less.
SETTLE = _script(
    """
local now = clock() / 1000
for at = 2, #ARGV, 4 do
    local key, period = P .. 'quota:' .. ARGV[at], tonumber(ARGV[at + 1])
    local taken_in, more = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    local kept = redis.call('HMGET', key, 'bucket', 'previous', 'current')
    local bucket = math.floor(now / period)
    local behind = bucket - tonumber(kept[1] or '0')
    local previous, current = tonumber(kept[2] or '0'), tonumber(kept[3] or '0')
    if behind == 1 then previous, current = current, 0 elseif behind > 1 then previous, current = 0, 0 end
    if more > 0 or taken_in == bucket then
        current = math.max(current + more, 0)
    elseif taken_in == bucket - 1 then
        previous = math.max(previous + more, 0)
    end
    redis.call('HSET', key, 'bucket', bucket, 'previous', previous, 'current', current)
    redis.call('PEXPIRE', key, 2 * period + 1000)
end
return 0
"""
)

ALL = (
    JOIN,
    BEAT,
    LOOK,
    LEAVE,
    REMEMBER,
    MISSING,
    TAKEN_OVER,
    TAKE,
    END,
    WAKE,
    LINE,
    NOTE,
    DELETE,
    START,
    STARTED,
    ANSWERS,
    DRAW,
    SETTLE,
)

# The id of a response, for how many ms it is kept, whether there are events of it here, and, but for the last one, a
# batch: its number, and its events. Gives UNKNOWN where those that were here are gone.
APPEND = Script(
    """
local key = '{' .. KEYS[1] .. '}:events:' .. ARGV[1]
if ARGV[3] == '1' and redis.call('EXISTS', key) == 0 then return -1 end
if #ARGV > 3 then
    -- One that is here already has a number that is not above the last one's.
    local added = redis.pcall('XADD', key, ARGV[4] .. '-0', 'events', ARGV[5])
    if added.err and not string.find(added.err, 'equal or smaller') then return added end
end
redis.call('PEXPIRE', key, ARGV[2])
redis.call('PUBLISH', key, '')
return 0
"""
)
