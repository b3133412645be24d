"""Counting at the server: slots of endpoints and who waits for them, what is warm where, quotas. Keys and answers are
those of valkey_scripts.py."""

from __future__ import annotations

from cluster.valkey_scripts import script

# id, the endpoint, its limit; then, where another endpoint might be warm: how many of those there are, each with its
# limit, the load above that of the chosen one up to which it is preferred, and the names of what may be warm. Gives
# UNKNOWN; or whether it is taken, how many requests of others run there, and 0 or the number of the other endpoint that
# it is instead.
TAKE = script(
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
END = script(
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
WAKE = script(
    """
publish('W ' .. id)
return 0
"""
)

# id, how many wait in it, and since when, in µs.
LINE = script(
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

# id, an endpoint, for how many ms it is known, and names of what is warm there.
REMEMBER = script(
    """
for at = 4, #ARGV do redis.call('SET', P .. 'warm:' .. ARGV[at], ARGV[2], 'PX', ARGV[3]) end
return 0
"""
)

# id, then quotas, each with its limit, its period in ms (0: so many at once) and how much is wanted of it: all of it or
# nothing. The name of one of so many at once is an endpoint's. Gives UNKNOWN; or the number of the first that has no
# room, 0 where all have, the time in µs, and by quota what its counter holds behind that: bucket, previous, current.
DRAW = script(
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
SETTLE = script(
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

ALL = (TAKE, END, WAKE, LINE, REMEMBER, DRAW, SETTLE)
