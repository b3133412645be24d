"""Who answers what several processes are asked at once, at a Valkey: {name}:flight:WHAT holds the process, and its
flight. It counts for as long as that process lives."""

from __future__ import annotations

from cluster.membership import Membership
from cluster.protocol import SharedFlights
from cluster.valkey_scripts import script
from core.valkey import ValkeyError

# Longer than anything is on its way: the names of what nobody has released go then.
KEEP_MS = 24 * 3600 * 1000

# id, what is asked, the flight of this process, whether it may lead. Gives the flight that leads, or nothing.
CLAIM = script(
    """
local key = P .. 'flight:' .. ARGV[2]
local held = redis.call('GET', key)
if held then
    local holder, flight = string.match(held, '^(%S+) (%S+)$')
    local alive = redis.call('ZSCORE', P .. 'alive', holder)
    if alive and tonumber(alive) > clock() / 1000 then return flight end
end
if ARGV[4] == '0' or not is_known() then return '' end
redis.call('SET', key, id .. ' ' .. ARGV[3], 'PX', ARGV[5])
return ARGV[3]
"""
)

# id, what is asked, the flight of this process.
RELEASE = script(
    """
local key = P .. 'flight:' .. ARGV[2]
if redis.call('GET', key) == id .. ' ' .. ARGV[3] then redis.call('DEL', key) end
return 0
"""
)


class ReplicaFlights(SharedFlights):
    """Those of all replicas."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    async def claim(self, name: str, flight: str, *, may_lead: bool = True) -> str | None:
        if not self._membership.is_joined:
            return None
        try:
            leader: bytes = await self._membership.ask(CLAIM, name, flight, int(may_lead), KEEP_MS)
        except (ConnectionError, ValkeyError):
            return None
        return leader.decode() or None

    def release(self, name: str, flight: str) -> None:
        self._membership.send(RELEASE, name, flight)
