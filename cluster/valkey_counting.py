"""Counting at the server: slots of endpoints and who waits for them, what is warm where, quotas. Keys and answers are
those of valkey_scripts.py."""

from __future__ import annotations

from cluster.valkey_scripts import script

# Quotas among the arguments, from one of them on, each with its limit, its period in ms (0: so many at once) and how
# much is wanted of it: all of it or nothing. The name of one of so many at once is an endpoint's. Gives the number of
# the first that has no room, 0 where all have, the time in µs, and by quota what its counter holds behind that: bucket,
# previous, current.
DRAWING = """
local function draw(first, quotas)
    local now_us = clock()
    local now = now_us / 1000
    local counters, refused, last = {}, 0, first + 4 * quotas - 1
    for at = first, last, 4 do
        local name, limit = ARGV[at], tonumber(ARGV[at + 1])
        local period, amount = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
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
        table.insert(counters, counter)
        if amount > 0 and count + amount > limit and refused == 0 then refused = #counters end
    end
    if refused > 0 then return refused, now_us, counters end
    for number, counter in ipairs(counters) do
        local at = first + 4 * (number - 1)
        local name, period, amount = ARGV[at], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
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
    return 0, now_us, counters
end
"""

# id, the endpoint, its limit, the model there, under a name as an endpoint's; how many quotas, and what is wanted of
# them; then, where another endpoint might be warm: how many of those there are, each with its limit and the model, the
# load above that of the chosen one up to which it is preferred, and the names of what may be warm. Gives UNKNOWN; or
# whether it is taken, how many requests of others run there, 0 or the number of the other endpoint that it is instead,
# and where there are quotas what DRAWING gives. What is refused there gets no slot.
TAKE = script(
    DRAWING
    + """
if not is_known() then return {-1, 0, 0} end
local own = P .. 'own:' .. id
local endpoint, limit, model, place = ARGV[2], tonumber(ARGV[3]), ARGV[4], 0
local total = tonumber(redis.call('HGET', P .. 'total', endpoint) or '0')
local quotas, refused, now_us, counters = tonumber(ARGV[5]), 0, nil, nil
if quotas > 0 then refused, now_us, counters = draw(6, quotas) end
local others = 6 + 4 * quotas
if refused == 0 and #ARGV >= others then
    local last = others + 3 * tonumber(ARGV[others])
    for at = last + 2, #ARGV do
        local warm = redis.call('GET', P .. 'warm:' .. ARGV[at])
        if warm == endpoint then break end
        local found = 0
        for other = others + 1, last, 3 do
            if ARGV[other] == warm then found = other end
        end
        if found > 0 then
            local there, most = tonumber(redis.call('HGET', P .. 'total', warm) or '0'), tonumber(ARGV[found + 1])
            local least = total >= limit and there / most or total / limit
            if there < most and there / most <= least + tonumber(ARGV[last + 1]) then
                endpoint, limit, total, model, place = warm, most, there, ARGV[found + 2], (found - others + 2) / 3
            end
            break
        end
    end
end
local others_requests = total - tonumber(redis.call('HGET', own, endpoint) or '0')
if refused > 0 or total >= limit then return {0, others_requests, 0, refused, now_us, counters} end
redis.call('HINCRBY', P .. 'total', endpoint, 1)
redis.call('HINCRBY', own, endpoint, 1)
redis.call('HINCRBY', P .. 'total', model, 1)
redis.call('HINCRBY', own, model, 1)
return {1, others_requests, place, refused, now_us, counters}
"""
)

# id, how many endpoints and models have requests that have ended, each with their number; then quotas of a period, each
# with its period in ms, the bucket in which it was taken, and how much more was used, negative for less.
END = script(
    """
local last = 2 + 2 * tonumber(ARGV[2])
if #ARGV > last then
    local now = clock() / 1000
    for at = last + 1, #ARGV, 4 do
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
end
if not is_known() then return -1 end
if last == 2 then return 0 end
local own, text = P .. 'own:' .. id, 'W ' .. id
for at = 3, last, 2 do
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

# id, how many quotas, and what is wanted of them. Gives UNKNOWN, or what DRAWING gives.
DRAW = script(
    DRAWING
    + """
if not is_known() then return -1 end
return {draw(3, tonumber(ARGV[2]))}
"""
)

ALL = (TAKE, END, WAKE, LINE, REMEMBER, DRAW)
